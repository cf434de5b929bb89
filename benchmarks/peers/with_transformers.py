"""transformers at its best on a processor: sdpa, inference mode, its own forward with a cache, no padding."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from benchmarks.checkpoints import Shape, checkpoint
from benchmarks.peers import PeerUnavailable, folder_bytes, stored_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TransformersPeer:
    def __init__(self, shape: Shape, weights: str, parts: tuple[str, ...]) -> None:
        try:
            from transformers import Qwen2_5_VLForConditionalGeneration
        except ImportError:
            raise PeerUnavailable("transformers is not installed: pip install 'qvl[test]'") from None
        if weights not in DTYPES:
            raise PeerUnavailable(f"transformers has no path for {weights} on a processor")
        self.folder = checkpoint(shape, weights)
        self.model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            self.folder, dtype=DTYPES[weights], attn_implementation="sdpa"
        ).eval()

    def prefill(self, ids: list[int]) -> None:
        self.begin_streams([ids], 1)

    @torch.inference_mode()
    def begin_streams(self, prompts: list[list[int]], room: int) -> None:
        from transformers import DynamicCache

        self.cache: Any = DynamicCache()
        self.tokens: list[torch.Tensor] = []
        self.length = 0
        self._forward(torch.tensor(prompts))

    @torch.inference_mode()
    def step(self) -> None:
        self._forward(self.tokens[-1])

    def _forward(self, ids_BL: torch.Tensor) -> None:
        """Positions are given, so that the model does not search the prompt for pictures."""
        rows, count = ids_BL.shape
        here = torch.arange(self.length, self.length + count)
        output = self.model(
            input_ids=ids_BL,
            position_ids=here.expand(3, rows, count),
            cache_position=here,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.length += count
        self.tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))

    def streamed(self) -> list[list[int]]:
        return torch.cat(self.tokens, dim=1).tolist()

    def begin_picture(self, path: str) -> None:
        from transformers import Qwen2VLImageProcessor

        processor = Qwen2VLImageProcessor.from_pretrained(self.folder)
        self.picture = processor(Image.open(path), return_tensors="pt")

    @torch.inference_mode()
    def encode(self) -> None:
        pixels, grid = self.picture["pixel_values"], self.picture["image_grid_thw"]
        visual = self.model.model.visual
        self.encoded = visual(pixels.to(visual.dtype), grid_thw=grid)

    def embeddings(self) -> torch.Tensor:
        return self.encoded.float()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float()

    def decoder_bytes(self) -> int:
        decoder = self.model.model.language_model
        return stored_bytes(decoder.layers, decoder.norm, self.model.lm_head)

    def weight_bytes(self) -> int:
        return folder_bytes(self.folder)
