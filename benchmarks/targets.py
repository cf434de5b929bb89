"""What the fastest way must show, as the project's issue asks for it, held against a run's measurements.

A target is a ratio of two contestants in the same rounds, or a share of a limit. One whose section did not
run, or whose contestant is missing, has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import work
from benchmarks.checkpoints import CUT_3B
from benchmarks.results import figures, ratio
from benchmarks.rounds import Measurement

Value = Callable[["Found"], float | None]


@dataclass(frozen=True)
class Target:
    """``asked``: at least this much, or at most where ``most``; None: a figure that nothing is asked of."""

    phase: str
    what: str
    asked: float | None
    value: Value
    most: bool = False


class Found:
    """A run's measurements by section, case and contestant; None for what was not measured."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        self._by_name = {(m.section, m.case, m.contestant): m for m in measurements}

    def one(self, section: str, case: str, contestant: str) -> Measurement | None:
        """The measurement whose case begins so: cases name their group last."""
        for (found_section, found_case, name), measurement in self._by_name.items():
            if (found_section, name) == (section, contestant) and found_case.startswith(case):
                return measurement
        return None

    def faster(self, section: str, case: str, ours: str, theirs: str) -> float | None:
        """How many times as long ``theirs`` takes as ``ours``, round for round of the case both are in."""
        mine, peer = self.one(section, case, ours), self.one(section, case, theirs)
        return None if mine is None or peer is None else ratio(peer, mine)

    def share(self, section: str, case: str, contestant: str, of: str) -> float | None:
        found = self.one(section, case, contestant)
        return None if found is None else figures(found).get(of)

    def median(self, section: str, case: str, contestant: str) -> float | None:
        found = self.one(section, case, contestant)
        return None if found is None else figures(found)["median"]


def held_against(
    measurements: Sequence[Measurement], wanted: Sequence[Target] | None = None
) -> list[dict[str, Any]]:
    """Every target with what was measured and whether it holds: plain values, for JSON and for the table.

    ``wanted``: other targets than `targets`.
    """
    found = Found(measurements)
    rows = []
    for target in targets() if wanted is None else wanted:
        value, asked = target.value(found), target.asked
        holds = (
            None if value is None or asked is None else (value <= asked if target.most else value >= asked)
        )
        about = {"phase": target.phase, "what": target.what, "asked": target.asked, "most": target.most}
        rows.append({**about, "measured": value, "holds": holds})
    return rows


def targets() -> list[Target]:
    return [*whole_processes(), *matrix_products(), *towers(), *prompts(), *decoding(), *batches(), *memory()]


