"""``qvl merge``: an adapter and its base become one checkpoint that stands on its own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qvl import AutoModelForImageTextToText, AutoProcessor
from qvl.cli import FAILED, OK, USAGE
from support.checkpoint import write_checkpoint
from support.tiny import random_ids

LAYER = "model.language_model.layers.1.mlp.up_proj"


@pytest.fixture
def base(tmp_path):
    """In bfloat16, as released checkpoints are."""
    folder = write_checkpoint(tmp_path / "base")
    AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16").save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.randn(4, 32, generator=generator),
        f"base_model.model.{LAYER}.lora_B.weight": torch.randn(48, 4, generator=generator),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["up_proj"]}
    settings["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def same_logits(first, second):
    ids = random_ids(1, 9)
    with torch.no_grad():
        return torch.equal(first(ids).logits, second(ids).logits)


def test_the_merged_model_stands_on_its_own(run, base, adapter, tmp_path):
    code, out, err = run("merge", adapter, tmp_path / "whole")
    assert (code, err) == (OK, "")
    assert "bfloat16" in out and "whole: " in out
    through = AutoModelForImageTextToText.from_pretrained(adapter)
    for path in (*base.iterdir(), *adapter.iterdir()):
        path.unlink()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    assert same_logits(merged, through)
    assert merged.generation_config.eos_token_id is not None
    assert AutoProcessor.from_pretrained(tmp_path / "whole").chat_template
    assert run("ask", "?", "--model", tmp_path / "whole", "--max-new-tokens", 2)[0] == OK
    assert not (tmp_path / "whole" / "adapter_config.json").exists()


def test_released_names_and_the_bases_number_format(run, base, adapter, tmp_path):
    plain, pair = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    assert run("merge", adapter, tmp_path / "whole")[0] == OK
    merged = load_file(tmp_path / "whole" / "model.safetensors")
    assert merged.keys() == plain.keys()
    changed = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert changed == ["model.layers.1.mlp.up_proj.weight"]
    down, up = (pair[f"base_model.model.{LAYER}.lora_{half}.weight"] for half in "AB")
    exact = plain[changed[0]].float() + up @ down * (2 / 4)
    assert torch.equal(merged[changed[0]], exact.bfloat16())
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_another_base(run, base, adapter, tmp_path):
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone"}))
    code, _, err = run("merge", adapter, tmp_path / "whole")
    assert code == FAILED and "'/gone', which is not there" in err
    assert not (tmp_path / "whole").exists()
    assert run("merge", adapter, tmp_path / "whole", "--base", base)[0] == OK
    assert not torch.equal(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").get_submodule(LAYER).weight,
        AutoModelForImageTextToText.from_pretrained(base).get_submodule(LAYER).weight,
    )


def test_the_adapters_own_processor_is_taken_along(run, base, adapter, tmp_path):
    processor = AutoProcessor.from_pretrained(base)
    processor.image_processor.max_pixels = 28 * 28 * 7
    processor.image_processor.save_pretrained(adapter)
    (adapter / "trainer_state.json").write_text("{}")
    assert run("merge", adapter, tmp_path / "whole")[0] == OK
    merged = AutoProcessor.from_pretrained(tmp_path / "whole")
    assert merged.image_processor.max_pixels == 28 * 28 * 7
    assert merged.chat_template == processor.chat_template
    assert merged.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert not (tmp_path / "whole" / "trainer_state.json").exists()


def test_what_is_refused(run, base, adapter, tmp_path):
    code, _, err = run("merge", base, tmp_path / "whole")
    assert code == USAGE and "is no adapter" in err
    code, _, err = run("merge", adapter, base)
    assert code == USAGE and "not empty" in err
    (adapter / "adapter_model.safetensors").unlink()
    code, _, err = run("merge", adapter, tmp_path / "whole")
    assert code == FAILED and "has no adapter_model.safetensors" in err
