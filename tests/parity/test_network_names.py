"""The names and shapes of the released sizes, built without memory, against transformers'."""

import pytest
import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.network.vlm import CausalLM
from support.released import RELEASED, released_settings

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("size", RELEASED)
def test_names_and_shapes(size):
    import transformers

    with torch.device("meta"):
        theirs = transformers.Qwen2_5_VLForConditionalGeneration(
            transformers.Qwen2_5_VLConfig(**released_settings(size))
        )
        ours = CausalLM(Qwen2_5_VLConfig(**released_settings(size)))
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == expected
