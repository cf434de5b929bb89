"""The whole model as the documented class: logits and loss on top of the backbone, and generation.

Legend: B batch, L padded length, K kept columns, T packed tokens, N rows, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import InputError, InputTypeError
from qvl.generation import GenerationConfig, GenerationMixin
from qvl.modeling.backbone import Qwen2_5_VLModel
from qvl.modeling.base import PreTrainedModel
from qvl.modeling.cache import Cache, DynamicCache, StaticCache
from qvl.modeling.call import ForwardCall, wants_dict
from qvl.modeling.inputs import VisionArguments
from qvl.modeling.run import PackedRun
from qvl.modeling.text import Qwen2_5_VLTextModel
from qvl.network.finite import require_finite
from qvl.network.text import TextDecoder
from qvl.network.vision import VisionTower
from qvl.network.vlm import CausalLM
from qvl.outputs import Qwen2_5_VLCausalLMOutputWithPast

GENERATION_FILE = "generation_config.json"


class Qwen2_5_VLForConditionalGeneration(GenerationMixin, PreTrainedModel, CausalLM):
    """The whole model: reads texts with pictures and videos, gives logits, and generates."""

    config_class = Qwen2_5_VLConfig
    backbone_class = Qwen2_5_VLModel
    model: Qwen2_5_VLModel
    cache_class = DynamicCache
    static_cache_class = StaticCache

    def finish_loading(self, folder: Path) -> None:
        """Generation settings come with the checkpoint, where it has any."""
        if (folder / GENERATION_FILE).is_file():
            self.generation_config = GenerationConfig.from_pretrained(folder)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        cache_position: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Qwen2_5_VLCausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, K, V) and, with ``labels`` (B, L), the next-token loss.

        ``labels`` hold token ids, -100 where no loss is wanted; padded cells never count. The loss is the
        mean over labelled tokens, or their sum divided by ``num_items_in_batch``. ``logits_to_keep``: the
        last so many columns (0: all), or a 1-D tensor of columns. Everything else as in
        `Qwen2_5_VLModel.forward`.
        """
        asked = ForwardCall(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            cache_position,
            kwargs,
        )
        vision = VisionArguments(
            pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts
        )
        columns_K = _kept_columns(logits_to_keep, asked.columns)
        _check_labels(labels, asked, self.lm_head.out_features)
        run = self.model.run_packed(asked, vision, rope_deltas)
        all_TV = None
        if columns_K is None:
            all_TV = self.logits(run.hidden_TD)
            logits = run.packing.unpack(all_TV)
        else:
            logits = self._kept_logits(run, columns_K)
        require_finite(logits, self.lm_head, "head (lm_head, or embed_tokens where tied)")
        loss = None if labels is None else self._loss(run, all_TV, labels, num_items_in_batch)
        output = Qwen2_5_VLCausalLMOutputWithPast(
            loss,
            logits,
            run.cache,
            run.unpacked_hidden_states,
            run.unpacked_attentions,
            run.rope_deltas,
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def _kept_logits(self, run: PackedRun, columns_K: torch.Tensor) -> torch.Tensor:
        """Logits of the kept columns only: (B, K, V), zeros in padded cells."""
        packing = run.packing
        rows_N = packing.rows_at(columns_K).flatten()
        real_N = rows_N >= 0
        logits_NV = self.logits(run.hidden_TD[rows_N[real_N].to(run.hidden_TD.device)])
        out = logits_NV.new_zeros(rows_N.shape[0], logits_NV.shape[1])
        out = out.index_copy(0, real_N.nonzero().squeeze(1).to(out.device), logits_NV)
        return out.view(packing.batch, len(columns_K), -1)

    def _loss(
        self,
        run: PackedRun,
        all_TV: torch.Tensor | None,
        labels: torch.Tensor,
        num_items_in_batch: int | torch.Tensor | None,
    ) -> torch.Tensor:
        """Cross-entropy in float32 of every labelled cell's token, predicted by the cell to its left."""
        next_BL = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        targets_T = run.packing.pack(next_BL).to(run.hidden_TD.device)
        rows_N = (targets_T != -100).nonzero().squeeze(1)
        logits_NV = self.logits(run.hidden_TD[rows_N]) if all_TV is None else all_TV[rows_N]
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = nn.functional.cross_entropy(logits_NV.float(), targets_T[rows_N], reduction=reduction)
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    # The backbone's documented helpers, readable from the outer model as in transformers.

    @property
    def visual(self) -> VisionTower:
        return self.model.visual

    @property
    def language_model(self) -> TextDecoder:
        return self.model.language_model

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self.model.get_decoder()

    def get_rope_index(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Qwen2_5_VLModel.get_rope_index`."""
        return self.model.get_rope_index(*args, **kwargs)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """See `Qwen2_5_VLModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_grid_thw)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """See `Qwen2_5_VLModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw)


def _kept_columns(keep: int | torch.Tensor, columns: int) -> torch.Tensor | None:
    """Which columns get logits, (K,) on the CPU; None for all. InputError for a column that is not there."""
    if isinstance(keep, int):
        return None if keep == 0 else torch.arange(columns)[-keep:]
    if not isinstance(keep, torch.Tensor) or keep.is_floating_point():
        kind = getattr(keep, "dtype", type(keep).__name__)
        raise InputTypeError(f"logits_to_keep must be an integer or a tensor of columns, not {kind}")
    fits = keep.shape == (columns,) if keep.dtype == torch.bool else keep.ndim == 1
    if not fits or (keep.dtype != torch.bool and bool(((keep < -columns) | (keep >= columns)).any())):
        raise InputError(
            f"logits_to_keep must be a 1-D tensor of columns from 0 to {columns - 1}, got one of shape "
            f"{tuple(keep.shape)}" + (f" up to {int(keep.max())}" if keep.numel() else "")
        )
    return torch.arange(columns)[keep.cpu()]


def _check_labels(labels: torch.Tensor | None, asked: ForwardCall, vocab_size: int) -> None:
    if labels is not None and tuple(labels.shape) != (asked.batch, asked.columns):
        raise InputError(
            f"labels has shape {tuple(labels.shape)}; expected {(asked.batch, asked.columns)}, "
            "one label for every cell"
        )
    if labels is not None and labels.numel() and (worst := int(labels.max())) >= vocab_size:
        raise InputError(
            f"labels hold {worst}, but the vocabulary has {vocab_size} tokens; -100 means no label"
        )
