"""Adapters that PEFT made of transformers' model, read without PEFT: the logits are those of PEFT's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvl import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    QuantizationConfig,
    Qwen2_5_VLConfig,
)
from qvl.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    InputError,
    UnsupportedError,
)
from qvl.modeling import Qwen2_5_VLTextModel
from support.batches import batch, prompt_row
from support.checkpoint import write_checkpoint
from support.tiny import tiny_configs, tiny_oracle

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

ARGUMENTS = batch(prompt_row(4, ("image", (1, 8, 12)), 5), prompt_row(3, ("video", (2, 4, 4)), 6))
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "attn.proj", "gate_proj", "up_proj", "down_proj"]
DECODER = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
TOKENS = ["down_proj", "qkv"]

VARIANTS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": [*ALL_LINEAR, "merger.mlp.0", "merger.mlp.2"]},
    "regex": {"target_modules": DECODER, "lora_alpha": 24},
    "all-linear": {"target_modules": "all-linear", "lora_alpha": 3},
    "rslora": {"target_modules": ["q_proj", "fc1", "up_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 7, "mlp.down_proj": 2},
        "alpha_pattern": {r"layers\.[01]\.self_attn\.q_proj": 40, "^model.visual.blocks.0.mlp.down_proj": 1},
    },
    "dora": {"target_modules": ["q_proj", "down_proj", "qkv", "merger.mlp.0"], "use_dora": True},
    "convolution": {"target_modules": ["proj"]},
    "dora of a convolution": {"target_modules": ["proj"], "use_dora": True},
    "dora of embeddings": {"target_modules": ["embed_tokens"], "use_dora": True},
    "bias of the layers": {"target_modules": ["q_proj", "qkv", "o_proj"], "bias": "lora_only"},
    "all biases": {"target_modules": ["q_proj"], "bias": "all"},
    "bias of B": {"target_modules": ["q_proj", "qkv", "merger.mlp.2"], "lora_bias": True, "lora_alpha": 12},
    "whole modules": {"target_modules": ["v_proj"], "modules_to_save": ["merger", "norm1", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "rows of the embeddings": {"target_modules": TOKENS, "trainable_token_indices": [3, 17, 5]},
    "rows by name": {"target_modules": TOKENS, "trainable_token_indices": {"embed_tokens": [9]}},
}
TIED = {
    "regex": "tied",
    "embeddings": "parted",
    "head": "parted",
    "whole head": "parted",
    "whole embeddings": "parted",
    "embeddings and head": "parted",
    "rows of the embeddings": "tied",
    "both tied": "tied",
    "both whole and tied": "tied",
}
VARIANTS |= {
    "head": {"target_modules": ["lm_head"]},
    "whole head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "whole embeddings": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]},
    "both tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "both whole and tied": {
        "target_modules": ["v_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


def oracle(*, tied: bool = False) -> Any:
    return tiny_oracle(tiny_configs(text={"tie_word_embeddings": tied}, tie_word_embeddings=tied)[0])


def trained(model: Any, **settings: Any) -> Any:
    """PEFT's model with an adapter whose every tensor does something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return wrapped.eval()


def saved(wrapped: Any, folder: Any, base: Any) -> Any:
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of the real cells; transformers fills the others with something."""
    return model(**ARGUMENTS).logits[ARGUMENTS["attention_mask"].bool()]


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-4, rtol=2e-4)


def settings_of(folder: Any) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def change(folder: Any, **values: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(settings_of(folder) | values))


def renamed(folder: Any, rename: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    oracle().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """(folder, PEFT's model) of a plain one on the decoder."""
    wrapped = trained(oracle(), target_modules=DECODER)
    return saved(wrapped, tmp_path / "adapter", base), wrapped


@pytest.mark.parametrize("name", [name for name in VARIANTS if "tied" not in name])
def test_merged_as_peft_merges(name, base, tmp_path):
    wrapped = trained(oracle(), **VARIANTS[name])
    ours = AutoModelForImageTextToText.from_pretrained(saved(wrapped, tmp_path, base))
    assert (logits(ours) - logits(oracle())).abs().max() > 1e-2  # the adapter does something
    assert_same(ours, wrapped)
    assert_same(ours, wrapped.merge_and_unload())


@pytest.mark.parametrize("name", TIED)
def test_a_tied_head(name, tmp_path):
    """As the adapter was trained: PEFT's own merge would change the other one of two that are tied."""
    oracle(tied=True).save_pretrained(tmp_path / "base")
    wrapped = trained(oracle(tied=True), **VARIANTS[name])
    ours = AutoModelForImageTextToText.from_pretrained(saved(wrapped, tmp_path / "new", tmp_path / "base"))
    assert_same(ours, wrapped)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) == (TIED[name] == "tied")
    ours.save_pretrained(tmp_path / "whole")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(again), logits(ours))
    assert again.config.tie_word_embeddings == (TIED[name] == "tied")


