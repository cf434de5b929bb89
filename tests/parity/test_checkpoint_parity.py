"""Checkpoints against transformers': what one writes the other reads, tensor by tensor and logit by logit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvl.config import Qwen2_5_VLConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel
from qvl.network.vlm import CausalLM
from qvl.weights.names import to_internal, to_released
from support.tiny import random_ids, tiny_configs, tiny_oracle

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "configs").glob("*.json"))


@torch.no_grad()
def assert_same_logits(ours, theirs):
    ids = random_ids(1, 10)
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def theirs(request):
    return tiny_oracle(tiny_configs(text={"tie_word_embeddings": request.param})[0])


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_theirs_here(theirs, tmp_path, shard):
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_ours_there(theirs, tmp_path, shard):
    theirs.save_pretrained(tmp_path / "first")
    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "first")
    ours.save_pretrained(tmp_path / "second", max_shard_size=shard)
    again, loading = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "second", output_loading_info=True, attn_implementation="eager"
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())
    assert_same_logits(ours, again)


def test_the_files_hold_the_same_names(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    names = [load_file(tmp_path / who / "model.safetensors").keys() for who in ("theirs", "ours")]
    assert names[0] == names[1]


def test_the_model_without_its_head(theirs, tmp_path):
    theirs.model.save_pretrained(tmp_path / "theirs")
    ours = Qwen2_5_VLModel.from_pretrained(tmp_path / "theirs")
    assert all(torch.equal(ours.state_dict()[name], t) for name, t in theirs.model.state_dict().items())
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.Qwen2_5_VLModel.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[name], t) for name, t in theirs.model.state_dict().items())


def test_half_precision_keeps_its_bits(theirs, tmp_path):
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    ours = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert ours.dtype == torch.bfloat16
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_released_names_through_transformers_own_conversion(path):
    """Both libraries rename the released names to the same ones. (test_network_names: both have those.)"""
    with torch.device("meta"):
        names = CausalLM(Qwen2_5_VLConfig.from_pretrained(path)).state_dict()
    renames = transformers.Qwen2_5_VLForConditionalGeneration._checkpoint_conversion_mapping
    for name in names:
        released = converted = to_released(name)
        for pattern, replacement in renames.items():
            converted, changed = re.subn(pattern, replacement, converted)
            if changed:
                break
        assert converted == to_internal(released) == name
