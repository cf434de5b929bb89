"""The figures of the README: the bundled model's held-out score, and qvl beside transformers in one run.

Every pair is measured in turn, several rounds, and the median is kept; the ratio is what to read, since
machines differ and are noisy. Needs the ``test`` extra. Writes the tables between the markers of README.md:

    python -m benchmarks.readme [--rounds 5] [--dry-run]

The peer is ``ASK_PEER`` here and ``peer`` in `benchmarks.tasks`: what a careful user of transformers
would write.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from examples.tiny.exam import TITLES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: begin (python -m benchmarks.readme) -->", "<!-- figures: end -->"
PICTURE = ROOT / "examples" / "pictures" / "digits.png"
MODEL = ROOT / "src" / "qvl" / "assets" / "tiny"

ASK = [sys.executable, "-m", "qvl.cli", "ask", str(PICTURE), "What number is written here?"]
ASK += ["--dtype", "float32"]  # as the peer is told
ASK_PEER = f"""
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast, Qwen2VLImageProcessor
tokenizer = Qwen2TokenizerFast.from_pretrained({str(MODEL)!r})
processor = Qwen2VLImageProcessor.from_pretrained({str(MODEL)!r})
pixels = processor(Image.open({str(PICTURE)!r}), return_tensors="pt")
model = Qwen2_5_VLForConditionalGeneration.from_pretrained({str(MODEL)!r}, dtype="float32")
content = [{{"type": "image"}}, {{"type": "text", "text": "What number is written here?"}}]
messages = [{{"role": "user", "content": content}}]
prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
count = int(pixels["image_grid_thw"].prod()) // 4
ids = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")
answer = model.generate(**ids, **pixels, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(answer[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dry-run", action="store_true", help="print the tables, leave README.md alone")
    options = parser.parse_args()
    text = "\n\n".join([held_out_table(), speed_table(options.rounds), machine()])
    print(text)
    if not options.dry_run:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def held_out_table() -> str:
    """What `examples/tiny/exam.py` measures, as a table."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "score.json"
        command = [sys.executable, "-m", "examples.tiny.exam", "--json", str(report)]
        subprocess.run(command, cwd=ROOT, check=True)
        tasks = json.loads(report.read_text())["tasks"]
    lines = ["| bundled model, held-out lessons | questions | right | 95 % interval |", "|---|---|---|---|"]
    for task in tasks:
        share, low, high = (f"{100 * task[name]:.1f}" for name in ("score", "low", "high"))
        lines.append(f"| {TITLES[task['task']]} | {task['rows']} | {share} % | {low} to {high} % |")
    return "\n".join(lines)


def speed_table(rounds: int) -> str:
    """qvl beside transformers, in turn."""
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "a question about a picture, whole process": (
            lambda: process(ASK),
            lambda: process([sys.executable, "-c", ASK_PEER]),
        ),
        "a 1024 x 768 photo to patches": (lambda: inside("qvl", "pixels"), lambda: inside("peer", "pixels")),
        "64 greedy tokens after a picture": (
            lambda: inside("qvl", "tokens"),
            lambda: inside("peer", "tokens"),
        ),
        "the same, eight questions at once": (
            lambda: inside("qvl", "batch"),
            lambda: inside("peer", "batch"),
        ),
    }
    lines = ["| bundled model, two threads, fp32 | qvl | transformers 4.57 | ratio |", "|---|---|---|---|"]
    for name, (ours, theirs) in pairs.items():
        samples = [(ours(), theirs()) for _ in range(rounds)]
        mine, peer = (statistics.median(column) for column in zip(*samples, strict=True))
        ratio = statistics.median(b / a for a, b in samples)
        lines.append(f"| {name} | {shown(mine)} | {shown(peer)} | {ratio:.1f} x |")
    return "\n".join(lines)


def process(command: list[str]) -> float:
    """Seconds that a whole process takes; its output must be there."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=True)
    seconds = time.perf_counter() - start
    if not done.stdout.strip():
        raise RuntimeError(f"{command[:3]} printed nothing")
    return seconds


def inside(who: str, what: str) -> float:
    """Seconds of one task inside a fresh process, imports and first call left out."""
    command = [sys.executable, "-m", "benchmarks.tasks", who, what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=True)
    return float(done.stdout.split()[-1])


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


def shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def machine() -> str:
    from importlib.metadata import version

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    today = time.strftime("%Y-%m-%d")
    return (
        f"Measured {today} on {os.cpu_count()} cores of an {cpu} ({platform.machine()}), Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}; "
        "medians of interleaved runs."
    )


if __name__ == "__main__":
    main()
