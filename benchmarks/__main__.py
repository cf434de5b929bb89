"""qvl beside transformers and llama.cpp, on the same checkpoints, prompts and pictures, in one run.

    python -m benchmarks [SECTION ...] [--rounds 5] [--isa avx2] [--quick]

Sections: start pixels products vision prefill decode batch memory context agreement; all of them, if none is
named. Checkpoints are made once, in runs/benchmarks/ (or the folder that QVL_BENCHMARKS names). A dated
result (JSON, and tables as Markdown) goes to benchmarks/results/. Needs the extras "test" (transformers) and
"bench" (llama.cpp, onnxruntime), and a C compiler for the machine's limits; what is missing is left out, and
the result says so.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import processes, sections
from benchmarks.checkpoints import CUT_3B, TINY, WORK
from benchmarks.results import RESULTS, today, write
from benchmarks.rounds import Gauge, Run
from benchmarks.tables import report
from benchmarks.targets import held_against

SECTIONS: dict[str, Callable[[Run], None]] = {
    "agreement": sections.agreement,
    "start": processes.start,
    "pixels": processes.pixels,
    "products": processes.products,
    "vision": sections.vision,
    "prefill": sections.prefill,
    "decode": sections.decode,
    "batch": sections.batch,
    "memory": processes.memory,
    "context": sections.context,
}


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contestant")
    parser.add_argument("--isa", default="", help="avx2, avx512, ... or off: the value of QVL_KERNELS")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, one round: whether everything runs"
    )
    parser.add_argument("--out", type=Path, help="folder of the result files")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no section; choose from {', '.join(SECTIONS)}")
    run = Run(
        TINY if options.quick else CUT_3B,
        1 if options.quick else options.rounds,
        options.isa,
        options.quick,
        Gauge(options.isa, options.quick),
    )
    if run.isa:
        run.note(f"{run.isa} is for qvl, torch and the limits; llama.cpp runs as it was built")
    for name in options.sections or SECTIONS:
        print(name, flush=True)
        try:
            SECTIONS[name](run)
        except Exception as error:  # hours of other sections must not be lost with this one
            traceback.print_exc()
            run.note(f"{name} stopped: {type(error).__name__}: {error}")
    return finish(run, options.out or (WORK / "results" if options.quick else RESULTS))


def finish(run: Run, folder: Path) -> Path:
    """Write and print the result."""
    if getattr(run.gauge, "missing", None):
        run.note(f"no limits: {run.gauge.missing}")  # type: ignore[attr-defined]
    date, targets = today(), held_against(run.measurements)
    text = report(run, targets, date)
    path = write(run, targets, folder, text, date)
    print(f"\n{text}\nwritten to {path} and {path.with_suffix('.json').name}")
    return path


if __name__ == "__main__":
    main()
