"""The network, arranged for training on very many very small pictures: the same numbers, sooner.

A still picture is two equal frames, so the two halves of the patch kernel are added and one frame is enough.
Windows and conversations of one length share one attention call wherever they lie.

Legend: T rows, H heads, G key/value heads, D head dim, P patches, N sequences of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from qvl.network.geometry import Layout
from qvl.network.vision import PatchEmbed, VisionTower
from qvl.network.vlm import CausalLM, VisionLanguageModel
from qvl.ops.attention import Attend


def attend_by_length(lengths: Sequence[int], *, causal: bool) -> Attend:
    """Attention inside each of the packed sequences, those of one length in one call."""
    starts, size = torch.tensor([0, *accumulate(lengths)][:-1]), torch.tensor(lengths)
    rows = [starts[size == n][:, None] + torch.arange(n) for n in dict.fromkeys(lengths)]
    back_T = torch.cat([each.flatten() for each in rows]).argsort()

    def attend(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor) -> Tensor:
        outputs = []
        for rows_NT in rows:
            shape = rows_NT.shape
            q, k, v = (
                x.index_select(0, rows_NT.flatten()).unflatten(0, shape).transpose(1, 2)
                for x in (q_THD, k_TGD, v_TGD)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
            outputs.append(mixed.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).index_select(0, back_T)

    return attend


class StillPatchEmbed(PatchEmbed):
    def forward(self, patches: Tensor) -> Tensor:
        """Embeds single frames: (P, 3, 14, 14)."""
        return F.linear(patches.flatten(1), self.proj.weight.sum(2).flatten(1))


class SmallPicturesTower(VisionTower):
    def __init__(self, config) -> None:
        super().__init__(config)
        self.patch_embed = StillPatchEmbed(config)

    def _check(self, patches: Tensor, plan: Layout) -> None:
        """Single frames are not what the tower takes otherwise."""

    def _attends(self, plan: Layout) -> list[Attend]:
        windows = attend_by_length(plan.window_lengths, causal=False)
        frames = attend_by_length(plan.frame_lengths, causal=False)
        full = self.config.fullatt_block_indexes
        return [frames if i in full else windows for i in range(len(self.blocks))]


class SmallPicturesBackbone(VisionLanguageModel):
    tower_class = SmallPicturesTower


class SmallPicturesLM(CausalLM):
    backbone_class = SmallPicturesBackbone
