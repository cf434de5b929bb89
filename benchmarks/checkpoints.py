"""The checkpoints that the benchmarks run on: the released 3B's dimensions with fewer layers, random weights.

Made once, into ``runs/benchmarks/`` (ignored by git): in fp32, the same rounded to bf16, and what others make
of them (GGUF files, quantized folders). The tokenizer is the bundled model's, so that nothing is downloaded;
the vocabulary keeps the released number of rows, since the head is a large part of every decoded token.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "qvl" / "assets" / "tiny"
WORK = Path(os.environ.get("QVL_BENCHMARKS", ROOT / "runs" / "benchmarks"))  # 20 GB, once everything is made
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a cut checkpoint; ``full_layers``: text layers of the model that it was cut from."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    full_attention: tuple[int, ...]
    rope_sections: tuple[int, int, int]
    full_layers: int


# The released 3B, 6 of 36 text layers and 8 of 32 vision layers; of its whole-frame blocks 7, 15, 23, 31 the
# first.
CUT_3B = Shape(
    "cut3b", 2048, 11008, 6, 16, 2, 151936, 1280, 3420, 8, 16, full_attention=(7,),
    rope_sections=(16, 24, 24), full_layers=36,
)  # fmt: skip
# For smoke tests: seconds in all, and widths that every quantized format can block.
TINY = Shape(
    "tiny", 256, 512, 2, 4, 2, 2048, 128, 256, 4, 2, full_attention=(1, 3),
    rope_sections=(8, 12, 12), full_layers=2,
)  # fmt: skip


def checkpoint(shape: Shape, dtype: str) -> Path:
    """The folder of the checkpoint in "fp32" or "bf16", made if it isn't there."""
    return made_once(f"{shape.name}-{dtype}", lambda folder: write_checkpoint(shape, dtype, folder))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder among the checkpoints, made if it isn't there; a half-made one never has the name."""
    target = WORK / name
    if not target.exists():
        unfinished = target.with_name(f"unfinished-{target.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.unlink(missing_ok=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {name}", flush=True)
        make(unfinished)
        unfinished.rename(target)
    return target


def write_checkpoint(shape: Shape, dtype: str, folder: Path) -> None:
    """Random weights whose fp32 and bf16 folders are the same numbers, rounded."""
    import qvl

    model = qvl.Qwen2_5_VLForConditionalGeneration(qvl.Qwen2_5_VLConfig(**settings(shape)))
    randomise(model)
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    model.save_pretrained(folder, max_shard_size="8GB")
    for name in TOKENIZER_FILES:
        shutil.copy(BUNDLED / name, folder / name)
    image = json.loads((BUNDLED / "preprocessor_config.json").read_text(encoding="utf-8"))
    image |= {"min_pixels": 56 * 56, "max_pixels": 12_845_056}  # the released limits
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every tensor random, norms and biases too, so that a tensor in the wrong place shows in the output.

    Layers speak louder than the embeddings beneath them; else a tied head would repeat the last token.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            layer = parameter.ndim > 1 and "embed_tokens" not in name
            std = parameter[0].numel() ** -0.5 if layer else 0.02
            parameter.normal_(0.0, std, generator=generator)


def settings(shape: Shape) -> dict[str, Any]:
    """Arguments of a ``Qwen2_5_VLConfig``, with the special tokens as the bundled tokenizer numbers them."""
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    outer = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.rope_sections)},
        "tie_word_embeddings": True,
        "bos_token_id": config["text_config"]["bos_token_id"],
        "eos_token_id": config["text_config"]["eos_token_id"],
    }
    vision = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_inner,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "fullatt_block_indexes": list(shape.full_attention),
        "tokens_per_second": 2,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
        "tie_word_embeddings": True,
        **{name: config[name] for name in outer},
    }


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    """Ordinary token ids of the bundled tokenizer, none of the special ones: the same for every peer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 480, (length,), generator=generator).tolist()