def test_a_tied_checkpoint_that_carries_its_head(tmp_path):
    """Some do; while tied it is not what the model uses, so it must not become the head either."""
    oracle(tied=True).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.zeros(200, 32)}, path, {"format": "pt"})
    wrapped = trained(oracle(tied=True), **VARIANTS["embeddings"])
    ours = AutoModelForImageTextToText.from_pretrained(saved(wrapped, tmp_path / "new", tmp_path / "base"))
    assert_same(ours, wrapped)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_larger_vocabulary(tied, tmp_path):
    oracle(tied=tied).save_pretrained(tmp_path / "base")
    larger = oracle(tied=tied)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        larger.resize_token_embeddings(208)
    wrapped = trained(larger, target_modules=["v_proj"])
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "new", save_embedding_layers=True)
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "new")
    assert ours.config.vocab_size == ours.lm_head.out_features == 208
    assert_same(ours, wrapped)


LAYOUTS = {
    "released": lambda name: name.replace("model.model.visual.", "model.visual.").replace(
        "model.model.language_model.", "model.model."
    ),
    "with the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "without PEFT's prefix": lambda name: name.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_names(layout, base, tmp_path):
    wrapped = trained(oracle(), **VARIANTS["list"])
    folder = saved(wrapped, tmp_path, base)
    renamed(folder, LAYOUTS[layout])
    assert_same(AutoModelForImageTextToText.from_pretrained(folder), wrapped)


def test_names_of_whole_modules_as_a_state_dict_has_them(base, tmp_path):
    wrapped = trained(oracle(), **VARIANTS["whole modules"])
    folder = saved(wrapped, tmp_path, base)
    renamed(folder, lambda n: n.replace(".merger.", ".merger.modules_to_save.default."))
    assert_same(AutoModelForImageTextToText.from_pretrained(folder), wrapped)


def test_patterns_of_alpha_written_for_the_released_names(base, tmp_path):
    settings = VARIANTS["patterns"] | {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 40}}
    newer = settings | {"alpha_pattern": {"^model.language_model.layers.0.self_attn.q_proj": 40}}
    wrapped = trained(oracle(), **newer)
    folder = saved(wrapped, tmp_path, base)
    renamed(folder, LAYOUTS["released"])
    change(folder, alpha_pattern=settings["alpha_pattern"])
    assert_same(AutoModelForImageTextToText.from_pretrained(folder), wrapped)


def test_the_sum_is_rounded_once(base, tmp_path):
    oracle().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    wrapped = trained(oracle(), target_modules=DECODER)
    folder = saved(wrapped, tmp_path / "adapter", tmp_path / "half")
    ours = AutoModelForImageTextToText.from_pretrained(folder)
    assert ours.dtype == torch.bfloat16
    name = "language_model.layers.1.mlp.down_proj"
    down, up = (
        load_file(folder / "adapter_model.safetensors")[f"base_model.model.model.{name}.lora_{half}.weight"]
        for half in "AB"
    )
    stored = load_file(tmp_path / "half" / "model.safetensors")
    weight = next(tensor for key, tensor in stored.items() if key.endswith("layers.1.mlp.down_proj.weight"))
    exact = (weight.float() + 2.0 * (up @ down)).to(torch.bfloat16)
    assert torch.equal(ours.model.get_submodule(name).weight, exact)
    wide = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    torch.testing.assert_close(wide.model.get_submodule(name).weight, weight.float() + 2.0 * (up @ down))


def test_the_base_stays_as_it_is(adapter, base):
    before = (base / "model.safetensors").read_bytes()
    plain = AutoModelForImageTextToText.from_pretrained(base)
    first = logits(plain)
    AutoModelForImageTextToText.from_pretrained(adapter[0])
    assert torch.equal(logits(plain), first)
    assert (base / "model.safetensors").read_bytes() == before


