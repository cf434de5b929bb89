"""Nothing that transformers' ``generate()`` takes is silently ignored: it is read, or refused by name."""

from __future__ import annotations

import inspect

import pytest
import torch
import transformers

from qvl.errors import InputTypeError, UnsupportedError
from qvl.generation import GenerationConfig, GenerationMixin
from qvl.generation.inputs import ModelInputs
from qvl.generation.settings import UNSUPPORTED_ARGUMENTS, check_arguments, merge
from qvl.generation.validation import unsupported_settings
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from support.tiny import random_ids, tiny_configs

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]
# Of a saved file, not of generating.
BOOKKEEPING = {"transformers_version"}


def settings_of_transformers():
    return {n: v for n, v in vars(transformers.GenerationConfig()).items() if not n.startswith("_")}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(tiny_configs()[1]).eval()


def test_the_arguments_stand_where_transformers_has_them():
    expected = inspect.signature(transformers.GenerationMixin.generate).parameters
    ours = inspect.signature(GenerationMixin.generate).parameters
    names = [name for name in expected if name != "kwargs"]
    assert list(ours)[: len(names)] == names
    assert {n: ours[n].default for n in names} == {n: expected[n].default for n in names}


def test_every_setting_is_read_or_refused():
    read, refused = set(GenerationConfig.names()), set(unsupported_settings())
    assert set(settings_of_transformers()) - BOOKKEEPING <= read | refused
    assert not read & refused


OWN = {"seed", "kv_dtype"}  # settings that transformers does not have


def test_defaults():
    theirs = settings_of_transformers()
    for name in set(GenerationConfig.names()) - OWN:
        assert getattr(GenerationConfig(), name) == theirs[name], name
    for name, neutral in unsupported_settings().items():
        assert theirs.get(name) is None or theirs[name] in neutral, name


@pytest.mark.parametrize("name", sorted(set(unsupported_settings()) - {"disable_compile"}))
def test_other_settings_are_refused(model, name):
    with pytest.raises(UnsupportedError, match=name):
        model.generate(random_ids(1, 4), max_new_tokens=2, **{name: "asked for"})
    with pytest.raises(UnsupportedError, match=name):
        merge(GenerationConfig(), GenerationConfig(**{name: "asked for"}), {})


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_ARGUMENTS))
def test_other_arguments_are_refused(model, name):
    with pytest.raises(UnsupportedError, match=name):
        model.generate(random_ids(1, 4), max_new_tokens=2, **{name: "asked for"})


def test_arguments_of_forward_are_read_or_refused():
    """What the model's own ``forward`` takes gets through transformers' check of unused arguments."""
    theirs = inspect.signature(transformers.Qwen2_5_VLForConditionalGeneration.forward).parameters
    read = {*ModelInputs.names(), *GenerationConfig.names(), "past_key_values"}
    for name in set(theirs) - {"self", "kwargs"} - read:
        with pytest.raises(UnsupportedError, match=name):
            check_arguments({name: "asked for"}, set())


def test_what_asks_for_nothing_is_taken(model):
    neutral = {name: values[-1] for name, values in unsupported_settings().items() if values}
    nothing = dict.fromkeys(UNSUPPORTED_ARGUMENTS) | {"synced_gpus": False}
    ids = random_ids(1, 4)
    plain = model.generate(ids, max_new_tokens=4)
    assert torch.equal(model.generate(ids, max_new_tokens=4, **neutral, **nothing), plain)


def test_a_config_of_transformers_is_refused_with_the_way_out(model):
    with pytest.raises(InputTypeError, match=r"qvl\.GenerationConfig"):
        model.generate(random_ids(1, 4), transformers.GenerationConfig(max_new_tokens=3))
