"""The model's side of a ``generate()`` call: which tensors may be handed over, and what must hold of them.

Everything is checked here, before a token is computed, so that a wrong call fails with a sentence and not
inside the network.

Legend: B batch, L padded length, P patches, C patch values, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from qvl.errors import (
    GenerationError,
    InputError,
    InputTypeError,
    NonFiniteError,
    PlaceholderMismatchError,
    PromptError,
)
from qvl.processing.positions import read_grids


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What a caller may hand to ``generate()`` for the model, as the processor makes it.

    ``input_ids`` and ``attention_mask`` (B, L); ``inputs_embeds`` (B, L, D); ``position_ids`` (B, L), (3,
    B, L) or (4, B, L); ``pixel_values`` (P, C) of all pictures of the batch with ``image_grid_thw``
    (pictures, 3), the same for videos; ``second_per_grid_ts`` (videos,); ``rope_deltas`` (B,) or (B, 1).
    """

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    inputs_embeds: Tensor | None = None
    position_ids: Tensor | None = None
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | Sequence[float] | None = None
    rope_deltas: Tensor | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))

    @property
    def batch(self) -> int:
        return int(self._cells.shape[0])

    @property
    def columns(self) -> int:
        return int(self._cells.shape[1])

    @property
    def _cells(self) -> Tensor:
        cells = self.input_ids if self.input_ids is not None else self.inputs_embeds
        if cells is None:
            raise GenerationError("generate() needs input_ids or inputs_embeds.")
        return cells

    @property
    def handed_ids(self) -> Tensor:
        """(B, L) int64, what the answer's ids are put behind; (B, 0) when only embeddings were given."""
        if self.input_ids is not None:
            return self.input_ids.to(torch.int64)
        return torch.empty(self.batch, 0, dtype=torch.int64, device=self._cells.device)


def check_inputs(inputs: ModelInputs) -> None:
    """Raises for tensors of a wrong type or shape, before anything is computed. The engine checks the ids."""
    ids, embeds, mask = inputs.input_ids, inputs.inputs_embeds, inputs.attention_mask
    for name in ("input_ids", "attention_mask", "inputs_embeds", "pixel_values", "pixel_values_videos"):
        value = getattr(inputs, name)
        if value is not None and not isinstance(value, Tensor):
            raise InputTypeError(f"{name} must be a tensor, not {type(value).__name__}.")
    if ids is not None:
        _check_ids(ids)
    if embeds is not None and (embeds.ndim != 3 or (ids is not None and ids.shape != embeds.shape[:2])):
        raise InputError(
            f"inputs_embeds has shape {tuple(embeds.shape)}; expected (batch, length, width)"
            + (f" with the batch and length of input_ids, {tuple(ids.shape)}." if ids is not None else ".")
        )
    if mask is not None and tuple(mask.shape) != (inputs.batch, inputs.columns):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; generate() needs one value for every cell of the "
            f"prompt, {(inputs.batch, inputs.columns)}."
        )
    if inputs.rope_deltas is not None and inputs.rope_deltas.numel() != inputs.batch:
        raise InputError(
            f"rope_deltas has {inputs.rope_deltas.numel()} values for {inputs.batch} rows; give one for each."
        )
    if ids is None and (inputs.pixel_values is not None or inputs.pixel_values_videos is not None):
        raise InputError(
            "Pictures and videos beside inputs_embeds need input_ids too, which say where they stand."
        )
    _check_pixels("pixel_values", inputs.pixel_values, "image_grid_thw", inputs.image_grid_thw)
    _check_pixels("pixel_values_videos", inputs.pixel_values_videos, "video_grid_thw", inputs.video_grid_thw)
    widths = {p.shape[1] for p in (inputs.pixel_values, inputs.pixel_values_videos) if p is not None}
    if len(widths) > 1:
        raise InputError(f"Patches of pictures and videos have one number of values, got {sorted(widths)}.")


def _check_ids(ids: Tensor) -> None:
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise InputTypeError(f"input_ids must hold integers, not {ids.dtype}.")
    if ids.ndim != 2 or 0 in ids.shape:
        raise InputError(
            f"input_ids has shape {tuple(ids.shape)}; expected (batch, length), neither of them 0."
        )


def _check_pixels(name: str, pixels: Tensor | None, grid_name: str, grids: Tensor | None) -> None:
    if pixels is None:
        return
    if grids is None:
        raise InputError(f"{name} was given without {grid_name}; pass both as the processor made them.")
    expected = sum(grid.patches for grid in read_grids(grids))
    if pixels.ndim != 2 or pixels.shape[0] != expected:
        raise PlaceholderMismatchError(
            f"{name} has shape {tuple(pixels.shape)}, but {grid_name} describes {expected} patches; "
            "pass both as the processor made them."
        )
    # Said here, because the same numbers after the tower would look like broken weights.
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; look at the picture's preprocessing.")


def real_cells(inputs: ModelInputs, pad_id: int | None, eos_ids: Sequence[int]) -> Tensor:
    """(B, L) bool: which cells hold real tokens.

    Without an ``attention_mask`` all do, unless there are pad ids that are not end-of-sequence ids too.
    """
    shape = (inputs.batch, inputs.columns)
    if inputs.attention_mask is not None:
        real_BL = inputs.attention_mask != 0
    elif inputs.input_ids is None or pad_id is None or pad_id in eos_ids:
        real_BL = torch.ones(shape, dtype=torch.bool)
    else:
        real_BL = inputs.input_ids != pad_id
    real_BL = real_BL.cpu()
    for row in (~real_BL.any(1)).nonzero().flatten().tolist():
        raise PromptError(f"Row {row} of the batch has no real token: its attention mask is 0 everywhere.")
    return real_BL