def test_quantized_after_the_sum(adapter, tmp_path):
    folder, wrapped = adapter
    config = QuantizationConfig("int8")
    ours = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=config)
    AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(tmp_path / "whole")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole", quantization_config=config)
    assert torch.equal(logits(ours), logits(merged))
    assert (logits(ours) - logits(wrapped)).abs().max() < 0.2 * logits(wrapped).abs().max()


def test_parts_of_the_model(adapter):
    folder, wrapped = adapter
    merged = wrapped.merge_and_unload().model
    for model_class, theirs in ((AutoModel, merged), (Qwen2_5_VLTextModel, merged.language_model)):
        ours = model_class.from_pretrained(folder)
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor)


# -- where the base and the small files are ---------------------------------------------------------------


@pytest.fixture
def moved(tmp_path):
    """A base and its adapter in one folder, the base named by a relative path."""
    write_checkpoint(tmp_path / "models" / "base")
    theirs = peft_on_ours(tmp_path / "models" / "base")
    saved(theirs, tmp_path / "models" / "adapter", "../base")
    return tmp_path / "models"


def peft_on_ours(folder: Any) -> Any:
    return trained(AutoModelForImageTextToText.from_pretrained(folder), target_modules=DECODER)


def test_a_relative_base_moves_with_its_adapter(moved, tmp_path):
    first = AutoModelForImageTextToText.from_pretrained(moved / "adapter")
    shutil.move(moved, tmp_path / "elsewhere")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "elsewhere" / "adapter")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "elsewhere" / "base")
    assert not torch.equal(plain.state_dict()[name], again.state_dict()[name])
    assert again.generation_config.eos_token_id == plain.generation_config.eos_token_id is not None


def test_another_base(moved):
    change(moved / "adapter", base_model_name_or_path="/nowhere")
    with pytest.raises(CheckpointNotFoundError, match=r"'/nowhere', which is not there.*pass base="):
        AutoModelForImageTextToText.from_pretrained(moved / "adapter")
    options = {"base": moved / "base"}
    assert AutoModelForImageTextToText.from_pretrained(moved / "adapter", **options).device.type == "cpu"
    assert AutoProcessor.from_pretrained(moved / "adapter", **options).tokenizer.get_vocab()
    assert Qwen2_5_VLConfig.from_pretrained(moved / "adapter", **options).vocab_size == 1152
    with pytest.raises(InputError, match="holds none"):
        AutoModelForImageTextToText.from_pretrained(moved / "base", base=moved / "base")


def test_a_bundled_base(tmp_path):
    wrapped = peft_on_ours("qvl/tiny")
    folder = saved(wrapped, tmp_path / "adapter", "qvl/tiny")
    ours = AutoModelForImageTextToText.from_pretrained(folder)
    assert ours.config.vocab_size == wrapped.config.vocab_size
    assert "<|image_pad|>" in AutoTokenizer.from_pretrained(folder).get_vocab()


def test_processor_files_of_the_adapter_come_first(moved):
    plain = AutoProcessor.from_pretrained(moved / "base")
    assert AutoProcessor.from_pretrained(moved / "adapter").chat_template == plain.chat_template
    plain.image_processor.max_pixels = 28 * 28 * 5
    plain.save_pretrained(moved / "adapter")
    (moved / "adapter" / "generation_config.json").write_text('{"max_new_tokens": 7}')
    assert AutoProcessor.from_pretrained(moved / "adapter").image_processor.max_pixels == 28 * 28 * 5
    for path in moved.glob("base/*token*"):  # with all its own files nothing is read from the base
        path.unlink()
    assert AutoProcessor.from_pretrained(moved / "adapter").tokenizer.get_vocab()
    ours = AutoModelForImageTextToText.from_pretrained(moved / "adapter")
    assert ours.generation_config.max_new_tokens == 7


def test_a_tokenizer_saved_alone_does_not_bring_its_template(moved):
    """Trainers often save the tokenizer beside an adapter; its template may know no pictures."""
    base = AutoProcessor.from_pretrained(moved / "base")
    tokenizer = AutoTokenizer.from_pretrained(moved / "base")
    tokenizer.chat_template = "{{ messages }} without pictures"
    tokenizer.save_pretrained(moved / "adapter")
    assert (moved / "adapter" / "tokenizer.json").is_file()
    processor = AutoProcessor.from_pretrained(moved / "adapter")
    assert processor.chat_template == base.chat_template
    assert processor.tokenizer.chat_template == "{{ messages }} without pictures"


