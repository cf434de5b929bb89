"""Adapters and parts while training: what is trained, how fast, and what of it is saved."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

from qvl import AutoModelForImageTextToText, AutoProcessor, QuantizationConfig, TorchAoConfig
from qvl.errors import CheckpointError, CheckpointMismatchError, InputError, UnsupportedError
from qvl.hub import BUNDLED
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.train.lora import AdapterWriter, LoraSettings, attach, save_adapter
from qvl.train.parts import PARTS, PartSettings, format_table, freeze, part_of, parts_table
from qvl.weights.quantization.linear import QuantizedLinear
from support.batches import batch, prompt_row
from support.checkpoint import write_checkpoint
from support.tiny import random_ids, tiny_configs

peft = pytest.importorskip("peft")

ALL = PartSettings(train=("tower", "merger", "decoder"))
# 4 blocks with 5 layers each, the merger's 2, 3 layers with 7 each
LAYERS = {"tower": 20, "merger": 2, "layers": 21, "embeddings": 1, "head": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base):
    return AutoModelForImageTextToText.from_pretrained(base)


def tied_model():
    _, config = tiny_configs(text={"tie_word_embeddings": True}, tie_word_embeddings=True)
    return Qwen2_5_VLForConditionalGeneration(config)


def trained(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def shake(model, size=0.1):
    """Every trained value becomes another."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model):
    arguments = batch(prompt_row(4, ("image", (1, 8, 12)), 5))
    ids = arguments["input_ids"]
    config = model.config
    for here, there in (
        (190, config.vision_start_token_id),
        (191, config.vision_end_token_id),
        (192, config.image_token_id),
    ):
        ids = ids.masked_fill(ids == here, there)
    return model(**{**arguments, "input_ids": ids}).logits


