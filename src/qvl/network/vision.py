"""The vision tower: patches of pictures and video frames in, one embedding per merged token out.

A ViT with window attention, full attention per frame in a few blocks, 2-D rotary embedding, RMSNorm and
SwiGLU (Qwen2.5-VL, arXiv 2502.13923). Knows no text and no files. Module names are those of the checkpoints.

Legend: P patches, C values in one patch, D width, H heads, E head dim, F = E / 2, N merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qvl.errors import InputError
from qvl.network.geometry import Layout, as_grids, layout
from qvl.network.layers import RMSNorm, SwiGLU, initialise, joined, run_block
from qvl.ops.attention import Attend, Backend, get_backend, packed_attend
from qvl.ops.linear import Linear, linear
from qvl.ops.rope import apply_rotary, vision_rotary
from qvl.types import Grid

if TYPE_CHECKING:
    from qvl.config import Qwen2_5_VLVisionConfig

EPS = 1e-6  # of every norm in the tower; the config has no say

# Windows go through a block in parts of about so many patches, on a CPU and where nothing is trained: what
# lies between the layers (three times as wide as a patch) is then small enough for memory to be used again.
# Fresh memory costs a page fault every 4 kB, and for a large picture it would be most of the memory needed.
PART_ROWS = 1024

Part = tuple[int, Attend]
"""Patches that lie side by side and do not attend to others: how many, and their attention."""


class VisionTower(nn.Module):
    """Encodes the patches of any number of pictures and videos at once.

    ``attention_backend``: a name that ``get_backend`` knows. ``gradient_checkpointing``: recompute the blocks
    in the backward pass (in training mode) instead of keeping their activations.
    """

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_merge_size = config.spatial_merge_size
        self.attention_backend = "sdpa"
        self.gradient_checkpointing = False
        self.head_dim = config.hidden_size // config.num_heads
        # In merged tokens: 4 for the released 112 px windows of 14 px patches merged 2 x 2.
        self.window = config.window_size // config.patch_size // config.spatial_merge_size
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config.hidden_size, config.spatial_merge_size, config.out_hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embed.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embed.proj.weight.device

    def init_weights(self) -> None:
        """Random weights for training from nothing, as the config's ``initializer_range`` says."""
        initialise(self, self.config.initializer_range)

    def forward(
        self, patches_PC: Tensor, grid_thw: Tensor | Iterable[Grid] | Iterable[Sequence[int]]
    ) -> Tensor:
        """Embeddings (N, out_hidden_size) of all media, in the order of the input.

        patches_PC: pixel values in merge order, each row (channel, time, height, width) flattened; cast to
        the tower's dtype. grid_thw: an integer (M, 3) tensor, or Grids. Raises InputError if they do not fit.
        """
        plan = layout(as_grids(grid_thw), self.spatial_merge_size, self.window)
        self._check(patches_PC, plan)
        device = patches_PC.device
        x_PD = self._regroup(self.patch_embed(patches_PC), plan.order_N.to(device))
        cos_PF, sin_PF = vision_rotary(plan.rows_P.to(device), plan.columns_P.to(device), self.head_dim)
        recompute = self.gradient_checkpointing and self.training
        for block, parts in zip(self.blocks, self._parts(plan, device), strict=True):
            x_PD = run_block(block, x_PD, cos_PF, sin_PF, parts, recompute=recompute)
        return self.merger(x_PD)[plan.inverse_N.to(device)]

    def _parts(self, plan: Layout, device: torch.device) -> list[list[Part]]:
        """Of each block: parts of windows, or everything at once where frames are attended to as a whole."""
        backend = get_backend(self.attention_backend)
        frames = [_part(backend, plan.frame_lengths)]
        groups = _grouped(plan.window_lengths, PART_ROWS) if _in_parts(device) else [plan.window_lengths]
        windows = [_part(backend, lengths) for lengths in groups]
        full = self.config.fullatt_block_indexes
        return [frames if i in full else windows for i in range(len(self.blocks))]

    def _regroup(self, x_PD: Tensor, order_N: Tensor) -> Tensor:
        """Patches in another order of their merged tokens."""
        return x_PD.unflatten(0, (len(order_N), -1))[order_N].flatten(0, 1)

    def _check(self, patches_PC: Tensor, plan: Layout) -> None:
        patches, values = sum(plan.frame_lengths), self.patch_embed.proj.weight[0].numel()
        if patches_PC.ndim != 2 or patches_PC.shape != (patches, values):
            raise InputError(
                f"The grids describe {patches} patches of {values} values, "
                f"but the pixel values have the shape {tuple(patches_PC.shape)}."
            )


