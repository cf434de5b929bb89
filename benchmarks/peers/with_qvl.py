"""qvl: the documented model class, its engine for decoding, its tower for pictures.

Quantized weights come from a folder that ``qvl quantize`` made, as a person would make it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.checkpoints import Shape, checkpoint, made_once
from benchmarks.peers import PeerUnavailable, folder_bytes, stored_bytes

# What `qvl quantize` is told: every matrix that a decoded token reads, and the tower where its speed is asked
# for.
QUANTIZED = {
    "int8": ["--weights", "int8", "--head"],
    "int4": ["--weights", "int4", "--head"],
    "int8-vision": ["--weights", "int8", "--head", "--vision"],
}


class QvlPeer:
    def __init__(self, shape: Shape, weights: str, parts: tuple[str, ...]) -> None:
        import qvl

        self.folder = quantized(shape, weights) if weights in QUANTIZED else checkpoint(shape, weights)
        self.model: Any = qvl.Qwen2_5_VLForConditionalGeneration.from_pretrained(self.folder)

    def prefill(self, ids: list[int]) -> None:
        self.begin_streams([ids], 1)

    def begin_streams(self, prompts: list[list[int]], room: int) -> None:
        from qvl.engine.engine import Engine
        from qvl.types import Prompt, SamplingParams

        self.engine = Engine(self.model)
        self.tokens: dict[int, list[int]] = {}
        for ids in prompts:
            positions_3T = torch.arange(len(ids)).expand(3, -1)
            number = self.engine.add(Prompt(ids, positions_3T), SamplingParams(max_new_tokens=room + 1))
            self.tokens[number] = []
        while not all(self.tokens.values()):
            self.step()

    def step(self) -> None:
        for delta in self.engine.step():
            self.tokens[delta.sequence_id] += delta.token_ids

    def streamed(self) -> list[list[int]]:
        return list(self.tokens.values())

    def begin_picture(self, path: str) -> None:
        import qvl

        processor = qvl.Qwen2VLImageProcessor.from_pretrained(self.folder)
        self.picture = processor(Image.open(path), return_tensors="pt")

    @torch.inference_mode()
    def encode(self) -> None:
        self.encoded = self.model.model.encode(self.picture["pixel_values"], self.picture["image_grid_thw"])

    def embeddings(self) -> torch.Tensor:
        return self.encoded.float()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids])).logits[0, -1].float()

    def decoder_bytes(self) -> int:
        decoder = self.model.model.language_model
        return stored_bytes(decoder.layers, decoder.norm, self.model.lm_head)

    def weight_bytes(self) -> int:
        return folder_bytes(self.folder)


def quantized(shape: Shape, weights: str) -> Path:
    """The folder of a quantized checkpoint, made by the command line if it isn't there."""
    return made_once(
        f"{shape.name}-{weights}", lambda folder: run_quantize(shape, QUANTIZED[weights], folder)
    )


def run_quantize(shape: Shape, options: list[str], folder: Path) -> None:
    command = [sys.executable, "-m", "qvl.cli", "quantize", str(checkpoint(shape, "fp32")), str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        said = [line.strip(" │") for line in done.stderr.splitlines() if line.strip(" │╭╰─╮╯")]
        raise PeerUnavailable(
            f"qvl quantize {' '.join(options)} failed: {said[-1] if said else 'no message'}"
        )
