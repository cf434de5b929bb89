"""The bundled model answers the same on every instruction set, and with a cache of fewer bits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import qvl
from qvl.errors import GenerationError, UnsupportedError
from qvl.ops.kernels import load

SETS = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "neon")
FOLDER = str(Path(qvl.__file__).parent / "assets" / "tiny")
NEW = 24


@cache
def model(dtype: torch.dtype):
    return qvl.Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER, dtype=dtype).eval()


@cache
def prompts():
    """Pictures of several sizes in one left-padded batch."""
    processor = qvl.AutoProcessor.from_pretrained(FOLDER)
    pictures = [picture(seed) for seed in range(4)]
    questions = [
        "What does it say?",
        "Which digits?",
        "Read the number.",
        "Say what you see, please, in words.",
    ]
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": p}, {"type": "text", "text": q}]}]
        for p, q in zip(pictures, questions, strict=True)
    ]
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )


def picture(seed: int):
    from PIL import Image

    size = (28 * (3 + seed), 28 * 3)
    noise = torch.randint(
        0, 255, (size[1] // 14, size[0] // 14), generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(noise.to(torch.uint8).numpy()).resize(size)


def answers(dtype: torch.dtype, **settings):
    out = model(dtype).generate(
        **prompts(),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        prompt_lookup_num_tokens=0,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.fixture
def on(monkeypatch):
    def choose(name: str) -> None:
        if name != "off":
            try:
                if load(name) is None:
                    pytest.skip("qvl was installed without its kernels: no C++ compiler")
            except UnsupportedError:
                pytest.skip(f"this processor has no {name}")
        monkeypatch.setenv("QVL_KERNELS", name)

    return choose


@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set_gives_torchs_answers(on, name):
    on("off")
    wanted, wanted_logits = answers(torch.float32)
    on(name)
    ids, logits = answers(torch.float32)
    assert torch.equal(ids, wanted)
    assert not torch.equal(logits, wanted_logits)  # or the kernels were not used at all
    torch.testing.assert_close(logits, wanted_logits, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["off", ""], ids=["torch", "kernels"])
@pytest.mark.parametrize(("kv_dtype", "off"), [("float32", 0.0), ("bfloat16", 0.05), ("int8", 0.15)])
def test_keys_and_values_in_fewer_bits(on, name, kv_dtype, off):
    on(name)
    wanted, wanted_logits = answers(torch.float32)
    ids, logits = answers(torch.float32, kv_dtype=kv_dtype)
    same = (ids == wanted).all(dim=1)
    assert same.float().mean() >= 0.75
    gap = (logits - wanted_logits)[:, same].abs().max() / wanted_logits.abs().max()
    assert gap <= off
    assert (gap > 0) == (off > 0)


@pytest.mark.parametrize("name", ["off", ""], ids=["torch", "kernels"])
def test_the_cache_is_as_small_as_asked(on, name):
    on(name)
    sizes = {}
    for kv_dtype in (None, "bfloat16", "int8"):
        out = model(torch.float32).generate(
            **prompts(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True, kv_dtype=kv_dtype
        )
        cache = out.past_key_values
        sizes[kv_dtype] = cache.nbytes
        keys, values = cache[0]
        assert keys.dtype == values.dtype == torch.float32
        assert keys.isfinite().all()
    assert sizes["bfloat16"] * 2 == sizes[None]
    assert sizes["int8"] * 3.4 < sizes[None]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(GenerationError, match="kv_dtype is 'int3'; expected None or one of float32"):
        model(torch.float32).generate(**prompts(), max_new_tokens=1, kv_dtype="int3")
    out = model(torch.float32).generate(
        **prompts(), max_new_tokens=1, do_sample=False, return_dict_in_generate=True
    )
    with pytest.raises(GenerationError, match="either past_key_values or kv_dtype"):
        model(torch.float32).generate(
            **prompts(), max_new_tokens=1, past_key_values=out.past_key_values, kv_dtype="int8"
        )


def test_a_compiled_layer_goes_past_the_kernels():
    """`torch.compile` traces torch's operators; addresses mean nothing to it."""
    layer = model(torch.float32).model.language_model.layers[0]
    attend = model(torch.float32).model.language_model.packed_attends((9,))[0]
    half = layer.self_attn.head_dim // 2
    x, cos, sin = (
        torch.randn(9, layer.self_attn.o_proj.in_features),
        torch.randn(9, half),
        torch.randn(9, half),
    )
    with torch.no_grad():
        wanted = layer(x, cos, sin, attend)
        got = torch.compile(layer, backend="eager")(x, cos, sin, attend)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
