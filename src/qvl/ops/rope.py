"""Rotary position embedding: multimodal (time, height, width) for text, two-dimensional for the vision tower.

Stateless, and per sequence where frequencies depend on the length: a packed batch gives what single calls
give. Angles are computed in float32.

Legend: T tokens, P patches, H heads, D head dim, F = D / 2 rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qvl.errors import ConfigError, InputError
from qvl.ops.frequencies import RopeSettings, attention_factor, inverse_frequencies
from qvl.ops.kernels import elementwise, kernels
from qvl.ops.kernels.plain import plain


def apply_rotary(x_THD: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> Tensor:
    """Turn each pair (f, f + D/2) of the head dim by its angle: (T, H, D) in the dtype of x.

    Float32 angles widen half precision for the turn; it is narrowed after it.
    """
    offered = kernels()
    if offered is not None and plain(x_THD, cos_TF, sin_TF) and _fit(x_THD, cos_TF, sin_TF):
        x_THD = x_THD if x_THD.stride(2) == 1 else x_THD.contiguous()
        return elementwise.rotary(offered, x_THD, cos_TF.contiguous(), sin_TF.contiguous())
    cos_T1F, sin_T1F = cos_TF[:, None], sin_TF[:, None]
    first_THF, second_THF = x_THD.chunk(2, dim=-1)
    turned_THD = torch.cat(
        (first_THF * cos_T1F - second_THF * sin_T1F, second_THF * cos_T1F + first_THF * sin_T1F), dim=-1
    )
    return turned_THD.to(x_THD.dtype)


def _fit(x_THD: Tensor, cos_TF: Tensor, sin_TF: Tensor) -> bool:
    """Whether the kernel knows the dtypes, and each token has an angle for each pair."""
    (T, _, D), dtype = x_THD.shape, cos_TF.dtype
    same = cos_TF.shape == sin_TF.shape == (T, D // 2) and D % 2 == 0
    return same and dtype == sin_TF.dtype and dtype in (x_THD.dtype, torch.float32)


class Rotary:
    """Cosines and sines for the positions of packed text.

    The F frequencies are divided among the three axes by ``settings.sections`` (Qwen2-VL, arXiv 2409.12191):
    [16, 24, 24] in the released models. Raises ConfigError at once for settings that cannot work.
    """

    def __init__(self, settings: RopeSettings) -> None:
        self.settings = settings
        self.scale = attention_factor(settings)
        self.follows_length = settings.rope_type in ("dynamic", "longrope")
        self.axis_of_frequency = _axes(settings)
        inverse_frequencies(settings)  # for its errors: here, not at the first call
        self._tables: dict[tuple[bool, torch.device], Tensor] = {}
        self._axis_tables: dict[torch.device, Tensor] = {}

    def __call__(
        self,
        positions_3T: Tensor,
        lengths: Sequence[int],
        extents: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """(cos_TF, sin_TF) in ``dtype``.

        positions_3T: integer positions on (time, height, width). lengths: rows of each packed sequence.
        extents: largest position + 1 of each sequence, read from the positions where None. To be given for
        a sequence that comes in parts: its past counts, and for a prompt in chunks the chunks still to come.
        """
        axes_F = self._axes_on(positions_3T.device)
        frequencies = self._frequencies(positions_3T, lengths, extents)
        angles_TF = positions_3T.float().T[:, axes_F] * frequencies
        return (angles_TF.cos() * self.scale).to(dtype), (angles_TF.sin() * self.scale).to(dtype)

    def _frequencies(
        self, positions_3T: Tensor, lengths: Sequence[int], extents: Sequence[int] | None
    ) -> Tensor:
        """(F,), or (T, F) where packed sequences of different extents need different ones."""
        device = positions_3T.device
        if not self.follows_length:
            return self._table(0, device)
        if extents is None:
            extents = [int(p.max()) + 1 if p.numel() else 0 for p in positions_3T.split(list(lengths), dim=1)]
        if len(extents) != len(lengths):
            raise InputError(
                f"{len(lengths)} packed sequences but {len(extents)} extents; give one per sequence."
            )
        if len(set(extents)) == 1:
            return self._table(extents[0], device)
        tables = [self._table(e, device).expand(n, -1) for e, n in zip(extents, lengths, strict=True)]
        return torch.cat(tables)

    def _table(self, extent: int, device: torch.device) -> Tensor:
        longrope = self.settings.rope_type == "longrope"
        limit = self.settings.longrope_origin if longrope else self.settings.max_position_embeddings
        stretched = self.follows_length and extent > limit
        # Another table at every length: not worth keeping.
        if stretched and self.settings.rope_type == "dynamic":
            return inverse_frequencies(self.settings, extent).to(device)
        key = (stretched, device)
        if key not in self._tables:
            with torch.inference_mode(False):
                self._tables[key] = inverse_frequencies(self.settings, extent).to(device)
        return self._tables[key]

    def _axes_on(self, device: torch.device) -> Tensor:
        if device not in self._axis_tables:
            with torch.inference_mode(False):
                self._axis_tables[device] = torch.tensor(self.axis_of_frequency, device=device)
        return self._axis_tables[device]


def _axes(settings: RopeSettings) -> list[int]:
    """For each frequency: 0 time, 1 height, 2 width."""
    sections = settings.sections
    if len(sections) != 3 or min(sections) < 0 or 2 * sum(sections) != settings.head_dim:
        raise ConfigError(
            f"mrope_section {list(sections)} must be three counts that add up to {settings.head_dim // 2}, "
            "half the head dim."
        )
    return [axis for axis, count in enumerate(sections) for _ in range(count)]


def vision_rotary(rows_P: Tensor, columns_P: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """(cos_PF, sin_PF), float32, for patches at integer (row, column): half the frequencies turn with each.

    ``head_dim``: a multiple of 4. Base 10,000 as in the released models, whatever the text decoder's.
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, dtype=torch.float32, device=rows_P.device)
    frequencies = 1.0 / 10_000.0 ** (2 * steps / (2 * quarter))
    coordinates_P2 = torch.stack((rows_P, columns_P), dim=1).float()
    angles_PF = (coordinates_P2[:, :, None] * frequencies).flatten(1)
    return angles_PF.cos(), angles_PF.sin()
