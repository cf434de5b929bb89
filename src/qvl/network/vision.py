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
from qvl.network.layers import RMSNorm, SwiGLU, initialise, run_block
from qvl.ops.attention import Attend, get_backend, packed_attend
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
        plan = layout(as_grids(grid_thw), self.spatial_merge_size, self.window)
        self._check(patches_PC, plan)
        device = patches_PC.device
        x_PD = self._regroup(self.patch_embed(patches_PC), plan.order_N.to(device))
        cos_PF, sin_PF = vision_rotary(plan.rows_P.to(device), plan.columns_P.to(device), self.head_dim)
        attends = self._attends(plan)
        recompute = self.gradient_checkpointing and self.training
        for block, attend in zip(self.blocks, attends, strict=True):
            x_PD = run_block(block, x_PD, cos_PF, sin_PF, attend, recompute=recompute)
        return self.merger(x_PD)[plan.inverse_N.to(device)]

    def _attends(self, plan: Layout) -> list[Attend]:
        """One per block: inside windows, or inside whole frames where the config says so."""
        backend = get_backend(self.attention_backend)
        windows = packed_attend(backend, plan.window_lengths, causal=False)
        frames = packed_attend(backend, plan.frame_lengths, causal=False)
        return [
            frames if i in self.config.fullatt_block_indexes else windows for i in range(len(self.blocks))
        ]

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

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, attend: Attend) -> Tensor:
        x_PD = x_PD + self.attn(self.norm1(x_PD), cos_PF, sin_PF, attend)
        return x_PD + self.mlp(self.norm2(x_PD))


class VisionAttention(nn.Module):
    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_PD: Tensor, cos_PF: Tensor, sin_PF: Tensor, attend: Attend) -> Tensor:
        q_PHE, k_PHE, v_PHE = self.qkv(x_PD).unflatten(-1, (3, -1, self.head_dim)).unbind(1)
        # cos and sin are float32, so half precision is widened for the turn and narrowed after it.
        q_PHE, k_PHE = (apply_rotary(x.float(), cos_PF, sin_PF).to(x.dtype) for x in (q_PHE, k_PHE))
        return self.proj(attend(q_PHE, k_PHE, v_PHE).flatten(1))


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
