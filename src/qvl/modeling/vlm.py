"""The documented model classes: padded calls in, documented outputs out, the packed network inside.

What is computed stands in `qvl.network`; this file reads the documented arguments, packs, calls and unpacks.

Legend: B batch, L padded length, K kept columns, T packed tokens, N rows or vision tokens, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qvl.errors import InputError, PlaceholderMismatchError
from qvl.generation import GenerationConfig, GenerationMixin
from qvl.modeling.base import PreTrainedModel
from qvl.modeling.cache import Cache, DynamicCache, StaticCache
from qvl.modeling.inputs import RowPositions, VisionArguments, given_positions, packed_positions
from qvl.modeling.packing import Packing, read_mask
from qvl.modeling.run import PackedRun, open_cache, run_decoder
from qvl.network.text import TextDecoder
from qvl.network.vision import VisionTower
from qvl.network.vlm import CausalLM, VisionLanguageModel
from qvl.outputs import (
    BaseModelOutputWithPast,
    Qwen2_5_VLCausalLMOutputWithPast,
    Qwen2_5_VLModelOutputWithPast,
)

GENERATION_FILE = "generation_config.json"


class Qwen2_5_VisionTransformerPretrainedModel(PreTrainedModel, VisionTower):
    """The vision tower: ``forward(hidden_states, grid_thw)`` turns patches (P, C) into tokens (N, D)."""

    config_class = Qwen2_5_VLVisionConfig
    checkpoint_prefix = "model.visual."


class Qwen2_5_VLTextModel(PreTrainedModel, TextDecoder):
    """The text decoder alone, without a head."""

    config_class = Qwen2_5_VLTextConfig
    checkpoint_prefix = "model.language_model."

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (B, L, D) of exactly one of ``input_ids`` (B, L) and ``inputs_embeds`` (B, L, D).

        ``attention_mask`` (B, L), or over the cached cells too, is 1 at real tokens; padded cells come back
        as zeros. ``position_ids`` (B, L) or (3, B, L); by default tokens are numbered within their row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        cells_BL = input_ids if input_ids is not None else inputs_embeds
        assert cells_BL is not None
        cache, mask, packing = open_call(
            self, cells_BL, attention_mask, past_key_values, use_cache, cache_position
        )
        packed = packing.pack(cells_BL)
        x_TD = self.embed_tokens(packed) if input_ids is not None else packed
        if position_ids is not None:
            rows = RowPositions(given_positions(position_ids, packing), [0] * packing.batch)
        else:
            rows = _text_positions(packing, cache)
        run = run_decoder(
            self,
            x_TD,
            rows,
            packing,
            cache,
            mask,
            *_flags(self.config, output_attentions, output_hidden_states),
        )
        output = BaseModelOutputWithPast(
            run.last_hidden_state, run.cache, run.unpacked_hidden_states, run.unpacked_attentions
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


class Qwen2_5_VLModel(PreTrainedModel, VisionLanguageModel):
    """Vision tower and text decoder, without a head."""

    config_class = Qwen2_5_VLConfig
    checkpoint_prefix = "model."
    tower_class = Qwen2_5_VisionTransformerPretrainedModel
    decoder_class = Qwen2_5_VLTextModel
    visual: Qwen2_5_VisionTransformerPretrainedModel
    language_model: Qwen2_5_VLTextModel

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        cache_position: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
    ) -> Qwen2_5_VLModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (B, L, D) of a batch of texts with pictures and videos.

        ``pixel_values`` (P, C) with ``image_grid_thw`` (M, 3), and the same for videos, as the processor made
        them. ``second_per_grid_ts`` (videos,): seconds per temporal step (1.0 by default).
        ``rope_deltas`` (B, 1) replaces the offsets that the cache carries. ``cache_position`` (L,): the cells
        that this call fills; a cache that is longer is cut back to its first entry.
        """
        run = self.run_packed(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            *_flags(self.config, output_attentions, output_hidden_states),
            VisionArguments(
                pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts
            ),
            rope_deltas,
            cache_position,
        )
        output = Qwen2_5_VLModelOutputWithPast(
            run.last_hidden_state,
            run.cache,
            run.unpacked_hidden_states,
            run.unpacked_attentions,
            run.rope_deltas,
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def run_packed(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,
        use_cache: bool | None,
        output_attentions: bool,
        output_hidden_states: bool,
        vision: VisionArguments,
        rope_deltas: torch.Tensor | None,
        cache_position: torch.Tensor | None,
    ) -> PackedRun:
        """The forward pass up to the last norm, still packed: a head then computes only the rows it needs."""
        cells_BL = input_ids if input_ids is not None else inputs_embeds
        if cells_BL is None:
            raise InputError("give input_ids, inputs_embeds, or both")
        decoder = self.language_model
        cache, mask, packing = open_call(
            decoder, cells_BL, attention_mask, past_key_values, use_cache, cache_position
        )
        if cache is not None and rope_deltas is not None:
            cache.rope_deltas = _read_deltas(rope_deltas, packing.batch)
        ids_T, x_TD = self._packed_embeddings(input_ids, inputs_embeds, packing)
        x_TD = self._place_features(ids_T, x_TD, vision)
        if position_ids is not None:
            rows = RowPositions(given_positions(position_ids, packing), [0] * packing.batch)
        else:
            starts = _starts(packing, cache, rope_deltas, cache_position)
            rows = packed_positions(packing.split(ids_T.cpu()), vision, self.config, starts)
        return run_decoder(decoder, x_TD, rows, packing, cache, mask, output_attentions, output_hidden_states)

    def _packed_embeddings(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, packing: Packing
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (T,) and embeddings (T, D). Without ids, a placeholder is known by its embedding."""
        if inputs_embeds is None:
            assert input_ids is not None
            ids_T = packing.pack(input_ids)
            return ids_T, self.embed(ids_T)
        x_TD = packing.pack(inputs_embeds)
        if input_ids is not None:
            return packing.pack(input_ids), x_TD
        ids_T = torch.full(x_TD.shape[:1], -1, device=x_TD.device)
        for token in (self.config.image_token_id, self.config.video_token_id):
            row_D = self.get_input_embeddings().weight[token].to(x_TD.dtype)
            ids_T[(x_TD == row_D).all(-1)] = token
        return ids_T, x_TD

    def _place_features(
        self, ids_T: torch.Tensor, x_TD: torch.Tensor, vision: VisionArguments
    ) -> torch.Tensor:
        """Puts the features of pictures and videos where their placeholders stand."""
        for pixels, grids, token, kind in (
            (vision.pixel_values, vision.image_grids, self.config.image_token_id, "image"),
            (vision.pixel_values_videos, vision.video_grids, self.config.video_token_id, "video"),
        ):
            if pixels is None:
                continue
            features_ND = self.encode(pixels.to(self.visual.device, self.visual.dtype), grids)
            mask_T = ids_T == token
            count = int(mask_T.sum())
            if count != features_ND.shape[0]:
                raise PlaceholderMismatchError(
                    f"the prompt has {count} {kind} placeholder tokens but the {kind}s make "
                    f"{features_ND.shape[0]} features; use the ids and pixels that one processor call made"
                )
            x_TD = x_TD.masked_scatter(mask_T[:, None], features_ND.to(x_TD.device, x_TD.dtype))
        return x_TD

    def get_rope_index(
        self,
        input_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary positions (3, B, L), 1 at padded cells, and rope deltas (B, 1) of a batch.

        A delta is 1 + the row's largest position - its number of *real* tokens (transformers subtracts the
        padded length; the two agree without padding).
        """
        packing = Packing.of(attention_mask, *input_ids.shape)
        vision = VisionArguments(None, None, image_grid_thw, video_grid_thw, second_per_grid_ts)
        ids_by_row = packing.split(packing.pack(input_ids).cpu())
        rows = packed_positions(ids_by_row, vision, self.config, [0] * packing.batch)
        positions_BL3 = packing.unpack(rows.positions_3T.T.contiguous().to(input_ids.device), fill=1)
        deltas = torch.tensor(rows.deltas, device=input_ids.device).unsqueeze(1)
        return positions_BL3.permute(2, 0, 1), deltas

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """One (N, D) tensor of features for each picture."""
        vision = VisionArguments(pixel_values=pixel_values, image_grid_thw=image_grid_thw)
        features_ND = self.encode(pixel_values.to(self.visual.device, self.visual.dtype), vision.image_grids)
        merge = self.config.vision_config.spatial_merge_size
        return features_ND.split([grid.tokens(merge) for grid in vision.image_grids])

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """One (N, D) tensor of features for each video."""
        return self.get_image_features(pixel_values_videos, video_grid_thw)

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self.language_model


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
    ) -> Qwen2_5_VLCausalLMOutputWithPast | tuple[Any, ...]:
        """Logits (B, K, V) and, with ``labels`` (B, L), the next-token loss.

        ``labels`` hold token ids, -100 where no loss is wanted; padded cells never count. The loss is the
        mean over labelled tokens, or their sum divided by ``num_items_in_batch``. ``logits_to_keep``: the
        last so many columns (0: all), or a 1-D tensor of columns. Everything else as in
        `Qwen2_5_VLModel.forward`.
        """
        run = self.model.run_packed(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            *_flags(self.config, output_attentions, output_hidden_states),
            VisionArguments(
                pixel_values, pixel_values_videos, image_grid_thw, video_grid_thw, second_per_grid_ts
            ),
            rope_deltas,
            cache_position,
        )
        all_TV = self.logits(run.hidden_TD) if _keeps_all(logits_to_keep) else None
        logits = self._kept_logits(run, logits_to_keep) if all_TV is None else run.packing.unpack(all_TV)
        loss = None if labels is None else self._loss(run, all_TV, labels, num_items_in_batch)
        output = Qwen2_5_VLCausalLMOutputWithPast(
            loss,
            logits,
            run.cache,
            run.unpacked_hidden_states,
            run.unpacked_attentions,
            run.rope_deltas,
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def _kept_logits(self, run: PackedRun, keep: int | torch.Tensor) -> torch.Tensor:
        """Logits of the kept columns only: (B, K, V), zeros in padded cells."""
        packing = run.packing
        columns = torch.arange(packing.columns)
        columns_K = columns[-keep:] if isinstance(keep, int) else columns[keep.cpu()]
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


def open_call(
    decoder: TextDecoder,
    cells_BL: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    use_cache: bool | None,
    cache_position: torch.Tensor | None,
) -> tuple[Cache | None, torch.Tensor | None, Packing]:
    """The cache of the call (or None), the mask of its new cells (or None) and how they are packed."""
    batch, columns = cells_BL.shape[:2]
    cache = open_cache(decoder, past_key_values, use_cache, batch, cache_position)
    past = 0 if cache is None else cache.get_seq_length()
    mask = read_mask(attention_mask, batch, past, columns)
    return cache, mask, Packing.of(mask, batch, columns)


def _starts(
    packing: Packing,
    cache: Cache | None,
    rope_deltas: torch.Tensor | None,
    cache_position: torch.Tensor | None,
) -> Sequence[int]:
    """The rotary position at which every row's new tokens begin."""
    if cache is not None:
        return cache.next_positions()
    before = 0 if cache_position is None else int(cache_position[0])
    if rope_deltas is None or before == 0:
        return [before] * packing.batch
    return [before + int(delta) for delta in _read_deltas(rope_deltas, packing.batch).flatten()]


def _read_deltas(rope_deltas: torch.Tensor, batch: int) -> torch.Tensor:
    if rope_deltas.numel() != batch:
        raise InputError(f"rope_deltas has {rope_deltas.numel()} values for {batch} rows; give one for each")
    return rope_deltas.reshape(batch, 1).cpu()


def _text_positions(packing: Packing, cache: Cache | None) -> RowPositions:
    starts = [0] * packing.batch if cache is None else cache.next_positions()
    parts = [torch.arange(start, start + n) for start, n in zip(starts, packing.lengths, strict=True)]
    return RowPositions(torch.cat(parts).expand(3, -1), [0] * packing.batch)


def _keeps_all(logits_to_keep: int | torch.Tensor) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep == 0


def _flags(config: Any, attentions: bool | None, hidden_states: bool | None) -> tuple[bool, bool]:
    return (
        config.output_attentions if attentions is None else attentions,
        config.output_hidden_states if hidden_states is None else hidden_states,
    )


def _wants_dict(config: Any, return_dict: bool | None) -> bool:
    return config.use_return_dict if return_dict is None else return_dict