def whole_processes() -> list[Target]:
    case = "process to first token"

    def beyond_torch(found: Found) -> float | None:
        mine, torch_alone = found.one("start", case, "qvl"), found.one("start", case, "import torch")
        if mine is None or torch_alone is None:
            return None
        pairs = sorted(a - b for a, b in zip(mine.samples, torch_alone.samples, strict=False))
        return pairs[len(pairs) // 2]

    return [
        Target("start", "transformers / qvl", 2.3, lambda f: f.faster("start", case, "qvl", "transformers")),
        Target("start", "seconds beyond import torch", 1.0, beyond_torch, most=True),
        Target(
            "preprocessing",
            "transformers / qvl",
            2.0,
            lambda f: f.faster("pixels", "", "qvl", "transformers"),
        ),
    ]


def matrix_products() -> list[Target]:
    layer = "2048 x 11008, rows"

    def peak(rows: int) -> Value:
        return lambda f: f.share("products", f"{layer} {rows}", "qvl fp32", "of_peak")

    def eight_rows(weights: str) -> Value:
        def value(found: Found) -> float | None:
            one, eight = (found.one("products", f"{layer} {rows}", f"qvl {weights}") for rows in (1, 8))
            return None if one is None or eight is None else ratio(eight, one)

        return value

    at_peak = [
        Target("products", f"fp32, {rows} rows, of the FMA peak", 0.88, peak(rows))
        for rows in (64, 512, 2048)
    ]
    few = [
        Target("products", f"{w}, 8 rows / 1 row", 2.0, eight_rows(w), most=True) for w in ("fp32", "bf16")
    ]
    return [*at_peak, *few]


def towers() -> list[Target]:
    rows = []
    for side in (448, 1036):
        case = f"{side} px, fp32"
        for ours, theirs, asked in (
            ("qvl fp32", "transformers fp32", 1.2),
            ("qvl fp32", "llama.cpp F32", 1.5),
            ("qvl int8-vision", "transformers fp32", 1.35),
        ):
            rows.append(speed("vision", case, ours, theirs, asked))
        rows.append(speed("vision", f"{side} px, bf16", "qvl bf16", "transformers bf16", 4.5))
    return rows


def prompts() -> list[Target]:
    rows = []
    for length in (512, 2048):
        for group, ours, theirs, asked in (
            ("fp32", "qvl fp32", "transformers fp32", 1.2),
            ("fp32", "qvl fp32", "llama.cpp F32", 1.0),
            ("bf16", "qvl bf16", "transformers bf16", 4.5),
            ("8 bits", "qvl int8", "llama.cpp Q8_0", 1.5),
            ("8 bits", "qvl int8", "llama.cpp Q4_K_M", 1.0),
        ):
            rows.append(speed("prefill", f"{length} tokens, {group}", ours, theirs, asked))
    return rows


def decoding() -> list[Target]:
    def bandwidth(weights: str) -> Value:
        return lambda f: f.share("decode", "1 stream", f"qvl {weights}", "of_bandwidth")

    asked = {"fp32": 0.9, "bf16": 0.85, "int8": 0.85, "int4": 0.65}
    shares = [Target("decode", f"{w}, of the bandwidth", least, bandwidth(w)) for w, least in asked.items()]
    return [
        *shares,
        speed("decode", "1 stream, 8 bits", "qvl int8", "llama.cpp Q8_0", 1.25),
        speed("decode", "1 stream, 4 bits", "qvl int4", "llama.cpp Q4_0", 1.2),
        speed("decode", "1 stream, 4 bits", "qvl int4", "llama.cpp Q4_K_M", 1.2),
        speed("decode", "1 stream, fp32", "qvl fp32", "llama.cpp F32", 1.0),
    ]


def batches() -> list[Target]:
    def roofline(weights: str, streams: int) -> Value:
        return lambda f: f.share("batch", "streams", f"qvl {weights} x {streams}", "of_roofline")

    rows = [
        Target("batch", f"{weights}, {streams} streams, of the roofline", 0.8, roofline(weights, streams))
        for weights in ("fp32", "bf16", "int8", "int4")
        for streams in (8, 16)
    ]
    for streams, most in ((8, 1.6), (16, 2.5)):
        step = speed("batch", "streams, fp32", "qvl fp32 x 1", f"qvl fp32 x {streams}", most)
        rows.append(Target("batch", f"fp32, a step of {streams} / of 1", most, step.value, most=True))
    return [*rows, speed("batch", "streams, fp32", "qvl fp32 x 8", "transformers fp32 x 8", 4.0)]


def memory() -> list[Target]:
    def peak(weights: str) -> Value:
        return lambda f: f.median("memory", "peak at load / weights", f"qvl {weights}")

    def picture(found: Found) -> float | None:
        taken = found.median("memory", "a picture of 65536 patches: above", "qvl fp32")
        return None if taken is None else taken / 1e9

    def longer(weights: str) -> Value:
        def value(found: Found) -> float | None:
            names = (f"qvl {weights} at 1024", f"qvl {weights} at 16384")
            short, long = (found.one("context", "1 stream", name) for name in names)
            return (
                None
                if short is None or long is None
                else ratio(all_layers(long, short), all_layers(short, short))
            )

        return value

    loads = [
        Target("memory", f"{w}, peak at load / weights", 1.1, peak(w), most=True)
        for w in ("fp32", "bf16", "int8", "int4")
    ]
    large = Target("memory", "a picture of 65,536 patches, GB", 4.0, picture, most=True)
    contexts = [
        Target("context", f"{w}, a token at 16k / at 1k, all layers", 1.5, longer(w), most=True)
        for w in ("fp32", "bf16", "int8", "int4")
    ]
    return [*loads, large, *contexts]


def all_layers(measurement: Measurement, short: Measurement) -> Measurement:
    """A token's time if the checkpoint had all of the layers that it was cut from.

    The head keeps its time, its share of the weights in the time of the short context; what is left is the
    layers', and grows with their number.
    """
    head, layers = work.head_weights(CUT_3B), CUT_3B.layers * work.layer_weights(CUT_3B)
    fixed = head / (head + layers) * figures(short)["median"]
    times = CUT_3B.full_layers / CUT_3B.layers
    return replace(measurement, samples=[fixed + (s - fixed) * times for s in measurement.samples])


def speed(section: str, case: str, ours: str, theirs: str, asked: float) -> Target:
    what = f"{case}: {theirs} / {ours}"
    return Target(section, what, asked, lambda f: f.faster(section, case, ours, theirs))
