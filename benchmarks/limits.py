"""What the machine can do at most, measured beside everything else: memory read and multiply-adds per second.

The measuring loops are C (limits.c), compiled once with the machine's ``cc``. Without a compiler there are no
limits: `measure` says so, and the tables then show times and ratios alone.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import WORK

SOURCE = Path(__file__).with_name("limits.c")
BUFFER = 1 << 29  # bytes: far beyond any cache
TARGETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avxvnni": ["-mavx2", "-mfma", "-mavxvnni"],
    "avx512": ["-mavx512f", "-mfma"],
    "avx512vnni": ["-mavx512f", "-mavx512vnni", "-mfma"],
}
KINDS = ("fp32", "bf16", "int8")


class NoLimits(Exception):
    """The limits can't be measured here, in one sentence."""


@dataclass(frozen=True)
class Limits:
    """Per second: bytes read from memory, and operations (a multiply-add is two); 0: no such instruction."""

    bandwidth: float
    fp32: float
    bf16: float
    int8: float


def measure(isa: str = "", threads: int = 2, seconds: float = 0.3, buffer: int = BUFFER) -> Limits:
    """What the machine does now, with so many threads, each peak for so many seconds.

    ``isa``: as ``QVL_KERNELS``; "avx2" measures what that instruction set can do. ``buffer``: bytes that are
    read, beyond any cache. Raises NoLimits.
    """
    library = loaded(isa)
    return Limits(
        library.read_bandwidth(ctypes.c_size_t(buffer), threads, 5),
        *(getattr(library, f"peak_{kind}")(threads, ctypes.c_double(seconds)) for kind in KINDS),
    )


def loaded(isa: str) -> Any:
    """The compiled loops. Raises NoLimits."""
    library = ctypes.CDLL(str(compiled(isa)))
    for name in ("read_bandwidth", *(f"peak_{kind}" for kind in KINDS)):
        getattr(library, name).restype = ctypes.c_double
    return library


def compiled(isa: str) -> Path:
    """Built once for each source, instruction set and machine type."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NoLimits(
            "no C compiler: install one (apt install gcc), or set CC, to have the machine's limits"
        )
    flags = ["-O3", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", *target_flags(isa)]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([*flags, platform.processor()]).encode()).hexdigest()[
        :12
    ]
    target = WORK / f"limits-{key}.so"
    if not target.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, *flags, "-o", unfinished, SOURCE], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoLimits(f"{compiler} could not compile {SOURCE.name}: {done.stderr.strip()[:300]}")
        unfinished.rename(target)
    return target


def target_flags(isa: str) -> list[str]:
    """Where a set of instructions is asked for, it alone; else (and for "off") all that the processor has."""
    return TARGETS.get(isa, ["-march=native"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(asdict(measure(options.isa, options.threads))))
