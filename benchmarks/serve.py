"""qvl serve under load, beside transformers behind HTTP, on one checkpoint in one run.

    python -m benchmarks.serve [SECTION ...] [--rounds 3] [--quick] [--without-peers] [--out FOLDER]

Sections: start throughput picture gaps; all of them, if none is named. Every server is a process on a free
port of this machine, with two threads; one client process asks them in turn and reads the streams. The peers:
transformers' own ``transformers serve``, and a loop around `generate` that batches what arrives together. A
dated result goes to benchmarks/results/. Needs the extras "serve" and "test".

    python -m benchmarks.serve --paste docs/serving.md --result benchmarks/results/DATE-serve-CPU.md

puts a result between the marks of a document.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks import serve_phases as phases
from benchmarks.checkpoints import CUT_3B, TINY, WORK
from benchmarks.results import RESULTS, today, write
from benchmarks.rounds import Gauge, Run
from benchmarks.serve_phases import QUICK, Bench, Load
from benchmarks.serve_targets import serve_targets
from benchmarks.served import BATCHED, SERVE
from benchmarks.tables import report
from benchmarks.targets import held_against

BEGIN, END = "<!-- figures: begin (python -m benchmarks.serve) -->", "<!-- figures: end -->"
SECTIONS = {
    "start": phases.start,
    "throughput": phases.throughput,
    "picture": phases.picture,
    "gaps": phases.gap,
}


def main(arguments: Sequence[str] | None = None) -> Path | None:
    options = parsed(arguments)
    if options.paste:
        paste(options.paste, options.result)
        return None
    run = Run(
        TINY if options.quick else CUT_3B,
        1 if options.quick else options.rounds,
        options.isa,
        options.quick,
        Gauge(options.isa, options.quick),
    )
    bench = Bench(run, QUICK if options.quick else Load(), () if options.without_peers else (BATCHED, SERVE))
    wanted = options.sections or list(SECTIONS)
    if "start" in wanted:
        attempt(bench, "start")
    if others := [name for name in SECTIONS if name in wanted and name != "start"]:
        with bench.up():
            for name in others:
                attempt(bench, name)
            if bench.peers:
                attempt(bench, "agreement")
    return finish(run, options.out or (WORK / "results" if options.quick else RESULTS))


def attempt(bench: Bench, name: str) -> None:
    """A section; what was measured before must not be lost with one that fails."""
    print(name, flush=True)
    try:
        {**SECTIONS, "agreement": phases.agreement}[name](bench)
    except Exception as error:
        traceback.print_exc()
        bench.run.note(f"{name} stopped: {type(error).__name__}: {error}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contestant")
    parser.add_argument("--isa", default="", help="avx2, avx512, ... or off: the value of QVL_KERNELS")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, one round: whether all of it runs"
    )
    parser.add_argument("--without-peers", action="store_true", help="qvl alone")
    parser.add_argument("--out", type=Path, help="folder of the result files")
    parser.add_argument(
        "--paste", type=Path, metavar="DOCUMENT", help="put --result into it, measure nothing"
    )
    parser.add_argument("--result", type=Path, help="a Markdown file of an earlier run")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no section; choose from {', '.join(SECTIONS)}")
    if bool(options.paste) != bool(options.result):
        parser.error("--paste and --result belong together")
    return options


def finish(run: Run, folder: Path) -> Path:
    """Write and print the result."""
    date = today()
    held = held_against(run.measurements, serve_targets())
    targets = [row for row in held if row["asked"] is not None or row["measured"] is not None]
    text = report(run, targets, date)
    path = write(run, targets, folder, text, date, "serve")
    print(f"\n{text}\nwritten to {path} and {path.with_suffix('.json').name}")
    return path


def paste(document: Path, result: Path) -> None:
    """A result's Markdown between the marks of a document, its headings one level down."""
    lines = result.read_text(encoding="utf-8").splitlines()
    text = "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)
    before, found, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{document} lacks the lines {BEGIN} and {END}")
    document.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
