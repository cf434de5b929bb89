"""What a run leaves behind: every sample and limit as JSON, and figures. None of them is typed.

A figure is the median over rounds of what each round says: its rate over the limit measured around it, its
time over another contestant's time in the same round.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.process import THREADS
from benchmarks.rounds import Measurement, Run
from benchmarks.work import Work

RESULTS = Path(__file__).with_name("results")
FLAGS: tuple[str, ...] = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
)
FLAGS += ("asimd", "asimddp", "bf16", "i8mm", "sve")
PACKAGES: tuple[str, ...] = (
    "torch",
    "transformers",
    "llama_cpp_python",
    "numpy",
    "pillow",
    "onnxruntime",
    "torchao",
)
PACKAGES += ("fastapi", "uvicorn", "httpx")
FORMAT = 1  # of the JSON file


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, the instructions that matter, threads, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    memory = Path("/proc/meminfo")
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": _cores(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_bytes": int(memory.read_text().split()[1]) * 1024 if memory.exists() else None,
        "threads": THREADS,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def as_json(run: Run, targets: Sequence[dict[str, Any]], date: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "date": date,
        "machine": machine(),
        "shape": asdict(run.shape),
        "rounds": run.rounds,
        "isa": run.isa or "qvl's choice",
        "measurements": [{**asdict(m), **figures(m)} for m in run.measurements],
        "targets": list(targets),
        "notes": run.notes,
    }


def measurement_of(values: dict[str, Any]) -> Measurement:
    """A measurement from its JSON; figures are computed again."""
    known = {name: values[name] for name in Measurement.__dataclass_fields__ if name in values}
    found = Measurement(**known)
    return replace(found, work=Work(**values["work"])) if values.get("work") else found


def figures(measurement: Measurement) -> dict[str, float]:
    """Medians: of the samples, of their rates, and of their shares of the limits measured around each."""
    median = statistics.median(measurement.samples)
    found = {"median": median}
    if measurement.unit != "s":
        return found
    if measurement.tokens:
        found["tokens_per_second"] = measurement.tokens / median
    if measurement.work is not None:
        found["gigabytes_per_second"] = measurement.work.bytes / median / 1e9
        found["gigaoperations_per_second"] = measurement.work.operations / median / 1e9
        found |= shares(measurement, measurement.work)
    return found


def shares(measurement: Measurement, work: Work) -> dict[str, float]:
    """Of the bandwidth, of the peak, and of the roofline: the least time that both together allow."""
    rounds = [(s, at) for s, at in zip(measurement.samples, measurement.limits, strict=False) if at]
    if not rounds:
        return {}
    reading = [work.bytes / at["bandwidth"] for _, at in rounds]
    # Without an instruction for the narrow format, the same products are done in fp32.
    counting = [work.operations / (at[work.peak] or at["fp32"]) for _, at in rounds]
    parts = {
        "of_bandwidth": reading,
        "of_peak": counting,
        "of_roofline": [max(pair) for pair in zip(reading, counting, strict=True)],
    }
    return {
        name: statistics.median(least / s for least, (s, _) in zip(column, rounds, strict=True))
        for name, column in parts.items()
    }


def ratio(slower: Measurement, faster: Measurement) -> float:
    """How many times as long the one took as the other: the median over the rounds they shared."""
    pairs = zip(slower.samples, faster.samples, strict=False)
    return statistics.median(a / b for a, b in pairs)


def write(
    run: Run, targets: Sequence[dict[str, Any]], folder: Path, text: str, date: str, name: str = ""
) -> Path:
    """``DATE[-NAME]-CPU[-ISA].json`` and the same name with ``.md``; returns the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    cpu = "".join(c if c.isalnum() else "-" for c in machine()["cpu"].lower()).strip("-")
    stem = "-".join(part for part in (date.replace(":", "").replace(" ", "-"), name, cpu, run.isa) if part)
    content = json.dumps(as_json(run, targets, date), indent=1) + "\n"
    (folder / f"{stem}.json").write_text(content, encoding="utf-8")
    path = folder / f"{stem}.md"
    path.write_text(text, encoding="utf-8")
    return path


def today() -> str:
    return time.strftime("%Y-%m-%d %H:%M")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
