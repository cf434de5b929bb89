"""How benchmarks turn samples into figures: rounds in turn, limits beside them, tables, targets, files."""

import json
import math

import pytest

from benchmarks import __main__ as main
from benchmarks import limits, results, rounds, tables, targets, work
from benchmarks.checkpoints import CUT_3B, TINY
from benchmarks.rounds import Job, Measurement, Run
from benchmarks.work import Work

LIMITS = {"bandwidth": 40e9, "fp32": 500e9, "bf16": 0.0, "int8": 2000e9}


def measured(contestant: str, samples: list[float], **about) -> Measurement:
    about = {"section": "decode", "case": "1 stream, fp32", "limits": [LIMITS] * len(samples), **about}
    return Measurement(contestant=contestant, samples=samples, **about)


def test_every_round_begins_with_another_and_counts_no_first_call():
    order: list[str] = []

    def job(name: str) -> Job:
        return Job(lambda: order.append(name) or 1.0)  # type: ignore[func-returns-value]

    run = Run(TINY, rounds=2, gauge=lambda: {"bandwidth": 1.0})
    run.measure("decode", "case", {name: job(name) for name in "abc"})
    assert order == list("abc") + list("abc") + list("bca")
    assert [len(m.samples) for m in run.measurements] == [2, 2, 2]


def test_limits_are_those_around_a_turn():
    gauged = iter([{"bandwidth": value} for value in (10.0, 20.0, 60.0, 100.0)])
    run = Run(TINY, rounds=1, gauge=lambda: next(gauged))
    run.measure("decode", "case", {"a": Job(lambda: 1.0), "b": Job(lambda: 1.0)})
    assert [m.limits for m in run.measurements] == [[{"bandwidth": 15.0}], [{"bandwidth": 80.0}]]


def test_short_turns_share_a_rounds_limits():
    gauged = iter([{"bandwidth": value} for value in (10.0, 20.0)])
    run = Run(TINY, rounds=1, gauge=lambda: next(gauged))
    run.measure("products", "case", {"a": Job(lambda: 1.0), "b": Job(lambda: 1.0)}, closely=False)
    assert [m.limits for m in run.measurements] == [[{"bandwidth": 15.0}]] * 2


def test_a_contestant_that_fails_is_left_out_and_the_others_go_on():
    def fail() -> float:
        raise RuntimeError("its process ended")

    turns = iter([1.0, 1.0])  # the uncounted one, and one round: then it ends

    def ends() -> float:
        return next(turns, None) or fail()

    run = Run(TINY, rounds=3, gauge=lambda: {"bandwidth": 1.0})
    run.measure("decode", "case", {"never": Job(fail), "at first": Job(ends), "always": Job(lambda: 2.0)})
    assert [(m.contestant, m.samples) for m in run.measurements] == [("always", [2.0] * 3)]
    assert run.notes == [
        f"decode, case: {name} left out: its process ended" for name in ("never", "at first")
    ]


def test_a_section_that_breaks_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    def broken(run: Run) -> None:
        raise KeyError("a mistake")

    def works(run: Run) -> None:
        run.add(measured("qvl fp32", [0.1]))

    monkeypatch.setattr(main, "SECTIONS", {"broken": broken, "decode": works})
    path = main.main(["broken", "decode", "--quick", "--out", str(tmp_path)])
    text = path.read_text(encoding="utf-8")
    assert "| 1 stream, fp32 | qvl fp32 | 100 ms |" in text
    assert "broken stopped: KeyError: 'a mistake'" in text


def test_an_unknown_section_is_named(capsys):
    with pytest.raises(SystemExit):
        main.main(["decoding"])
    assert "'decoding' is no section; choose from agreement, start" in capsys.readouterr().err


def test_shares_are_of_the_limits_beside_each_sample():
    slow = {**LIMITS, "bandwidth": 20e9}
    found = results.figures(
        measured("qvl fp32", [0.1, 0.2], limits=[LIMITS, slow], work=Work(2e9, 5e9, "fp32"))
    )
    # 2 GB in 0.1 s at 40 GB/s, and in 0.2 s at 20: half of what each moment allowed.
    assert math.isclose(found["of_bandwidth"], 0.5)
    assert math.isclose(found["of_peak"], (0.1 + 0.05) / 2)
    assert found["of_roofline"] == found["of_bandwidth"]


def test_without_narrow_instructions_the_peak_is_that_of_fp32():
    found = results.figures(measured("qvl bf16", [0.1], work=Work(0.0, 25e9, "bf16")))
    assert math.isclose(found["of_peak"], 0.5)


def test_without_limits_there_are_times_and_no_shares():
    found = results.figures(measured("qvl fp32", [0.1], limits=[{}], work=Work(2e9, 5e9, "fp32")))
    assert found["median"] == 0.1 and "of_bandwidth" not in found


def test_ratios_pair_the_rounds():
    # The machine was ten times slower in the second round, for both.
    assert results.ratio(measured("a", [2.0, 20.0, 3.0]), measured("b", [1.0, 10.0, 1.0])) == 2.0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0123, "s", "12.3 ms"), (1.234, "s", "1.23 s"), (3.9e9, "B", "3.9 GB"), (1.04, "x", "1.04 x")],
)
def test_values_are_read_easily(value, unit, text):
    assert tables.shown(value, unit) == text


