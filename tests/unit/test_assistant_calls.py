"""Calls with an assistant model that cannot help, each refused with its reason; settings; kept times."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import GenerationError, InputTypeError
from qvl.generation import GenerationConfig
from qvl.generation.speculation import assistant_settings, step_times
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from support.tiny import random_ids, tiny_settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def made(**settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings(**settings))).eval()


@pytest.fixture(scope="module")
def model():
    return made()


class Vocabulary:
    def __init__(self, **ids):
        self.ids = ids

    def get_vocab(self):
        return self.ids


def call(model, draft, **settings):
    return model.generate(random_ids(1, 6), max_new_tokens=4, assistant_model=draft, **settings)


class TestRefusals:
    def test_what_is_no_model(self, model):
        with pytest.raises(InputTypeError, match=r"loaded Qwen2\.5-VL model, .*not str"):
            call(model, "a name")

    def test_another_vocabulary(self, model):
        draft = made(text={"vocab_size": 208})
        with pytest.raises(
            GenerationError, match=r"208 rows of vocabulary and the model 200.*assistant_tokenizer="
        ):
            call(model, draft)
        same, other = Vocabulary(a=1), Vocabulary(b=1)
        assert call(model, draft, tokenizer=same, assistant_tokenizer=copy.copy(same)).shape == (1, 10)
        with pytest.raises(GenerationError, match="numbers other tokens"):
            call(model, draft, tokenizer=same, assistant_tokenizer=other)
        with pytest.raises(GenerationError, match="numbers other tokens"):
            call(model, made(), tokenizer=same, assistant_tokenizer=other)

    def test_other_placeholders(self, model):
        draft = made()
        draft.config.image_token_id = 191
        with pytest.raises(GenerationError, match="image_token_id 191 and the model 192"):
            call(model, draft)

    def test_other_patches(self, model):
        with pytest.raises(GenerationError, match="spatial_merge_size 1 and the model 2"):
            call(model, made(vision={"spatial_merge_size": 1}))

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [({"num_beams": 2}, "beam search"), ({"prompt_lookup_num_tokens": 3}, "two ways of guessing")],
        ids=str,
    )
    def test_methods_that_do_not_go_together(self, model, settings, reason):
        with pytest.raises(GenerationError, match=reason):
            call(model, made(), **settings)

    def test_a_tokenizer_without_its_model(self, model):
        with pytest.raises(GenerationError, match="without an assistant_model"):
            call(model, None, assistant_tokenizer=Vocabulary())

    @pytest.mark.parametrize(
        "settings",
        [
            {"num_assistant_tokens": 0},
            {"num_assistant_tokens": 2.5},
            {"num_assistant_tokens_schedule": "sometimes"},
            {"assistant_confidence_threshold": 1.5},
            {"prompt_lookup_num_tokens": -1},
        ],
        ids=str,
    )
    def test_values_that_make_no_sense(self, model, settings):
        with pytest.raises(GenerationError, match=next(iter(settings))):
            call(model, made(), **settings)


def test_who_decides_how_far_it_drafts():
    silent, own = made(), made()
    own.generation_config.num_assistant_tokens = 7
    own.generation_config.assistant_confidence_threshold = None
    assert assistant_settings(GenerationConfig(), silent) == {}
    assert assistant_settings(GenerationConfig(), own) == {
        "num_assistant_tokens": 7,
        "assistant_confidence_threshold": 0.0,
    }
    assert assistant_settings(GenerationConfig(num_assistant_tokens=3), own)["num_assistant_tokens"] == 3
    heuristic = GenerationConfig(num_assistant_tokens_schedule="heuristic")
    assert assistant_settings(heuristic, silent) == {
        "num_assistant_tokens": 20,
        "num_assistant_tokens_schedule": "heuristic",
    }


class TestKeptTimes:
    def test_the_next_call_starts_from_them(self, model):
        model.generate(random_ids(1, 4), max_new_tokens=8)
        with step_times(model) as times:
            assert times.known(1)
            with step_times(model) as meanwhile:  # another thread
                assert not meanwhile.known(1)

    def test_another_number_of_threads_is_another_machine(self, model):
        model.generate(random_ids(1, 4), max_new_tokens=8)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(before + 1)
            with step_times(model) as times:
                assert not times.known(1)
        finally:
            torch.set_num_threads(before)

    def test_the_model_can_still_be_copied_and_saved(self, model):
        model.generate(random_ids(1, 4), max_new_tokens=8)
        assert not [name for name in model.state_dict() if "times" in name]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            mine, same = (one.generate(random_ids(1, 4), max_new_tokens=4) for one in (model, twin))
            assert torch.equal(mine, same)
