"""A skeleton has every name and shape of its model, and costs neither memory nor torch's compiler."""

import subprocess
import sys
from pathlib import Path

from qvl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qvl.weights.skeleton import skeleton
from support.tiny import tiny_settings


def test_names_and_shapes_are_those_of_the_model():
    config = Qwen2_5_VLConfig(**tiny_settings())
    bones = skeleton(Qwen2_5_VLForConditionalGeneration, config)
    model = Qwen2_5_VLForConditionalGeneration(config)
    assert {name: tensor.shape for name, tensor in bones.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in bones.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_loading_and_answering_leave_the_compiler_alone():
    """It takes as long to import as everything else together."""
    code = (
        "import sys; from qvl.cli import main;"
        "main(['ask', 'examples/pictures/digits.png', 'What number is this?']);"
        "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout == "407\nTrue False\n"
