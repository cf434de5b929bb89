"""From files to a module: the layouts, tied heads, dtypes, parts of a model, mismatches, saving, memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import CheckpointMismatchError, InputError, UnsupportedError
from qvl.network.vlm import CausalLM
from qvl.weights.checkpoint import save_checkpoint
from qvl.weights.files import SINGLE
from qvl.weights.load import LoadingOptions, load_checkpoint, load_model
from qvl.weights.names import to_internal, to_released
from support.tiny import tiny_settings


def tiny(seed=0, **text):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CausalLM(Qwen2_5_VLConfig(**tiny_settings(text=text)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
    return model


def load(folder, **options):
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    return load_model(CausalLM, config, folder, LoadingOptions.read(options))


def rewrite(folder, change):
    """Replace the stored tensors of ``folder`` by ``change(stored)``."""
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE)


@pytest.fixture
def saved(tmp_path):
    model = tiny()
    save_checkpoint(model, tmp_path)
    return model, tmp_path


def assert_same(ours, theirs):
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    "stored, internal",
    [
        ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_released_names_both_ways(stored, internal):
    assert to_internal(stored) == internal
    assert to_internal(internal) == internal
    assert to_released(internal) == stored


def test_names_of_parts_saved_alone_and_of_nothing_known():
    assert to_internal("language_model.norm.weight") == "model.language_model.norm.weight"
    assert to_internal("norm.weight") == "model.language_model.norm.weight"
    assert to_internal("merger.ln_q.weight") == "model.visual.merger.ln_q.weight"
    assert to_internal("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert to_internal("optimizer.step") == "optimizer.step"


LAYOUTS = {
    "released": lambda stored: stored,
    "newer": lambda stored: {to_internal(name): tensor for name, tensor in stored.items()},
    "with derived tables": lambda stored: {**stored, "model.rotary_emb.inv_freq": torch.ones(2)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(saved, layout):
    model, folder = saved
    rewrite(folder, LAYOUTS[layout])
    assert_same(load(folder), model)


def test_saved_names_are_the_released_ones(saved):
    names = load_file(saved[1] / SINGLE).keys()
    assert {name.split(".")[0] for name in names} == {"visual", "model", "lm_head"}
    assert not any(name.startswith(("model.visual", "model.language_model")) for name in names)
    config = json.loads((saved[1] / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["CausalLM"], "float32")


@pytest.mark.parametrize("stray", [False, True])
def test_a_tied_head_is_stored_once_and_a_stray_one_is_passed_over(tmp_path, stray):
    model = tiny(tie_word_embeddings=True)
    save_checkpoint(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / SINGLE)
    if stray:
        rewrite(tmp_path, lambda stored: {**stored, "lm_head.weight": torch.zeros(200, 32)})
    loaded = load(tmp_path)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert_same(loaded, model)


def test_a_tied_tensor_under_the_heads_name_alone(tmp_path):
    model = tiny(tie_word_embeddings=True)
    save_checkpoint(model, tmp_path)
    rewrite(tmp_path, lambda s: {("lm_head.weight" if "embed_tokens" in n else n): t for n, t in s.items()})
    assert_same(load(tmp_path), model)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(saved):
    def spoil(stored):
        del stored["model.norm.weight"]
        stored["model.layers.7.extra"] = torch.ones(1)
        stored["visual.merger.ln_q.weight"] = torch.ones(5)
        return stored

    rewrite(saved[1], spoil)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(saved[1])
    message = str(caught.value)
    assert "1 missing: model.language_model.norm.weight" in message
    assert "1 unexpected: model.layers.7.extra" in message
    assert "model.visual.merger.ln_q.weight (stored (5,), needed (32,))" in message
    assert isinstance(caught.value, OSError)


def test_integers_where_numbers_with_fractions_belong(saved):
    rewrite(saved[1], lambda stored: {**stored, "model.norm.weight": torch.ones(32, dtype=torch.int64)})
    with pytest.raises(CheckpointMismatchError, match=r"norm\.weight \(stored as integers"):
        load(saved[1])


def test_many_names_are_counted(saved):
    rewrite(saved[1], lambda stored: {k: v for k, v in stored.items() if "visual" not in k})
    with pytest.raises(CheckpointMismatchError, match=r"\d\d missing: .* and \d+ more"):
        load(saved[1])


def test_the_same_tensor_in_two_layouts(saved):
    name = "model.norm.weight"
    rewrite(saved[1], lambda stored: {**stored, to_internal(name): stored[name].clone()})
    with pytest.raises(CheckpointMismatchError, match="1 unexpected"):
        load(saved[1])


def test_a_failed_load_leaves_the_module_alone(saved):
    rewrite(saved[1], lambda stored: {k: v for k, v in stored.items() if k != "model.norm.weight"})
    other = tiny(seed=1)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointMismatchError):
        load_checkpoint(other, saved[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_load_checkpoint_into_an_existing_module(saved):
    other = tiny(seed=1)
    load_checkpoint(other, saved[1], dtype=torch.bfloat16)
    assert other.lm_head.weight.dtype == torch.bfloat16
    load_checkpoint(other, saved[1])
    assert_same(other, saved[0])


@pytest.mark.parametrize(
    "dtype, expected",
    [
        ("auto", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        (None, torch.float32),
    ],
)
def test_dtype(saved, dtype, expected):
    model = load(saved[1], dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config.dtype == expected


def test_auto_dtype_is_the_configs_then_the_files(saved):
    model, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert load(folder).lm_head.weight.dtype == torch.bfloat16
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    save_checkpoint(model.to(torch.float16), folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).lm_head.weight.dtype == torch.float16


def test_loading_options():
    kwargs = {"torch_dtype": "bfloat16", "low_cpu_mem_usage": True, "use_safetensors": True, "other": 1}
    options = LoadingOptions.read(kwargs)
    assert (options.dtype, options.device_map, kwargs) == (torch.bfloat16, None, {"other": 1})
    assert LoadingOptions.read({}).dtype == "auto"
    for wrong in ("int8", "nonsense", torch.int8, 3):
        with pytest.raises(InputError, match="floating-point dtype"):
            LoadingOptions.read({"dtype": wrong})
    with pytest.raises(UnsupportedError, match="pickled"):
        LoadingOptions.read({"use_safetensors": False})


def test_the_callers_config_is_left_alone(saved):
    config = Qwen2_5_VLConfig.from_pretrained(saved[1])
    before = config.to_dict()
    model = load_model(CausalLM, config, saved[1], LoadingOptions(torch.float16, attn_implementation="eager"))
    assert (config.to_dict(), config._attn_implementation) == (before, None)
    assert model.config._attn_implementation == "eager"


def test_loaded_weights_can_be_trained_and_saved_over_themselves(saved):
    folder = saved[1]
    loaded = load(folder)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1.0)
    save_checkpoint(loaded, folder)
    assert_same(load(folder), loaded)


def test_parts_of_a_model(saved):
    from qvl.modeling import Qwen2_5_VLModel, Qwen2_5_VLTextModel

    model, folder = saved
    assert_same(Qwen2_5_VLModel.from_pretrained(folder), model.model)
    text = Qwen2_5_VLTextModel.from_pretrained(folder)
    assert_same(text, model.model.language_model)
    text.save_pretrained(folder / "text")
    assert "model.norm.weight" in load_file(folder / "text" / SINGLE)
    assert_same(Qwen2_5_VLTextModel.from_pretrained(folder / "text"), text)


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    model = tiny()
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_checkpoint(model, tmp_path, state_dict=other, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = load(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], other[name]) for name in other)


MEASURE = """
import sys, torch
from pathlib import Path
from qvl.config import Qwen2_5_VLConfig
from qvl.modeling.memory import stored_bytes
from qvl.network.vlm import CausalLM
from qvl.weights.load import LoadingOptions, load_model
from qvl.weights.quantize import TorchAoConfig
from qvl.weights.quantized_files import is_quantized

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

