"""Checkpoints travel: what qvl saves transformers loads, and the other way round, with the same logits."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration as Theirs

from qvl.config import AutoConfig
from qvl.modeling import Qwen2_5_VLForConditionalGeneration as Ours
from qvl.modeling import Qwen2_5_VLModel, Qwen2_5_VLTextModel
from support.batches import MIXED, batch
from support.tiny import tiny_configs, tiny_oracle

pytestmark = pytest.mark.oracle
ARGUMENTS = batch(*MIXED)


def logits(model):
    with torch.no_grad():
        return model.eval()(**ARGUMENTS).logits[ARGUMENTS["attention_mask"].bool()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_ours_loads_in_transformers(tmp_path, tied, shard):
    torch.manual_seed(0)
    _, config = tiny_configs(tie_word_embeddings=tied, text={"tie_word_embeddings": tied})
    ours = Ours(config)
    ours.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    theirs, info = Theirs.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_ours_saved_gives_the_same_greedy_answers_there(tmp_path, tied, shard, dtype):
    """Random weights large enough that the answers are not one token over and over."""
    theirs_config, config = tiny_configs(tie_word_embeddings=tied, text={"tie_word_embeddings": tied})
    ours = Ours(config)
    ours.load_state_dict(tiny_oracle(theirs_config).state_dict())
    ours.to(dtype).save_pretrained(tmp_path, max_shard_size=shard)
    answers = []
    for kind in (Ours, Theirs):
        model = kind.from_pretrained(tmp_path, dtype="auto", attn_implementation="eager")
        assert model.dtype == dtype
        model.float()  # what was stored in half precision, computed alike on both sides
        ids = model.generate(**ARGUMENTS, max_new_tokens=64, do_sample=False, eos_token_id=[], pad_token_id=0)
        answers.append(ids[:, ARGUMENTS["input_ids"].shape[1] :].tolist())
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == 64 and len({token for row in answers[0] for token in row}) > 3


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_in_ours(tmp_path, tied):
    config, _ = tiny_configs(tie_word_embeddings=tied, text={"tie_word_embeddings": tied})
    theirs = tiny_oracle(config)
    theirs.save_pretrained(tmp_path)
    ours = Ours.from_pretrained(tmp_path)
    assert not ours.training
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=1e-4)
    for part in (Qwen2_5_VLModel, Qwen2_5_VLTextModel):
        names = part.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(ours.state_dict()[part.checkpoint_prefix + n], t) for n, t in names.items())


def test_saving_what_was_loaded_keeps_every_byte(tmp_path):
    torch.manual_seed(0)
    _, config = tiny_configs()
    Ours(config).to(torch.bfloat16).save_pretrained(tmp_path / "a")
    again = Ours.from_pretrained(tmp_path / "a")
    assert again.dtype == torch.bfloat16
    again.save_pretrained(tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_generation_settings_travel(tmp_path):
    _, config = tiny_configs()
    ours = Ours(config)
    ours.generation_config.update(do_sample=True, temperature=1e-6, repetition_penalty=1.05)
    ours.save_pretrained(tmp_path)
    assert Ours.from_pretrained(tmp_path).generation_config.repetition_penalty == 1.05
    assert Theirs.from_pretrained(tmp_path).generation_config.temperature == 1e-6


def test_the_released_flat_config_is_read(tmp_path):
    _, config = tiny_configs()
    Ours(config).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "config.json").read_text())
    flat = {**nested.pop("text_config"), **nested, "model_type": "qwen2_5_vl"}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert AutoConfig.from_pretrained(tmp_path).text_config.hidden_size == 32
    assert logits(Ours.from_pretrained(tmp_path)).shape[-1] == 200


def test_dtype_and_unknown_arguments(tmp_path):
    _, config = tiny_configs()
    Ours(config).save_pretrained(tmp_path)
    assert Ours.from_pretrained(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert Ours.from_pretrained(tmp_path, torch_dtype=torch.float16).dtype == torch.float16
    with pytest.raises(TypeError, match="colour"):
        Ours.from_pretrained(tmp_path, colour="red")
