"""The vision tower, and tower and decoder together, as documented classes.

What is computed stands in `qvl.network`; this file reads the documented arguments, packs, calls and unpacks.

Legend: B batch, L padded length, T packed tokens, P patches, C values in one patch, N vision tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from qvl.config import Qwen2_5_VLConfig, Qwen2_5_VLVisionConfig
from qvl.errors import InputError, PlaceholderMismatchError
from qvl.modeling.base import PreTrainedModel
from qvl.modeling.cache import Cache
from qvl.modeling.call import ForwardCall, embedded, wants_dict
from qvl.modeling.inputs import VisionArguments, caller_positions, packed_positions, text_positions
from qvl.modeling.packing import Packing, read_mask
from qvl.modeling.run import PackedRun, run_decoder
from qvl.modeling.text import Qwen2_5_VLTextModel
from qvl.network.vision import VisionTower
from qvl.network.vlm import VisionLanguageModel
from qvl.outputs import Qwen2_5_VLModelOutputWithPast
from qvl.types import Grid


class Qwen2_5_VisionTransformerPretrainedModel(PreTrainedModel, VisionTower):
    """The vision tower."""

    config_class = Qwen2_5_VLVisionConfig
    checkpoint_prefix = "model.visual."

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor | Iterable[Grid] | Iterable[Sequence[int]]
    ) -> torch.Tensor:
        """Tokens (N, D) of patches (P, C), which transformers calls hidden states; see `VisionTower`."""
        return super().forward(hidden_states, grid_thw)


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
        **kwargs: Any,
    ) -> Qwen2_5_VLModelOutputWithPast | tuple[Any, ...]:
        """Hidden states (B, L, D) of a batch of texts with pictures and videos.

        ``pixel_values`` (P, C) with ``image_grid_thw`` (M, 3), and the same for videos, as the processor made
        them. ``second_per_grid_ts`` (videos,): seconds per temporal step (1.0 by default).
        ``rope_deltas`` (B,) or (B, 1): of the tokens before this call, in place of those that the cache
        carries. ``cache_position`` (L,): the cells that this call fills; a longer cache is cut back to its
        first entry. All else, and the errors, as in `Qwen2_5_VLTextModel.forward`; moreover
        PlaceholderMismatchError where placeholders and media differ in number.
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
        run = self.run_packed(asked, vision, rope_deltas)
        output = Qwen2_5_VLModelOutputWithPast(
            run.last_hidden_state,
            run.cache,
            run.unpacked_hidden_states,
            run.unpacked_attentions,
            run.rope_deltas,
        )
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def run_packed(
        self, asked: ForwardCall, vision: VisionArguments, rope_deltas: torch.Tensor | None
    ) -> PackedRun:
        """The forward pass up to the last norm, still packed: a head then computes only the rows it needs."""
        decoder = self.language_model
        call = asked.open(decoder)
        packing, position_ids = call.packing, asked.position_ids
        starts = call.starts(rope_deltas)
        ids_T, x_TD = self._packed_embeddings(asked, packing)
        if position_ids is not None:
            positions_3T = caller_positions(position_ids, packing)
        else:
            positions_3T = packed_positions(packing.split(ids_T.cpu()), vision, self.config, starts)
        x_TD = self._place_features(ids_T, x_TD, vision)
        attentions, states = asked.wants(self.config)
        return run_decoder(
            decoder, x_TD, positions_3T, call, output_attentions=attentions, output_hidden_states=states
        )

    def _packed_embeddings(self, asked: ForwardCall, packing: Packing) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (T,) and embeddings (T, D). Without ids, a placeholder is known by its embedding."""
        ids_T = None if asked.input_ids is None else packing.pack(asked.input_ids)
        if asked.inputs_embeds is None:
            assert ids_T is not None
            return ids_T, embedded(self.language_model, ids_T)
        x_TD = packing.pack(asked.inputs_embeds)
        if ids_T is not None:
            return ids_T, x_TD
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
        input_ids: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary positions (3, B, L), 1 at padded cells, and rope deltas (B, 1) of a batch.

        Without ``input_ids`` the rows are text, as long as ``attention_mask`` says. A delta is 1 + the row's
        largest position - its number of *real* tokens (transformers subtracts the padded length; the two
        agree without padding).
        """
        cells_BL = attention_mask if input_ids is None else input_ids
        if cells_BL is None:
            raise InputError("give input_ids or, for text, an attention_mask")
        packing = Packing.of(read_mask(attention_mask, len(cells_BL), 0, cells_BL.shape[1]), *cells_BL.shape)
        starts = [0] * packing.batch
        if input_ids is None:
            positions_3T = text_positions(packing.lengths, starts)
        else:
            vision = VisionArguments(None, None, image_grid_thw, video_grid_thw, second_per_grid_ts)
            ids_by_row = packing.split(packing.pack(input_ids).cpu())
            positions_3T = packed_positions(ids_by_row, vision, self.config, starts)
        positions_BL3 = packing.unpack(positions_3T.T.contiguous().to(cells_BL.device), fill=1)
        ends = [int(row.max()) + 1 if row.numel() else 0 for row in packing.split(positions_3T.T)]
        deltas = torch.tensor(ends) - torch.tensor(packing.lengths)
        return positions_BL3.permute(2, 0, 1), deltas.unsqueeze(1).to(cells_BL.device)

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """One (N, D) tensor of features for each picture."""
        vision = VisionArguments(pixel_values=pixel_values, image_grid_thw=image_grid_thw)
        return self._features(pixel_values, vision.image_grids)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """One (N, D) tensor of features for each video."""
        vision = VisionArguments(pixel_values_videos=pixel_values_videos, video_grid_thw=video_grid_thw)
        return self._features(pixel_values_videos, vision.video_grids)

    def _features(self, pixels_PC: torch.Tensor, grids: list[Grid]) -> tuple[torch.Tensor, ...]:
        features_ND = self.encode(pixels_PC.to(self.visual.device, self.visual.dtype), grids)
        merge = self.config.vision_config.spatial_merge_size
        return features_ND.split([grid.tokens(merge) for grid in grids])

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self.language_model