class PatchEmbed(nn.Module):
    """A linear map of each patch: what the checkpoint's convolution is, its kernel being its stride."""

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, patches_PC: Tensor) -> Tensor:
        weight_DC = self.proj.weight.flatten(1)
        return linear(patches_PC.to(weight_DC.dtype), weight_DC)


class VisionBlock(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size, EPS)
        self.norm2 = RMSNorm(config.hidden_size, EPS)
        self.attn = VisionAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, config.hidden_act, bias=True)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, parts: Sequence[Part]) -> Tensor:
        """``parts``: cover the patches in order; each is taken through the whole block by itself."""
        if len(parts) == 1:
            return self._part(x_PD, cos_PF, sin_PF, parts[0][1])
        rows = [count for count, _ in parts]
        pieces = zip(x_PD.split(rows), cos_PF.split(rows), sin_PF.split(rows), parts, strict=True)
        return joined((self._part(x, cos, sin, attend) for x, cos, sin, (_, attend) in pieces), len(x_PD))

    def _part(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, attend: Attend) -> Tensor:
        x_PD = x_PD + self.attn(self.norm1(x_PD), cos_PF, sin_PF, attend)
        return x_PD + self.mlp(self.norm2(x_PD))


def _in_parts(device: torch.device) -> bool:
    return device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _part(backend: Backend, lengths: Sequence[int]) -> Part:
    return sum(lengths), packed_attend(backend, lengths, causal=False)


def _grouped(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Neighbours together until they are ``rows`` or more."""
    groups: list[list[int]] = [[]]
    total = 0
    for length in lengths:
        if total >= rows:
            groups.append([])
            total = 0
        groups[-1].append(length)
        total += length
    return groups


class VisionAttention(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, attend: Attend) -> Tensor:
        q_PHE, k_PHE, v_PHE = self._project(x_PD, cos_PF, sin_PF)
        return self.proj(attend(q_PHE, k_PHE, v_PHE).flatten(1))

    def _project(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values (P, H, E), the first two turned to their places.

        Of many patches piece by piece, into one tensor: what is there before the turn is not kept as well.
        """
        if len(x_PD) < 2 * PART_ROWS or not _in_parts(x_PD.device):
            turned_PHE, v_PHE = self._turned(x_PD, cos_PF, sin_PF)
            return (*turned_PHE.chunk(2, dim=1), v_PHE)
        for start in range(0, len(x_PD), PART_ROWS):
            rows = slice(start, start + PART_ROWS)
            turned_PHE, v_PHE = self._turned(x_PD[rows], cos_PF[rows], sin_PF[rows])
            heads = v_PHE.shape[1]
            if not start:
                qkv_PHE = v_PHE.new_empty(len(x_PD), 3 * heads, self.head_dim)
            qkv_PHE[rows, : 2 * heads], qkv_PHE[rows, 2 * heads :] = turned_PHE, v_PHE
        return qkv_PHE.chunk(3, dim=1)

    def _turned(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side, and values. Angles are float32: half precision widens to turn."""
        qkv_PHE = self.qkv(x_PD).unflatten(-1, (-1, self.head_dim))
        heads = qkv_PHE.shape[1] // 3
        return apply_rotary(qkv_PHE[:, : 2 * heads], cos_PF, sin_PF), qkv_PHE[:, 2 * heads :]


class PatchMerger(nn.Module):
    """Makes one token of merge_size x merge_size neighbouring patches, in the text decoder's width."""

    def __init__(self, width: int, merge_size: int, out_width: int) -> None:
        super().__init__()
        self.merged_width = width * merge_size**2
        self.ln_q = RMSNorm(width, EPS)
        self.mlp = nn.Sequential(
            Linear(self.merged_width, self.merged_width),
            nn.GELU(),
            Linear(self.merged_width, out_width),
        )

    def forward(self, x_PD: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x_PD).view(-1, self.merged_width))
