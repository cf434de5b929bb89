"""The public surface: listed once, importable, and light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qvl

DOCUMENTED = [
    "Qwen2_5_VLConfig",
    "Qwen2_5_VLTextConfig",
    "Qwen2_5_VLVisionConfig",
    "Qwen2_5_VLProcessor",
    "Qwen2VLImageProcessor",
    "Qwen2_5_VLVideoProcessor",
    "Qwen2VLVideoProcessor",
    "Qwen2TokenizerFast",
    "Qwen2_5_VLTextModel",
    "Qwen2_5_VLModel",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2_5_VLModelOutputWithPast",
    "Qwen2_5_VLCausalLMOutputWithPast",
    "BaseModelOutputWithPast",
    "DynamicCache",
    "StaticCache",
    "GenerationConfig",
    "TextStreamer",
    "TextIteratorStreamer",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "LogitsProcessor",
    "LogitsProcessorList",
    "AutoConfig",
    "AutoProcessor",
    "AutoTokenizer",
    "AutoModel",
    "AutoModelForImageTextToText",
    "TorchAoConfig",
    "pipeline",
]
OURS = ["QuantizationConfig"]


def test_what_the_page_names_is_public():
    assert {*DOCUMENTED, *OURS} <= set(qvl.__all__)


@pytest.mark.parametrize("name", qvl.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qvl, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"qvl\.__all__"):
        qvl.Qwen3  # noqa: B018


def test_importing_qvl_brings_no_torch():
    code = (
        "import sys, qvl; print(sorted({'torch', 'numpy', 'PIL', 'av', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_qvl_takes_well_under_a_second():
    code = "import time; t = time.perf_counter(); import qvl; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3, times


def test_nothing_of_qvl_brings_transformers():
    code = "import sys, qvl\nfor n in qvl.__all__: getattr(qvl, n)\nprint('transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
