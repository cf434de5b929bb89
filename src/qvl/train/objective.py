"""What is minimised: how badly the network foretells the tokens of the answers.

Legend: T tokens, N tokens to be learned, D width, P patches, C values in one patch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qvl.network.vlm import CausalLM, VisionLanguageModel
from qvl.train.loss import chunked_cross_entropy
from qvl.train.packing import PackedBatch
from qvl.train.sample import IGNORED


@dataclass(frozen=True, eq=False)
class Loss:
    """``total``: the sum over the learned tokens, to be divided by their number in the whole step.

    ``right``: how many of them the network would have said itself. ``parts``: other figures worth a column
    in the metrics, already means.
    """

    total: Tensor
    right: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


Objective = Callable[[Any, PackedBatch], Loss]


def answer_loss(model: CausalLM, batch: PackedBatch) -> Loss:
    """The cross entropy of the answers' tokens, one pass over packed samples."""
    return hidden_loss(model, hidden_states(model, batch, encoded(model.model, batch)), batch)


def encoded(backbone: VisionLanguageModel, batch: PackedBatch) -> Tensor | None:
    """The media's embeddings (N, D); without a graph where nothing in the tower is trained."""
    if batch.patches_PC is None:
        return None
    trained = any(p.requires_grad for p in backbone.visual.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
        return backbone.encode(batch.patches_PC, batch.grids)


def hidden_states(
    model: CausalLM, batch: PackedBatch, vision_ND: Tensor | None, layers: list[Tensor] | None = None
) -> Tensor:
    """The decoder's last states (T, D) of every token. ``layers``: receives the input of each layer, too."""
    decoder = model.model.language_model
    return decoder.packed(
        model.model.embed(batch.ids_T, vision_ND, batch.vision_T),
        batch.positions_3T,
        decoder.packed_attends(batch.lengths),
        lengths=batch.lengths,
        hidden_states=layers,
    )


def hidden_loss(model: CausalLM, x_TD: Tensor, batch: PackedBatch) -> Loss:
    """The loss of the learned tokens; the head runs over their states alone."""
    learned_T = batch.targets_T != IGNORED
    total, right = chunked_cross_entropy(x_TD[learned_T], model.lm_head, batch.targets_T[learned_T])
    return Loss(total, right)