def learn(model, steps=20):
    """Some steps towards three fixed answers: (first loss, last loss)."""
    ids = random_ids(3, 10, seed=5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    return losses[0], losses[-1]


# -- adapters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_adapters_on_one_part(model, part):
    attach(model, LoraSettings(r=4), PartSettings(train=(part,)))
    names = trained(model)
    assert {part_of(name) for name in names} == {part}
    assert len(names) == 2 * LAYERS[part]
    assert all(".lora_" in name for name in names)


def test_the_decoders_layers_by_default(model):
    attach(model, LoraSettings())
    assert len(trained(model)) == 2 * LAYERS["layers"]
    assert all(part_of(name) == "layers" for name in trained(model))


def test_nothing_changes_before_training(base, model):
    before = logits(model)
    attach(model, LoraSettings(r=4), ALL)
    torch.testing.assert_close(logits(model), before)


SETTINGS = {
    "plain": (LoraSettings(r=4), ALL),
    "rslora": (LoraSettings(r=4, rslora=True), PartSettings(train=("merger",))),
    "dora": (LoraSettings(r=4, dora=True), ALL),
    "dropout": (LoraSettings(r=4, dropout=0.1), None),
    "whole merger": (LoraSettings(r=4, modules_to_save=("merger",)), None),
    "whole head": (LoraSettings(r=2, alpha=1.5, modules_to_save=("lm_head", "norm")), None),
    "embeddings and head": (LoraSettings(r=4), PartSettings(train=("embeddings", "head"))),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_saved_and_read_without_peft(model, name, tmp_path):
    attach(model, *SETTINGS[name])
    shake(model)
    save_adapter(model, tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert not any("lora" in key for key in again.state_dict())
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SETTINGS)
def test_peft_and_transformers_read_it(base, model, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    attach(model, *SETTINGS[name])
    shake(model)
    save_adapter(model, tmp_path)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        base, attn_implementation="eager"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that were not found
        warnings.filterwarnings("ignore", message="unclosed file")
        wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path)
    assert type(wrapped).__name__ == "PeftModelForCausalLM"
    torch.testing.assert_close(logits(wrapped), logits(model), atol=2e-4, rtol=2e-4)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_with_an_adapter(base, model, name, tmp_path):
    attach(model, *SETTINGS[name])
    shake(model)
    save_adapter(model, tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(base)
    attach(again, LoraSettings(adapter=str(tmp_path)))
    assert trained(again) == trained(model)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-5)
    save_adapter(shake(again, 0.01), tmp_path / "more")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "more")
    assert (logits(merged) - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(merged), logits(again), atol=1e-5, rtol=1e-4)


@pytest.mark.oracle
def test_going_on_with_an_adapter_of_other_tools(base, tmp_path):
    """Ranks and scales by pattern, biases, and names as PEFT on older transformers had them."""
    from safetensors.torch import load_file, save_file

    config = peft.LoraConfig(
        r=4,
        target_modules=r".*layers\.\d+\.self_attn\.(q|v)_proj",
        rank_pattern={r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={r".*v_proj": 5},
        bias="lora_only",
        lora_bias=False,
    )
    wrapped = shake(peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(base), config))
    wrapped.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    released = {
        name.replace("model.model.language_model.", "model.model."): t for name, t in load_file(path).items()
    }
    save_file(released, path)
    model = AutoModelForImageTextToText.from_pretrained(base)
    attach(model, LoraSettings(adapter=str(tmp_path)))
    torch.testing.assert_close(logits(model), logits(wrapped), atol=1e-6, rtol=1e-5)
    assert sum(name.endswith(".bias") for name in trained(model)) == 6
    save_adapter(shake(model), tmp_path / "more")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "more", base=base)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_and_only_the_adapter_does(dtype, tmp_path):
    """Adapters are float32 whatever the weights are."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained("qvl/tiny", dtype=dtype)
    attach(model, LoraSettings(r=4, dropout=0.05))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert {p.dtype for n, p in model.named_parameters() if n not in frozen} == {torch.float32}
    first, last = learn(model)
    assert last < 0.7 * first
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    save_adapter(model, tmp_path)
    ids, merged = random_ids(1, 10), AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    tolerance = 1e-4 if dtype == "float32" else 0.05
    with torch.no_grad():
        difference = (merged(ids).logits - model(ids).logits).norm() / model(ids).logits.norm()
    assert difference < tolerance


def test_generating_with_adapters_in_place_is_generating_with_the_sum(model, tmp_path):
    attach(model, LoraSettings(r=4), ALL)
    shake(model)
    save_adapter(model, tmp_path)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path)
    ids = random_ids(2, 7)
    asked = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **asked), merged.generate(ids, **asked))


def test_the_same_seed_begins_the_same(base):
    models = [AutoModelForImageTextToText.from_pretrained(base) for _ in range(3)]
    state = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        attach(model, LoraSettings(r=4), seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    first, same, other = (torch.cat([p.flatten() for p in m.parameters() if p.requires_grad]) for m in models)
    assert torch.equal(first, same) and not torch.equal(first, other)


# -- on quantized weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_gradients_through_quantized_weights(base, weights, tmp_path):
    """They are those of the model with the rounded weights at full width."""
    model = AutoModelForImageTextToText.from_pretrained(base, quantization_config=QuantizationConfig(weights))
    wide = AutoModelForImageTextToText.from_pretrained(base)
    packed = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    with torch.no_grad():
        for name, module in packed.items():
            wide.get_submodule(name).weight = torch.nn.Parameter(module.dequantize())
    gradients = []
    for each in (model, wide):
        attach(each, LoraSettings(r=4))
        shake(each)
        each(random_ids(2, 9), labels=random_ids(2, 9)).loss.backward()
        gradients.append({n: p.grad for n, p in each.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * LAYERS["layers"]
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-4, rtol=1e-3)
    save_adapter(model, tmp_path)  # belongs to the base at full width, and merges there
    AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=QuantizationConfig(weights))


def test_what_quantized_weights_do_not_allow(base, run, tmp_path):
    def loaded(config, folder=base):
        return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)

    with pytest.raises(UnsupportedError, match="DoRA"):
        attach(loaded(QuantizationConfig("int8")), LoraSettings(dora=True))
    with pytest.raises(UnsupportedError, match="torchao's weights"):
        attach(loaded(TorchAoConfig("int8_weight_only")), LoraSettings())
    with pytest.raises(UnsupportedError, match="decoder layers has weights in 8 or 4 bits"):
        freeze(loaded(QuantizationConfig("int8")), PartSettings())
    with pytest.raises(UnsupportedError, match="8 or 4 bits"):
        freeze(loaded(TorchAoConfig("int8_weight_only")), PartSettings())
    freeze(loaded(QuantizationConfig("int8")), PartSettings(train=("tower", "merger")))
    assert run("quantize", base, tmp_path / "small", "--weights", "int8")[0] == 0
    with pytest.raises(UnsupportedError, match="is stored quantized"):
        attach(loaded(None, tmp_path / "small"), LoraSettings())


# -- saving -----------------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_adapter(model, tmp_path, monkeypatch):
    attach(model, LoraSettings(r=4))
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"adapter_config.json", "adapter_model.safetensors"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qvl.train.lora.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_adapter(shake(model), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_serves(base, model, tmp_path, run):
    attach(model, LoraSettings(r=4))
    AdapterWriter(AutoProcessor.from_pretrained(base))(shake(model), tmp_path)
    assert {"tokenizer.json", "preprocessor_config.json", "adapter_config.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    code, _, err = run("ask", "?", "--model", tmp_path, "--max-new-tokens", 2)
    assert (code, err) == (0, "")


def test_the_name_of_the_base(base, tmp_path, monkeypatch):
    def saved(model):
        attach(model, LoraSettings(r=2))
        save_adapter(model, tmp_path / "new")
        return json.loads((tmp_path / "new" / "adapter_config.json").read_text())["base_model_name_or_path"]

    assert saved(AutoModelForImageTextToText.from_pretrained("qvl/tiny")) == "qvl/tiny"
    assert saved(AutoModelForImageTextToText.from_pretrained(BUNDLED["qvl/tiny"])) == "qvl/tiny"
    cached = tmp_path / "models--Owner--Some-Model" / "snapshots" / (40 * "a")
    shutil.copytree(base, cached)
    assert saved(AutoModelForImageTextToText.from_pretrained(cached)) == "Owner/Some-Model"
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["revision"] == 40 * "a"
    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert saved(AutoModelForImageTextToText.from_pretrained("copy")) == str(tmp_path / "copy")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    with pytest.raises(InputError, match="loaded from the adapter"):
        saved(merged)


# -- what is refused --------------------------------------------------------------------------------------


def test_settings_that_make_no_sense():
    for values, message in (
        ({"r": 0}, "rank r"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"adapter": "x", "r": 4, "dora": True}, "r, dora cannot be set with adapter"),
    ):
        with pytest.raises(InputError, match=message):
            LoraSettings(**values)
    assert replace(LoraSettings(adapter="x"), dropout=0.1).dropout == 0.1
    for values, message in (
        ({"train": ("vision",)}, "not 'vision'"),
        ({"train": ()}, "names no part"),
        ({"rates": {"tower": 0.0}}, "more than 0"),
        ({"rates": {"all": 1.0}}, "not 'all'"),
    ):
        with pytest.raises(InputError, match=message):
            PartSettings(**values)


def test_what_the_model_does_not_allow(base, model, tmp_path):
    with pytest.raises(InputError, match="'nothing', and no module's name ends so"):
        attach(model, LoraSettings(modules_to_save=("nothing",)))
    tied = tied_model()
    with pytest.raises(InputError, match="does not say where it came from"):
        attach(tied, LoraSettings())
    tied.name_or_path = "owner/name"
    with pytest.raises(InputError, match="tied to the embeddings"):
        attach(tied, LoraSettings(), PartSettings(train=("head",)))
    with pytest.raises(InputError, match="tied to the embeddings"):
        attach(tied, LoraSettings(modules_to_save=("embed_tokens",)))
    with pytest.raises(InputError, match="is no adapter"):
        attach(model, LoraSettings(adapter=str(base)))
    with pytest.raises(InputError, match="merger has a learning rate"):
        attach(model, LoraSettings(), PartSettings(rates={"merger": 1e-3}))
    with pytest.raises(InputError, match="adapters already"):
        attach(model, LoraSettings())
    with pytest.raises(InputError, match="has no adapter to save"):
        save_adapter(AutoModelForImageTextToText.from_pretrained(base), tmp_path)
    save_adapter(model, tmp_path)
    with pytest.raises(InputError, match="keeps its parts"):
        attach(AutoModelForImageTextToText.from_pretrained(base), LoraSettings(adapter=str(tmp_path)), ALL)


def test_an_adapter_of_a_larger_model(model, tmp_path):
    attach(model, LoraSettings(r=2))
    save_adapter(model, tmp_path)
    smaller = write_checkpoint(tmp_path / "smaller", num_hidden_layers=2)
    with pytest.raises(CheckpointMismatchError, match=r"no place for.*layers\.2"):
        attach(AutoModelForImageTextToText.from_pretrained(smaller), LoraSettings(adapter=str(tmp_path)))


def test_without_peft(base):
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from qvl import AutoModelForImageTextToText as M\n"
        "from qvl.errors import MissingDependencyError\n"
        "from qvl.train.lora import LoraSettings, attach\n"
        f"model = M.from_pretrained({str(base)!r})\n"
        "try: attach(model, LoraSettings())\n"
        "except MissingDependencyError as error: print(error)\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 'pip install "qvl[train]"' in done.stdout


# -- parts ------------------------------------------------------------------------------------------------


def test_every_parameter_belongs_to_a_part(model):
    found = {name: part_of(name) for name, _ in model.named_parameters()}
    assert set(found.values()) == set(PARTS)
    assert found["model.language_model.norm.weight"] == "layers"
    assert found["model.visual.patch_embed.proj.weight"] == "tower"
    assert found["model.visual.merger.ln_q.weight"] == "merger"
    assert part_of("objective.reader.weight") is None


@pytest.mark.parametrize("train", [None, ("merger",), ("tower", "head"), ("decoder",), ("layers", "merger")])
def test_full_training_of_some_parts(model, train):
    settings = PartSettings(train=train)
    freeze(model, settings)
    wanted = set(PARTS) if train is None else {*train} - {"decoder"}
    if train == ("decoder",):
        wanted = {"layers", "embeddings", "head"}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (part_of(name) in wanted)
    freeze(model, PartSettings())
    assert len(trained(model)) == len(list(model.parameters()))


def test_a_tied_head_is_the_embeddings():
    model = tied_model()
    freeze(model, PartSettings(train=("embeddings",)))
    assert model.lm_head.weight.requires_grad
    freeze(model, PartSettings(train=("tower",)))
    assert not model.lm_head.weight.requires_grad
    for values in ({"train": ("head",)}, {"rates": {"head": 1e-3}}):
        with pytest.raises(InputError, match="tied to the embeddings"):
            freeze(model, PartSettings(**values))
    rows = parts_table(model, PartSettings(), 1e-4)
    assert [row.part for row in rows] == ["tower", "merger", "layers", "embeddings"]
    assert sum(row.parameters for row in rows) == model.num_parameters()


def test_rates():
    settings = PartSettings(rates={"tower": 1e-6, "decoder": 2e-5, "head": 3e-5})
    rate_of = settings.rate_of(1e-4)
    assert rate_of("model.visual.blocks.0.attn.qkv.lora_A.default.weight") == 1e-6
    assert rate_of("model.visual.merger.mlp.0.weight") == 1e-4
    assert rate_of("model.language_model.layers.0.mlp.up_proj.weight") == 2e-5
    assert rate_of("model.language_model.embed_tokens.weight") == 2e-5
    assert rate_of("lm_head.weight") == 3e-5
    assert rate_of("objective.reader.weight") == 1e-4


def test_the_table(model):
    settings = PartSettings(train=("tower", "decoder"), rates={"tower": 1e-6})
    whole = {row.part: row.parameters for row in parts_table(model, settings, 1e-4)}
    attach(model, LoraSettings(r=4, modules_to_save=("merger",)), settings)
    rows = {row.part: row for row in parts_table(model, settings, 1e-4)}
    assert {part: row.parameters for part, row in rows.items()} == whole
    assert sum(whole.values()) == 190_016
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sum(row.trainable for row in rows.values()) == counted
    assert rows["merger"].trainable == whole["merger"]
    # r x (inputs + outputs) of q, k, v, o and gate, up, down in three layers
    assert rows["layers"].trainable == 3 * 4 * (64 + 48 + 48 + 64 + 80 + 80 + 80)
    assert [rows[part].rate for part in PARTS] == [1e-6, 1e-4, 1e-4, None, None]
    lines = format_table(list(rows.values())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["vision", "tower", "72,160", "6,720", "1e-06"]
    assert lines[-2].split() == ["head", "36,864", "0", "frozen"]
    assert lines[-1].split() == ["in", "all", "190,016", "32,960", "17.35%", "trained"]


def test_packed_weights_are_counted(base):
    model = AutoModelForImageTextToText.from_pretrained(base, quantization_config=QuantizationConfig("int8"))
    assert sum(row.parameters for row in parts_table(model, PartSettings(), 1e-4)) == 190_016
