"""A run as Markdown: the machine, a table for each section, what was asked for, and the remarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.results import figures, machine, ratio
from benchmarks.rounds import Measurement, Run

UNITS = ("B", "kB", "MB", "GB", "TB")


def report(run: Run, targets: Sequence[dict[str, Any]], date: str) -> str:
    parts = [f"# Benchmarks of {date}", describe(run)]
    for section in dict.fromkeys(m.section for m in run.measurements):
        found = [m for m in run.measurements if m.section == section]
        parts += [f"## {section}", product_table(found) if section == "products" else table(found)]
    asked = [target for target in targets if target["asked"] is not None]
    if asked:
        parts += ["## what it must show", target_table(asked)]
    if others := [target for target in targets if target["asked"] is None]:
        parts += ["## ratios", ratio_table(others)]
    if run.notes:
        parts += ["## remarks", "\n".join(f"- {note}" for note in run.notes)]
    return "\n\n".join(parts) + "\n"


def describe(run: Run) -> str:
    """The machine and the settings, in one paragraph."""
    here = machine()
    versions = ", ".join(f"{name} {number}" for name, number in here["packages"].items())
    shape = run.shape
    return (
        f"{here['cores']} cores of an {here['cpu']} ({here['architecture']}; {', '.join(here['flags'])}), "
        f"{here['threads']} threads, Python {here['python']}, {versions}. "
        f"Kernels: {run.isa or 'as qvl chooses'}. "
        f"Checkpoint: {shape.name}, {shape.layers} text and {shape.vision_layers} vision layers, width "
        f"{shape.hidden}, random weights. "
        f"{run.rounds} rounds in turn, medians; limits measured around every figure."
    )


def table(measurements: Sequence[Measurement]) -> str:
    """One row for each contestant of each case; the last column: its time over that of the case's last."""
    head = [
        "case",
        "contestant",
        "median",
        "tokens/s",
        "GB/s",
        "Gop/s",
        "of bandwidth",
        "of peak",
        "of roofline",
    ]
    head.append("x of the case's first")
    rows = []
    for case in dict.fromkeys(m.case for m in measurements):
        group = [m for m in measurements if m.case == case]
        rows += [row(m, group[0]) for m in group]
    used = [i for i in range(len(head)) if i < 3 or any(r[i] for r in rows)]
    return markdown([head[i] for i in used], [[r[i] for i in used] for r in rows])


def row(measurement: Measurement, first: Measurement) -> list[str]:
    found = figures(measurement)
    paired = measurement.unit == "s" and first.samples and len(first.samples) == len(measurement.samples)
    return [
        measurement.case,
        measurement.contestant,
        shown(found["median"], measurement.unit),
        number(found.get("tokens_per_second")),
        number(found.get("gigabytes_per_second")),
        number(found.get("gigaoperations_per_second")),
        *(percent(found.get(f"of_{name}")) for name in ("bandwidth", "peak", "roofline")),
        f"{ratio(first, measurement):.2f}" if paired else "",
    ]


def product_table(measurements: Sequence[Measurement]) -> str:
    """For each layer one table: ways down, rows across; time, and share of what the limits allow."""
    tables = []
    for layer in dict.fromkeys(m.case.split(", ")[0] for m in measurements):
        found = {(m.contestant, m.case): m for m in measurements if m.case.startswith(f"{layer}, ")}
        cases = list(dict.fromkeys(case for _, case in found))
        lines = []
        for name in dict.fromkeys(name for name, _ in found):
            lines.append([name, *(cell(found.get((name, case))) for case in cases)])
        tables.append(markdown([layer, *(case.split(", ")[1] for case in cases)], lines))
    return "\n\n".join(tables)


def cell(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    found = figures(measurement)
    share = percent(found.get("of_roofline"))
    return shown(found["median"], "s") + (f" ({share})" if share else "")


def target_table(targets: Sequence[dict[str, Any]]) -> str:
    head = ["phase", "what", "asked", "measured", ""]
    rows = []
    for target in targets:
        value = target["measured"]
        sign = "at most" if target["most"] else "at least"
        verdict = "not measured" if value is None else ("holds" if target["holds"] else "**falls short**")
        measured = "" if value is None else f"{value:.2f}"
        rows.append([target["phase"], target["what"], f"{sign} {target['asked']:g}", measured, verdict])
    return markdown(head, rows)


def ratio_table(targets: Sequence[dict[str, Any]]) -> str:
    """Figures that nothing is asked of."""
    rows = [[t["phase"], t["what"], f"{t['measured']:.2f}"] for t in targets if t["measured"] is not None]
    return markdown(["phase", "what", "x"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float, unit: str) -> str:
    """A value as people write it: 12.3 ms, 1.25 GB, 1.04 x."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
    if unit == "B":
        power = next((i for i in range(len(UNITS)) if abs(value) < 1000 ** (i + 1)), len(UNITS) - 1)
        return f"{value / 1000**power:.3g} {UNITS[power]}"
    return f"{value:.3g} {unit}"


def number(value: float | None) -> str:
    """Three digits; nothing where there is no value, or none worth a figure."""
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    return f"{100 * share:.0f} %" if share else ""