def test_a_table_has_the_columns_that_have_values():
    text = tables.table([measured("transformers fp32", [0.3]), measured("qvl fp32", [0.1])])
    head, _, first, second = text.splitlines()
    assert head == "| case | contestant | median | x of the case's first |"
    assert first.endswith("| 300 ms | 1.00 |") and second.endswith("| 100 ms | 3.00 |")


def test_products_are_shown_by_rows():
    found = [
        measured(way, [0.001 * n], section="products", case=f"8 x 16, rows {n}", work=Work(2e7, 0, "fp32"))
        for way in ("F.linear", "qvl")
        for n in (1, 8)
    ]
    assert tables.product_table(found).splitlines()[:3] == [
        "| 8 x 16 | rows 1 | rows 8 |",
        "| --- | --- | --- |",
        "| F.linear | 1 ms (50 %) | 8 ms (6 %) |",
    ]


def test_targets_hold_fall_short_or_were_not_measured():
    found = [
        measured("llama.cpp F32", [0.1, 0.1]),
        measured("qvl fp32", [0.05, 0.05], work=Work(1e9, 1e9, "fp32")),
        *(measured(f"qvl fp32 x {n}", [0.1 * n], section="batch", case="streams, fp32") for n in (1, 8)),
    ]
    held = {row["what"]: row for row in targets.held_against(found)}
    faster, bandwidth = held["1 stream, fp32: llama.cpp F32 / qvl fp32"], held["fp32, of the bandwidth"]
    assert (faster["measured"], faster["holds"]) == (2.0, True)
    assert (bandwidth["measured"], bandwidth["holds"]) == (0.5, False)
    step = held["fp32, a step of 8 / of 1"]
    assert (round(step["measured"]), step["most"], step["holds"]) == (8, True, False)
    assert held["seconds beyond import torch"]["holds"] is None


def test_a_long_context_is_weighed_as_in_the_whole_model():
    """Its cache costs every layer: the cut checkpoint has a sixth of them, beside a whole head."""
    about = {"section": "context", "case": "1 stream, fp32"}
    found = [measured(f"qvl fp32 at {n}", [s], **about) for n, s in ((1024, 0.1), (16384, 0.11))]
    row = next(r for r in targets.held_against(found) if r["what"].startswith("fp32, a token at 16k"))
    head, layer = work.head_weights(CUT_3B), work.layer_weights(CUT_3B)
    whole = 0.1 * (head + 36 * layer) / (head + 6 * layer)
    assert row["measured"] == pytest.approx((whole + 6 * 0.01) / whole)


def test_cases_are_found_by_section_and_beginning():
    found = targets.Found([measured("qvl fp32", [1.0], case="2048 tokens, fp32", section="prefill")])
    assert found.one("prefill", "2048 tokens, fp32", "qvl fp32") is not None
    assert found.one("prefill", "512 tokens, fp32", "qvl fp32") is None
    assert found.one("decode", "2048 tokens, fp32", "qvl fp32") is None


def test_every_target_names_what_the_sections_measure():
    """A target whose names no section uses could never have a value."""
    sections = {target.phase for target in targets.targets()}
    assert sections == {
        "start", "preprocessing", "products", "vision", "prefill", "decode", "batch", "memory", "context"
    }  # fmt: skip


def test_a_result_file_keeps_every_sample_and_the_machine(tmp_path):
    run = Run(CUT_3B, rounds=2, isa="avx2", gauge=dict)
    run.add(measured("qvl fp32", [0.1, 0.2], work=Work(2e9, 5e9, "fp32"), tokens=1))
    run.note("a remark")
    held = targets.held_against(run.measurements)
    date = "2026-01-31 12:00"
    path = results.write(run, held, tmp_path, tables.report(run, held, date), date)
    assert path.name.startswith("2026-01-31-1200-") and path.name.endswith("-avx2.md")
    assert "a remark" in path.read_text(encoding="utf-8")
    stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert stored["machine"]["cpu"] and stored["machine"]["packages"]["torch"]
    assert stored["measurements"][0]["samples"] == [0.1, 0.2]
    assert results.measurement_of(stored["measurements"][0]) == run.measurements[0]


def test_layer_weights_are_those_of_the_model():
    import qvl
    from benchmarks.checkpoints import settings

    model = qvl.Qwen2_5_VLForConditionalGeneration(qvl.Qwen2_5_VLConfig(**settings(TINY)))
    layer = model.model.language_model.layers[0]
    matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert work.layer_weights(TINY) == matrices
    assert work.head_weights(TINY) == model.lm_head.weight.numel()


def test_a_peak_is_never_faster_than_its_instruction_allows():
    try:
        found = limits.measure(threads=1, seconds=0.01, buffer=1 << 22)
    except limits.NoLimits as reason:
        pytest.skip(str(reason))
    assert found.bandwidth > 1e8 and found.fp32 > 1e8
    # No core does more than 4 multiply-adds of 16 floats a cycle, at 6 GHz: more means that the compiler left
    # work out.
    assert found.fp32 < 4 * 6e9 * 16 * 2 and found.int8 < 4 * 6e9 * 64 * 2


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(limits.NoLimits, match="no C compiler"):
        limits.measure()
    gauge = rounds.Gauge()
    assert gauge() == {} and "no C compiler" in gauge.missing