folder = Path(sys.argv[1])
config = Qwen2_5_VLConfig.from_pretrained(folder)
warm_up = Path(sys.argv[3])  # imports and lazily built tables of torch are not what is measured
quantization = TorchAoConfig(sys.argv[4]) if sys.argv[4:] else None
options = LoadingOptions(torch.float16, quantization_config=quantization)
load_model(CausalLM, Qwen2_5_VLConfig.from_pretrained(warm_up), warm_up, options)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
before = resident("VmRSS")
options = {"dtype": sys.argv[2]}
if sys.argv[4:]:
    options["quantization_config"] = TorchAoConfig(sys.argv[4])
model = load_model(CausalLM, config, folder, LoadingOptions.read(options))
weights = sum(stored_bytes(p) for p in model.parameters())
for p in model.parameters():  # touches every page that is still only mapped
    if not is_quantized(p):
        p.detach().sum()
print(resident("VmHWM") - before, weights)
"""


@pytest.fixture(scope="module")
def large_checkpoints(tmp_path_factory):
    """Some 200 MB of bfloat16, in one file and in two. The head, which comes last, is a fifth of it."""
    folder = tmp_path_factory.mktemp("large")
    settings = tiny_settings(
        text={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "vocab_size": 18_000}
        | {"num_attention_heads": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
    )
    with torch.device("meta"):
        model = CausalLM(Qwen2_5_VLConfig(**settings))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    save_checkpoint(model, folder / "single")
    save_checkpoint(model, folder / "sharded", max_shard_size="120MB")
    return folder


def measure(*arguments):
    """(bytes above the start at the worst moment, bytes of the weights) in a process of its own.

    Resident memory counts mapped pages of the files too, so nothing is hidden by mapping them.
    """
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@on_linux
@pytest.mark.parametrize(
    "files, dtype",
    [("single", "auto"), ("sharded", "auto"), ("single", "float32"), ("sharded", "float16")],
)
def test_peak_memory_is_at_most_a_tenth_above_the_weights(large_checkpoints, saved, files, dtype):
    peak, weights = measure(large_checkpoints / files, dtype, saved[1])
    assert weights > 180e6 * (2 if dtype == "float32" else 1)
    assert peak <= 1.1 * weights


@on_linux
def test_quantizing_never_holds_the_whole_model_at_full_width(large_checkpoints, saved):
    pytest.importorskip("torchao")
    peak, weights = measure(large_checkpoints / "single", "float16", saved[1], "int8_weight_only")
    assert weights < 150e6
    assert peak <= 1.1 * weights + 32e6  # the widest layer's temporaries
