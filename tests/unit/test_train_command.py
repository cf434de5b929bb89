"""``qvl train``: the bundled model trained for a few steps, checked, interrupted and gone on with."""

import json
import os
import signal
from dataclasses import fields

import pytest
import torch
from safetensors.torch import load_file

from qvl.auto import AutoModelForImageTextToText, AutoProcessor
from qvl.cli import INTERRUPTED, OK, USAGE, train_progress
from qvl.cli.train_options import (
    ELSEWHERE,
    OF_LORA,
    OPTIONS,
    data_settings,
    from_file,
    lora_values,
    rates_of,
    train_settings,
    weights_of,
)
from qvl.errors import InputError
from qvl.train.data.settings import DataSettings
from qvl.train.settings import TrainSettings
from support.media import photo

MODEL = "qvl/tiny"
QUICK = ("--batch", 2, "--warm-up", 0, "--workers", 0, "--learning-rate", 1e-3)


@pytest.fixture
def rows(tmp_path):
    photo(80, 80).save(tmp_path / "a.png")
    ask = {"role": "user", "content": "<image>What number is written here?"}
    seen = [
        {"messages": [ask, {"role": "assistant", "content": str(n)}], "images": ["a.png"]} for n in range(4)
    ]
    said = [{"query": f"Say {word}", "response": word} for word in ("red", "blue", "green", "white")]
    return write(tmp_path / "rows.jsonl", seen + said)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def weights(out):
    return load_file(out / "model.safetensors")