def test_the_command_line_takes_an_adapter(moved, run, tmp_path):
    code, _, err = run("ask", "What?", "--model", moved / "adapter", "--max-new-tokens", 3)
    assert (code, err) == (0, "")
    assert run("info", moved / "adapter")[0] == 0
    code, _, err = run("quantize", moved / "adapter", tmp_path / "small", "--weights", "int8")
    assert (code, err) == (0, "")
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert "adapter_config.json" not in names and "tokenizer.json" in names
    AutoProcessor.from_pretrained(tmp_path / "small")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "small")


def test_without_peft(moved):
    """peft is not imported: it would bring transformers along."""
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from qvl import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        f"M.from_pretrained({str(moved / 'adapter')!r}); P.from_pretrained({str(moved / 'adapter')!r})\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "LOHA"}, "of type LOHA.*merge it with the program"),
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "of type PROMPT_TUNING"),
        ({"peft_type": None}, "of type None"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    ],
    ids=["loha", "ia3", "prompt", "none", "replication", "alora", "pissa"],
)
def test_other_kinds(adapter, values, message):
    change(adapter[0], **values)
    with pytest.raises(UnsupportedError, match=message):
        AutoModelForImageTextToText.from_pretrained(adapter[0])


def test_a_pickled_adapter(adapter):
    (adapter[0] / "adapter_model.safetensors").rename(adapter[0] / "adapter_model.bin")
    with pytest.raises(CheckpointNotFoundError, match=r"adapter_model.bin is never opened"):
        AutoModelForImageTextToText.from_pretrained(adapter[0])


def test_a_quantized_base(moved, run):
    assert run("quantize", moved / "base", moved / "small", "--weights", "int8")[0] == 0
    with pytest.raises(UnsupportedError, match=r"are quantized.*base= with the model at full width"):
        AutoModelForImageTextToText.from_pretrained(moved / "adapter", base=moved / "small")


def test_an_adapter_of_an_adapter(moved):
    shutil.copytree(moved / "adapter", moved / "second")
    change(moved / "second", base_model_name_or_path="../adapter")
    with pytest.raises(CheckpointError, match=r"is itself an adapter.*qvl merge"):
        AutoModelForImageTextToText.from_pretrained(moved / "second")


def test_a_model_beside_its_adapter(moved):
    shutil.copy(moved / "base" / "model.safetensors", moved / "adapter")
    with pytest.raises(CheckpointError, match="both a whole model and an adapter"):
        AutoModelForImageTextToText.from_pretrained(moved / "adapter")


def test_no_base_is_named(moved):
    change(moved / "adapter", base_model_name_or_path=None)
    with pytest.raises(CheckpointNotFoundError, match="does not name the model"):
        AutoProcessor.from_pretrained(moved / "adapter")


def test_broken_files(adapter):
    path = adapter[0] / "adapter_config.json"
    whole = path.read_text()
    for text, message in (
        ("{", "JSON"),
        ("[]", "JSON"),
        (whole.replace('"lora_alpha"', '"x"'), "lora_alpha"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointCorruptError, match=message):
            AutoModelForImageTextToText.from_pretrained(adapter[0])
    path.write_text(whole)
    weights = adapter[0] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointCorruptError, match="truncated"):
        AutoModelForImageTextToText.from_pretrained(adapter[0])


MISFITS = {
    "of another model": (lambda name: name.replace("layers.2", "layers.9"), "layers.9"),
    "half a pair": (lambda name: name.replace("0.mlp.up_proj.lora_A", "0.mlp.up_proj.lora_X"), "lora_X|pair"),
    "another shape": (
        lambda name: name.replace("mlp.down", "mlp.?").replace("mlp.up", "mlp.down").replace("?", "up"),
        "do not fit.*down_proj",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_adapter_that_does_not_fit(adapter, case):
    rename, message = MISFITS[case]
    renamed(adapter[0], rename)
    with pytest.raises(CheckpointMismatchError, match=message):
        AutoModelForImageTextToText.from_pretrained(adapter[0])


def test_rows_that_the_config_does_not_name(base, tmp_path):
    folder = saved(trained(oracle(), **VARIANTS["rows by name"]), tmp_path, base)
    for rows in ({"embed_tokens": [1, 2]}, {"embed_tokens": [200]}, None):
        change(folder, trainable_token_indices=rows)
        with pytest.raises(CheckpointMismatchError, match="embed_tokens"):
            AutoModelForImageTextToText.from_pretrained(folder)
