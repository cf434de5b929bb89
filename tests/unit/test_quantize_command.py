"""``qvl quantize`` and ``--weights``: what is written, printed and refused; with a tiny checkpoint."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from qvl import AutoModelForImageTextToText, AutoProcessor
from qvl.cli import OK, USAGE
from qvl.cli.quality import Scores, compared, questions
from qvl.weights.quantization.linear import QuantizedLinear, Scheme
from support.checkpoint import write_checkpoint
from support.video import write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 255, (60, 80, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def schemes(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    return {name: m.scheme for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def rows(out):
    """The table: layer -> (bits, group, error in percent)."""
    found = re.findall(r"│ ([\w.]+) +│ (\d) +│ (\d+) +│ ([\d.]+)% │", out)
    return {name: (int(bits), int(group), float(error)) for name, bits, group, error in found}


def test_the_text_decoder_by_default(run, model, tmp_path):
    code, out, err = run("quantize", model, tmp_path / "new", "--weights", "int8")
    assert (code, err) == (OK, "")
    found = schemes(tmp_path / "new")
    assert set(found.values()) == {Scheme(8, 32)}
    assert len(found) == 3 * 7
    assert all(name.startswith("model.language_model.layers.") for name in found)
    assert rows(out).keys() == found.keys()
    assert all(row[:2] == (8, 32) and 0.1 < row[2] < 1 for row in rows(out).values())
    assert re.search(r"weights: [\d.]+ MB -> [\d.]+ MB in .*new", out)
    assert "perplexity" not in out
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "config.json"} <= names
    AutoProcessor.from_pretrained(tmp_path / "new")
    generation = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert (
        generation["eos_token_id"]
        == json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    )


def test_everything_in_4_bits_calibrated_and_checked(run, model, pictures, tmp_path):
    out_folder = tmp_path / "new"
    options = ("--vision", "--head", "--group", 32, "--keep", "layers.1.mlp", "--exact", "--check")
    code, out, _ = run("quantize", model, out_folder, "--weights", "int4", *options, "--calibrate", pictures)
    assert code == OK
    found = schemes(out_folder)
    assert {name: (s.bits, s.group) for name, s in found.items()} == {
        name: row[:2] for name, row in rows(out).items()
    }
    assert found["model.language_model.layers.1.mlp.up_proj"] == Scheme(8, 32)
    assert found["lm_head"] == found["model.visual.merger.mlp.0"] == Scheme(4, 32)
    quality = re.search(
        r"perplexity x ([\d.]+) over (\d+) tokens; .* for ([\d.]+)% of (\d+) tokens of answers", out
    )
    assert 0.5 < float(quality[1]) < 2
    assert int(quality[2]) > int(quality[4]) > 0
    stored = json.loads((out_folder / "config.json").read_text())["quantization_config"]
    assert stored["exact"] and stored["vision"] and stored["head"]
    assert "layers.1.mlp" in stored["modules_in_int8"]
    assert run("ask", "?", "-m", out_folder, "--max-new-tokens", 2)[0] == OK


def test_calibration_changes_the_weights(run, model, pictures, tmp_path):
    for name, more in {"plain": (), "calibrated": ("--calibrate", pictures / "0.png")}.items():
        assert run("quantize", model, tmp_path / name, "--weights", "int8", *more)[0] == OK
    plain, calibrated = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("plain", "calibrated")
    )
    layers = (m.model.language_model.layers[1].mlp.up_proj for m in (plain, calibrated))
    first, second = (layer.dequantize() for layer in layers)
    assert not torch.equal(first, second)
    assert (first - second).norm() < 0.05 * first.norm()


def test_sensitive_layers_are_named(run, model, tmp_path):
    whole = AutoModelForImageTextToText.from_pretrained(model)
    layer = whole.model.language_model.layers[2].self_attn.q_proj
    with torch.no_grad():  # two large values in every row, all others half a step away from the next one
        layer.weight[:] = layer.weight.sign() / 15
        layer.weight[:, 0], layer.weight[:, 1] = 1, -1
    changed = write_checkpoint(tmp_path / "changed", weights=False)
    whole.save_pretrained(changed)
    code, out, _ = run("quantize", changed, tmp_path / "new", "--weights", "int4", "--group", 128)
    assert code == OK
    name = "model.language_model.layers.2.self_attn.q_proj"
    kept = [n for n, s in schemes(tmp_path / "new").items() if s.bits == 8]
    assert kept == [name]
    assert f"kept in int8, because int4 changes them most: {name}" in out
    stored = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    assert stored["modules_in_int8"] == kept


def test_what_is_refused(run, model, pictures, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    write_video(tmp_path / "video.mp4", frames=8, size=(64, 48), fps=4)
    (tmp_path / "empty").mkdir()
    new, int8 = tmp_path / "new", ("--weights", "int8")
    for words, message in [
        ((model, tmp_path / "full", *int8), "is there already and not empty"),
        ((model, tmp_path / "full" / "file", *int8), "is there already and not empty"),
        ((model, new, *int8, "--group", 64), "int8 has groups of 32"),
        ((model, new), "--weights"),
        ((model, new, *int8, "--calibrate", tmp_path / "video.mp4"), "there is a video among them"),
        ((model, new, *int8, "--calibrate", tmp_path / "empty"), "holds no pictures"),
        ((model, new, *int8, "--calibrate", pictures / "no.png"), "no.png"),
    ]:
        code, out, err = run("quantize", *words)
        assert code != OK and message in err and not out, words
        assert not new.exists()
    assert run("quantize", model, new, *int8)[0] == OK
    code, _, err = run("quantize", new, tmp_path / "newer", *int8)
    assert code == USAGE and "quantized already" in err


def test_info_says_how_the_weights_are_stored(run, model, tmp_path):
    assert json.loads(run("info", model, "--json")[1])["quantization"] is None
    new = tmp_path / "new"
    assert run("quantize", model, new, "--weights", "int4", "--head", "--keep", "layers.0")[0] == OK
    told = json.loads(run("info", new, "--json")[1])["quantization"]
    assert (told["method"], told["bits"], told["group_size"]) == ("qvl", 4, 64)
    assert told["parts"] == ["text decoder", "head"]
    assert told["in_int8"] == ["layers.0"]
    held = AutoModelForImageTextToText.from_pretrained(new).get_memory_footprint()
    assert told["bytes"] == held
    shown = " ".join(run("info", new)[1].replace("│", " ").split())
    assert "qvl, int4, groups of 64, text decoder and head, in int8: 1 named" in shown
    values = json.loads((new / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (new / "config.json").write_text(json.dumps(values))
    assert "awq, int4, groups of 128" in run("info", new)[1]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_rounded_while_they_load(run, model, weights, monkeypatch):
    loaded = []
    real = AutoModelForImageTextToText.from_pretrained

    def load(*args, **kwargs):
        loaded.append(real(*args, **kwargs))
        return loaded[-1]

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    assert run("ask", "?", "-m", model, "--weights", weights, "--max-new-tokens", 2)[0] == OK
    assert loaded[0].config.quantization_config["weights"] == weights
    assert run("ask", "?", "-m", model, "--max-new-tokens", 2)[0] == OK
    assert getattr(loaded[1].config, "quantization_config", None) is None


def test_weights_of_a_quantized_checkpoint(run, model, tmp_path):
    new = tmp_path / "new"
    assert run("quantize", model, new, "--weights", "int8")[0] == OK
    code, _, err = run("ask", "?", "-m", new, "--weights", "int4")
    assert code == USAGE and "quantized already" in err


def test_comparing_scores():
    before = [Scores(10.0, 5, (1, 2, 3)), Scores(2.0, 5, (4,))]
    after = [Scores(11.0, 5, (1, 2, 9)), Scores(2.0, 5, (4,))]
    found = compared(before, after)
    assert found.perplexity_ratio == pytest.approx(np.exp(0.1))
    assert (found.agreement, found.tokens, found.choices) == (0.75, 10, 4)


def test_questions():
    picture = Image.new("RGB", (4, 4))
    first, second = questions([picture] * 5), questions([picture] * 5, 1)
    about = [messages[0]["content"][-1]["text"] for messages in first]
    assert len(set(about[:4])) == 4 and about[4] == about[0]
    assert about[0] != second[0][0]["content"][-1]["text"]
    without = {messages[0]["content"][0]["text"] for messages in (*first[5:], *second[5:])}
    assert len(without) == 4