def losses(out):
    lines = (out / "metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("loss")
    return [line.split(",")[place] for line in lines[1:]]


# -- runs -----------------------------------------------------------------------------------------------


def test_a_run_from_rows_to_a_model_that_serves(run, tmp_path, rows):
    out = tmp_path / "out"
    code, said, told = run("train", MODEL, rows, "--out", out, *QUICK, "--max-pixels", 7056, "--fps", 1)
    assert code == OK, told
    assert "8, of which 8 can be trained on" in said
    assert "vision tower" in said
    assert "4 steps of 2 rows, 1 times through 8 rows" in said
    assert f"{out}: 4 steps done" in said
    assert "qvl: step 4 of 4: loss" in told
    assert len(losses(out)) == 4
    processor = AutoProcessor.from_pretrained(out)
    assert processor.image_processor.max_pixels == 7056, "it must be served as it was trained"
    assert processor.video_processor.fps == 1
    before, after = (
        AutoModelForImageTextToText.from_pretrained(MODEL),
        AutoModelForImageTextToText.from_pretrained(out),
    )
    assert after.config.dtype_name == before.config.dtype_name
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert any("visual" in name for name in changed)
    assert any("layers" in name for name in changed)
    code, _, told = run("ask", "--model", out, tmp_path / "a.png", "What number is written here?")
    assert code == OK, told


def test_an_interrupted_run_goes_on_bit_for_bit(run, tmp_path, rows, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run("train", MODEL, rows, "--out", whole, *QUICK)[0] == OK
    stepped = train_progress.RunProgress.stepped

    def interrupted(self, step, values):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        stepped(self, step, values)

    with monkeypatch.context() as patched:
        patched.setattr(train_progress.RunProgress, "stepped", interrupted)
        code, _, told = run("train", MODEL, rows, "--out", broken, *QUICK)
    assert code == INTERRUPTED
    assert "finishing this step and saving" in told
    assert "saved after step 2; the same command goes on from there" in told
    code, _, told = run("train", MODEL, rows, "--out", broken, *QUICK)
    assert code == OK, told
    assert "going on after step 2 of 4" in told
    assert losses(whole) == losses(broken)
    ours, theirs = weights(whole), weights(broken)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    code, _, told = run("train", MODEL, rows, "--out", broken, *QUICK)
    assert (code, "all 4 steps are done already" in told) == (OK, True)
    write(rows, [{"query": "Say red", "response": "red"}] * 8)
    code, _, told = run("train", MODEL, rows, "--out", broken, *QUICK)
    assert code != OK
    assert "holds a run with other data; give the same to go on, or another --out to begin anew" in told


def test_only_what_is_named_learns(run, tmp_path, rows):
    out = tmp_path / "out"
    options = ("--train", "merger", "--rate", "merger=2e-3", "--steps", 1, "--gradient-checkpointing")
    code, said, told = run("train", MODEL, rows, "--out", out, *QUICK, *options)
    assert code == OK, told
    lines = {line.split("  ")[0]: line for line in said.splitlines()}
    assert lines["merger"].endswith("0.002")
    assert lines["decoder layers"].endswith("frozen")
    before = AutoModelForImageTextToText.from_pretrained(MODEL)
    after = AutoModelForImageTextToText.from_pretrained(out)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new) or "merger" in name


def test_lora_writes_an_adapter(run, tmp_path, rows):
    out = tmp_path / "out"
    code, _, told = run("train", MODEL, rows, "--out", out, *QUICK, "--lora", "--lora-r", 2, "--steps", 1)
    assert code == OK, told
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    assert not (out / "model.safetensors").exists()


def test_rows_that_are_not_learned_measure_the_loss(run, tmp_path, rows):
    held = write(tmp_path / "held.jsonl", [{"query": "Say black", "response": "black"}])
    code, _, told = run(
        "train", MODEL, rows, "--out", tmp_path / "out", *QUICK, "--steps", 1, "--eval-data", held
    )
    assert code == OK, told
    assert "evaluation after step 1: loss" in told
    assert "measure nothing new" not in told
    write(held, [{"query": "Say red", "response": "red"}])
    _, _, told = run("train", MODEL, rows, "--check", "--eval-data", held)
    assert "1 rows of --eval-data are learned too, so they measure nothing new" in told


def test_gradient_checkpointing_reaches_the_model(run, tmp_path, rows, monkeypatch):
    from qvl.modeling import Qwen2_5_VLForConditionalGeneration as Model

    asked = []
    monkeypatch.setattr(Model, "gradient_checkpointing_enable", lambda self: asked.append(self))
    run("train", MODEL, rows, "--out", tmp_path / "out", *QUICK, "--steps", 1, "--gradient-checkpointing")
    assert len(asked) == 1


# -- the check ------------------------------------------------------------------------------------------


def test_the_check_lists_every_bad_row_and_trains_nothing(run, tmp_path, rows):
    bad = write(
        tmp_path / "bad.jsonl",
        [
            {"query": "Hi", "response": "Hello"},
            {"query": "Hi"},
            {"image": "no.png", "query": "<image>", "response": "A"},
        ],
    )
    code, said, told = run("train", MODEL, bad, "--check")
    assert code == USAGE
    assert "bad: line 2: a row with 'query' needs the text 'response' too" in said
    assert f"bad: line 3: There is no file {tmp_path}/no.png" in said
    assert told.count("\n") == 1
    assert "bad.jsonl has 2 rows that cannot be trained on, the first in line 2" in told
    code, said, _ = run("train", MODEL, rows, "--check")
    assert code == OK
    assert "longest: line" in said
    code, said, told = run("train", MODEL, bad, "--skip-bad", "--steps", 1, "--out", tmp_path / "out", *QUICK)
    assert code == OK, told
    assert "through 1 rows" in said


@pytest.mark.parametrize(("policy", "code"), [("error", USAGE), ("drop", OK)])
def test_long_rows(run, tmp_path, policy, code):
    long = {"query": "word " * 100, "response": "Yes"}
    path = write(tmp_path / "rows.jsonl", [{"query": "Hi", "response": "Hello"}, long])
    found, said, told = run("train", MODEL, path, "--check", "--max-tokens", 60, "--too-long", policy)
    assert found == code
    assert "line 2: it has" in said
    assert ("--too-long drop or --too-long shrink" in told) == (policy == "error")


# -- options --------------------------------------------------------------------------------------------


def test_every_setting_has_its_option():
    from qvl.train.lora import LoraSettings

    named = {option.field for option in OPTIONS}
    for kind in (TrainSettings, DataSettings, LoraSettings):
        assert {field.name for field in fields(kind)} <= named, kind
    lora = {field.name: field.default for field in fields(LoraSettings)}
    assert lora == {name: ELSEWHERE[name] for name in OF_LORA}
    own = {field.name for kind in (TrainSettings, DataSettings) for field in fields(kind)}
    assert named == own | ELSEWHERE.keys()


def test_every_option_is_in_the_help(run):
    code, said, _ = run("train", "--help")
    assert code == OK
    assert "--too-long" in said
    assert "--learning-rate" in said


WRONG = {
    "no folder": ((), "--out names the folder of the run; --check looks through the data without one"),
    "rank without LoRA": (("--check", "--lora-r", 4), "--lora-r is about adapters; give --lora too"),
    "rounded weights": (("--check", "--weights", "int8"), "--weights rounds weights, which are not trained"),
    "a rate without a number": (("--check", "--rate", "tower"), "write a part and its learning rate"),
    "a rate that is no number": (("--check", "--rate", "tower=x"), "--rate tower must be a number, not 'x'"),
    "an unknown part": (("--check", "--train", "eyes"), "a part is one of tower, merger, layers"),
    "one beta": (("--check", "--betas", "0.9"), "--betas takes two numbers"),
    "weights of files": (("--check", "--weight", 1, "--weight", 2), "one --weight for each file: 1, not 2"),
    "no media root": (("--check", "--media-root", "/no/such"), "--media-root /no/such is no folder"),
    "evaluation": (("--check", "--evaluate-every", 5), "--evaluate-every needs rows to measure on"),
    "no epochs": (("--check", "--epochs", 0), "epochs must be more than 0, not 0"),
    "a folder of something else": (("--out", "."), "is there already and holds no run; name a new folder"),
    "no settings": (("--check", "--config", "/no/such.json"), "--config /no/such.json cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_sentence(run, tmp_path, rows, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, expected = WRONG[name]
    code, _, told = run("train", MODEL, rows, *options)
    assert code == USAGE
    assert expected in told
    assert told.count("\n") == 1


def test_data_that_is_not_there(run):
    code, _, told = run("train", MODEL, "no.jsonl", "--check")
    assert (code, told) == (USAGE, "qvl: There is no file no.jsonl\n")


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_of_settings(tmp_path, suffix):
    pytest.importorskip("tomllib")
    path = tmp_path / f"run.{suffix}"
    if suffix == "toml":
        path.write_text(
            "batch = 4\nlearning-rate = 1e-4\nbetas = [0.8, 0.9]\nlora = true\nlora_r = 8\n"
            'train = ["layers"]\nboxes = "resized"\n[rate]\ntower = 1e-6\n'
        )
    else:
        path.write_text(
            json.dumps(
                {
                    "batch": 4,
                    "learning-rate": 1e-4,
                    "betas": [0.8, 0.9],
                    "lora": True,
                    "lora_r": 8,
                    "train": ["layers"],
                    "boxes": "resized",
                    "rate": {"tower": 1e-6},
                }
            )
        )
    values = from_file(path)
    assert train_settings(values) == TrainSettings(batch=4, learning_rate=1e-4, betas=(0.8, 0.9))
    assert data_settings(values) == DataSettings(boxes="resized")
    assert lora_values(values) == {"r": 8}
    assert rates_of(values) == {"tower": 1e-6}
    assert values["train"] == ["layers"]
    assert weights_of(values, 2) == [1.0, 1.0]


def test_the_command_line_wins_over_the_file(run, tmp_path, rows):
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"max_tokens": 10, "too_long": "drop"}))
    assert run("train", MODEL, rows, "--check", "--config", config)[0] == USAGE
    assert run("train", MODEL, rows, "--check", "--config", config, "--max-tokens", 1000)[0] == OK


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"batches": 4}', "sets 'batches', which is no option of qvl train"),
        ('{"batch": "4"}', "sets batch to '4', which --batch does not take"),
        ('{"batch": true}', "sets batch to True, which --batch does not take"),
        ('{"boxes": "percent"}', "sets boxes to 'percent', which --boxes does not take"),
        ("[1]", "must hold names and values"),
        ("{", "cannot be read"),
    ],
)
def test_a_wrong_file_of_settings(tmp_path, text, expected):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=expected):
        from_file(tmp_path / "c.json")


def test_the_command_offers_every_choice_of_the_settings():
    from typing import get_args

    from qvl.cli import train_options
    from qvl.train import settings

    assert [choice.value for choice in train_options.Schedule] == list(get_args(settings.Schedule))
    assert [choice.value for choice in train_options.ComputeDtype] == list(get_args(settings.Dtype))
