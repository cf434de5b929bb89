"""One linear layer by rows, in every way that could be chosen: what the choices in `qvl.ops` rest on.

    python -m benchmarks.kernels [--rounds 5] [--layers 2048x11008 ...] [--rows 1 8 64] [--only int8]

Weights lie in several copies, used in turn, so that they come from memory as they do in a model, and not from
a cache. Limits are measured around every round; the share of them is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path

import torch

from benchmarks.checkpoints import TINY
from benchmarks.peers import PeerUnavailable
from benchmarks.process import THREADS
from benchmarks.products import Product, Way, ways
from benchmarks.results import figures
from benchmarks.rounds import Gauge, Job, Run
from benchmarks.tables import product_table
from benchmarks.work import Work, peak_kind
from benchmarks.worker import seconds_of

LAYERS = ("2048x11008", "11008x2048", "1280x3420")  # inputs x outputs: the MLPs of decoder and tower
ROWS = (1, 2, 4, 8, 16, 32, 64, 512, 2048)
FEW_ROWS = (1, 8, 64, 512)  # for all layers but the first
COLD = 1 << 28  # bytes of copies: many times a processor's cache
TURN = 0.03  # seconds that one turn takes at least, where a product is short


def layer(run: Run, inputs: int, outputs: int, rows: Sequence[int], chosen: Sequence[Way]) -> None:
    """Measure one layer's shape; a way that can't run leaves a note."""
    weight_NK = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02
    ready: list[tuple[Way, list[Product]]] = []
    for way in chosen:
        try:
            ready.append((way, copies(way, weight_NK, 1 << 20 if run.quick else COLD)))
        except (PeerUnavailable, RuntimeError) as reason:
            run.note(f"{way.name} left out at {inputs} x {outputs}: {first_sentence(reason)}")
    for T in rows:
        x_TK = torch.randn(T, inputs, generator=torch.Generator().manual_seed(1))
        jobs = {
            way.name: job(way, products, x_TK.to(way.dtype), weight_NK.numel())
            for way, products in ready
            if works(run, way, products[0], x_TK)
        }
        run.measure("products", f"{inputs} x {outputs}, rows {T}", jobs, closely=False)


def copies(way: Way, weight_NK: torch.Tensor, total: int) -> list[Product]:
    """The same product several times over, with weights that fill ``total`` bytes together."""
    count = max(1, round(total / (weight_NK.numel() * way.bits / 8)))
    return [way.make(weight_NK.to(way.dtype, copy=True)) for _ in range(count)]


def works(run: Run, way: Way, product: Product, x_TK: torch.Tensor) -> bool:
    """Some operators refuse some processors, and say so only when they are called."""
    try:
        product(x_TK.to(way.dtype))
    except RuntimeError as reason:
        run.note(f"{way.name} left out: {first_sentence(reason)}")
        return False
    return True


def job(way: Way, products: list[Product], x_TK: torch.Tensor, weights: int) -> Job:
    """A turn: as many products as fill its time, a new copy of the weights each.

    Seconds of one, the median.
    """
    turns: Iterator[Product] = cycle(products)
    next(turns)(x_TK)
    once = seconds_of(lambda: next(turns)(x_TK))
    repeats = max(3, min(200, round(TURN / once)))
    amount = Work(weights * way.bits / 8, 2.0 * weights * len(x_TK), peak_kind(way.weights))

    def run() -> float:
        return statistics.median(seconds_of(lambda: next(turns)(x_TK)) for _ in range(repeats))

    return Job(run, amount)


def first_sentence(reason: Exception) -> str:
    return str(reason).splitlines()[0].split(". ")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", nargs="+", default=LAYERS, help="inputs x outputs, as 2048x11008")
    parser.add_argument(
        "--rows", nargs="+", type=int, help="default: all for the first layer, some for the others"
    )
    parser.add_argument("--only", default="", help="ways whose name contains this")
    parser.add_argument("--isa", default="", help="the instructions that the limits are measured for")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tiny layer, for a smoke test")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    run = Run(TINY, options.rounds, options.isa, options.quick, Gauge(options.isa, options.quick))
    chosen = [way for way in ways() if options.only in way.name]
    for index, name in enumerate(["256x512"] if options.quick else options.layers):
        inputs, outputs = (int(number) for number in name.split("x"))
        rows = options.rows or ((1, 8) if options.quick else FEW_ROWS if index else ROWS)
        layer(run, inputs, outputs, rows, chosen)
    print(product_table(run.measurements))
    print("\n".join(run.notes))
    if options.json:
        found = [{**asdict(m), **figures(m)} for m in run.measurements]
        options.json.write_text(json.dumps({"measurements": found, "notes": run.notes}), encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
