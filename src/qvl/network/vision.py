"""The vision tower: patches of pictures and video frames in, one embedding per merged token out.

A ViT with window attention, full attention per frame in a few blocks, 2-D rotary embedding, RMSNorm and
SwiGLU (Qwen2.5-VL, arXiv 2502.13923). Knows no text and no files. Module names are those of the checkpoints.

Legend: P patches, C values in one patch, D width, H heads, E head dim, F = E / 2, N merged tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qvl.errors import InputError
from qvl.network.geometry import Layout, as_grids, layout
from qvl.network.layers import RMSNorm, SwiGLU, initialise, run_block
from qvl.network.stages import Encoding, Part, Stage, grouped, in_parts, sliced
from qvl.ops.attention import Attend, get_backend
from qvl.ops.linear import Linear, linear
from qvl.ops.rope import apply_rotary, vision_rotary
from qvl.types import Grid

if TYPE_CHECKING:
    from qvl.config import Qwen2_5_VLVisionConfig

EPS = 1e-6  # of every norm in the tower; the config has no say


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
        if in_parts(patches_PC.device):
            return Encoding(self, patches_PC, grid_thw).run()
        plan, angles, parts = self.plan(patches_PC, grid_thw)
        x_PD = self.regroup(self.patch_embed(patches_PC), plan.order_N.to(patches_PC.device))
        recompute = self.gradient_checkpointing and self.training
        for block, own in zip(self.blocks, parts, strict=True):
            x_PD = run_block(block, x_PD, *angles, own, recompute=recompute)
        return self.merger(x_PD)[plan.inverse_N.to(patches_PC.device)]

    def plan(
        self, patches_PC: Tensor, grid_thw: Tensor | Iterable[Grid] | Iterable[Sequence[int]]
    ) -> tuple[Layout, tuple[Tensor, Tensor], list[list[Part]]]:
        """What the blocks need beside the patches: their order, angles (cos_PF, sin_PF), and parts of each
        block. Raises InputError if patches and grids do not fit.
        """
        plan = layout(as_grids(grid_thw), self.spatial_merge_size, self.window)
        self._check(patches_PC, plan)
        device = patches_PC.device
        angles = vision_rotary(plan.rows_P.to(device), plan.columns_P.to(device), self.head_dim)
        return plan, angles, self._parts(plan, device)

    def _parts(self, plan: Layout, device: torch.device) -> list[list[Part]]:
        """Of each block: windows or frames, a few together, or all where blocks are not taken apart."""
        backend = get_backend(self.attention_backend)
        apart = in_parts(device)
        windows, frames = (
            [Part(tuple(part), backend) for part in (grouped(lengths) if apart else [lengths])]
            for lengths in (plan.window_lengths, plan.frame_lengths)
        )
        full = self.config.fullatt_block_indexes
        return [frames if i in full else windows for i in range(len(self.blocks))]

    def regroup(self, x_PD: Tensor, order_N: Tensor) -> Tensor:
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
        """``parts``: cover the patches in order; there is one where blocks are not taken apart."""
        if in_parts(x_PD.device):
            out_PD, stages = self.stages(x_PD, cos_PF, sin_PF, parts)
            for stage in stages:
                stage()
            return out_PD
        x_PD = x_PD + self.attn(self.norm1(x_PD), cos_PF, sin_PF, parts[0].attend)
        return x_PD + self.mlp(self.norm2(x_PD))

    def stages(
        self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, parts: Sequence[Part]
    ) -> tuple[Tensor, list[Stage]]:
        """What the stages will fill, and the stages, to be run in order."""
        out_PD = torch.empty_like(x_PD)
        stages: list[Stage] = []
        start = 0
        for part in parts:
            rows = slice(start, start + part.rows)
            own = (x_PD[rows], cos_PF[rows], sin_PF[rows], part, out_PD[rows])
            stages += self._long(*own) if part.long else self._short(*own)
            start = rows.stop
        return out_PD, stages

    def _short(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, part: Part, out_PD: Tensor) -> list[Stage]:
        """Attention, then the rest."""

        def attend() -> None:
            torch.add(x_PD, self.attn(self.norm1(x_PD), cos_PF, sin_PF, part.attend), out=out_PD)

        return [attend, partial(self._feed_forward, out_PD)]

    def _long(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, part: Part, out_PD: Tensor) -> list[Stage]:
        """A large frame: queries, keys and values in pieces of patches, attention in pieces of queries."""
        qkv_PHE = x_PD.new_empty(0)

        def project(rows: slice) -> None:
            nonlocal qkv_PHE
            turned_PHE, v_PHE = self.attn.turned(self.norm1(x_PD[rows]), cos_PF[rows], sin_PF[rows])
            heads = v_PHE.shape[1]
            if not rows.start:
                qkv_PHE = v_PHE.new_empty(len(x_PD), 3 * heads, v_PHE.shape[2])
            qkv_PHE[rows, : 2 * heads], qkv_PHE[rows, 2 * heads :] = turned_PHE, v_PHE

        def attend(queries: slice, keys: slice) -> None:
            q_PHE, k_PHE, v_PHE = qkv_PHE.chunk(3, dim=1)
            lengths = ((queries.stop - queries.start,), (keys.stop - keys.start,))
            # Nobody needs these queries again.
            q_PHE[queries] = part.backend(q_PHE[queries], k_PHE[keys], v_PHE[keys], *lengths)

        def finish(rows: slice) -> None:
            o_PD = qkv_PHE[rows].chunk(3, dim=1)[0].flatten(1)
            torch.add(x_PD[rows], self.attn.proj(o_PD), out=out_PD[rows])
            self._feed_forward(out_PD[rows])

        rows = sliced(len(x_PD))
        projections, ends = ([partial(stage, r) for r in rows] for stage in (project, finish))
        return [*projections, *(partial(attend, *piece) for piece in part.pieces()), *ends]

    def _feed_forward(self, x_PD: Tensor) -> None:
        """In place."""
        x_PD += self.mlp(self.norm2(x_PD))


class VisionAttention(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, attend: Attend) -> Tensor:
        turned_PHE, v_PHE = self.turned(x_PD, cos_PF, sin_PF)
        q_PHE, k_PHE = turned_PHE.chunk(2, dim=1)
        return self.proj(attend(q_PHE, k_PHE, v_PHE).flatten(1))

    def turned(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys side by side, turned to their places, and values, (P, 2 * H, E) and (P, H, E).

        Angles are float32: half precision widens to turn.
        """
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
