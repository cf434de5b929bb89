"""The memory of a training step: qvl beside transformers' own loss, with a released vocabulary.

    python -m benchmarks.training [--tokens 4096] [--vocabulary 151936]

Each contestant runs in a process of its own, on a small model of one shape with random weights (so the losses
are near each other, not equal) and the same tokens, all of them learned: what counts is the loss, whose
logits are the largest tensor of a step. What is told is the most memory above the one that the process held
right before the step, gradients included, and the step's loss.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH, LAYERS = 256, 2
LEAST = 2.0  # how many times less than transformers qvl must take
MiB = 2**20


def settings(vocabulary: int) -> dict[str, Any]:
    """Of both configs: a small decoder with a large vocabulary, and a tower that nothing goes through."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "use_cache": False,
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    ids = {f"{name}_token_id": i for i, name in enumerate(("vision_start", "vision_end", "image", "video"))}
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": True, **ids}


def qvl_step(tokens: int, vocabulary: int) -> Any:
    """Prepares a step; returns what takes it: the mean loss, gone backward."""
    import torch

    from qvl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from qvl.train.objective import answer_loss
    from qvl.train.packing import PackedBatch

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings(vocabulary))).train()
    ids = some_ids(tokens, vocabulary)
    targets = torch.cat([ids[1:], torch.tensor([-100])])
    places = torch.arange(tokens).expand(3, -1)
    batch = PackedBatch(ids, places, targets, torch.zeros(tokens, dtype=torch.bool), (tokens,), None, ())

    def step() -> float:
        mean = answer_loss(model, batch).total / batch.learned
        mean.backward()
        return mean.item()

    return step


def transformers_step(tokens: int, vocabulary: int) -> Any:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings(vocabulary))).train()
    ids = some_ids(tokens, vocabulary)[None]

    def step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.item()

    return step


def some_ids(tokens: int, vocabulary: int) -> Any:
    import torch

    return torch.randint(4, vocabulary, (tokens,), generator=torch.Generator().manual_seed(1))


CONTESTANTS = {"qvl": qvl_step, "transformers": transformers_step}


def alone(name: str, tokens: int, vocabulary: int) -> None:
    """In the process of one contestant: prints its figures."""
    step = CONTESTANTS[name](tokens, vocabulary)
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the most memory: back to what is held now
    before = most_memory()
    loss = step()
    print(json.dumps({"bytes": most_memory() - before, "loss": loss}))


def most_memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux tells the most memory that a process held"
    return 1024 * int(found[1])


def measured(tokens: int, vocabulary: int) -> dict[str, dict[str, float]]:
    """Figures of every contestant, one after the other."""
    found = {}
    for name in CONTESTANTS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.training",
            "--tokens",
            tokens,
            "--vocabulary",
            vocabulary,
        ]
        ran = subprocess.run([*map(str, command), "--only", name], capture_output=True, text=True, check=True)
        found[name] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--only", choices=[*CONTESTANTS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        alone(options.only, options.tokens, options.vocabulary)
        return
    found = measured(options.tokens, options.vocabulary)
    title = f"a step of {options.tokens:,} tokens, {options.vocabulary:,} words, float32"
    table = Table(title, "memory", "loss")
    for name, figures in found.items():
        table.add_row(name, f"{figures['bytes'] / MiB:,.0f} MiB", f"{figures['loss']:.5f}")
    console = Console()
    console.print(table)
    ratio = found["transformers"]["bytes"] / found["qvl"]["bytes"]
    console.print(f"{ratio:.1f} times less; asked: {LEAST:g}")
    sys.exit(ratio < LEAST)


if __name__ == "__main__":
    main()
