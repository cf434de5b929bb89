"""GenerationConfig: defaults, checks, files, and who wins when several configs meet."""

import json

import pytest

from qvl.errors import CheckpointCorruptError, CheckpointNotFoundError, GenerationError, UnsupportedError
from qvl.generation.config import GenerationConfig
from qvl.generation.settings import check_arguments, decide, merge, sampling_params
from qvl.types import SamplingParams

RELEASED = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}


def released() -> GenerationConfig:
    return GenerationConfig.from_dict(RELEASED)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": True},
        {"temperature": 0.0, "do_sample": True},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"top_p": -0.1},
        {"top_k": -1},
        {"min_p": 2},
        {"typical_p": 0},
        {"repetition_penalty": 0},
        {"num_beams": 0},
        {"early_stopping": "sometimes"},
        {"num_return_sequences": 3, "num_beams": 2},
        {"num_return_sequences": 2},
        {"stop_strings": [""]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [3]},
        {"max_time": -1},
        {"prompt_lookup_num_tokens": 2, "num_beams": 2},
        {"streamer": object()},
    ],
)
def test_values_that_make_no_sense(settings):
    with pytest.raises(GenerationError) as caught:
        GenerationConfig(**settings)
    assert next(iter(settings)) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty_alpha": 0.6},
        {"num_beam_groups": 2},
        {"guidance_scale": 1.5},
        {"watermarking_config": {"bias": 2.0}},
        {"dola_layers": "high"},
        {"constraints": [1]},
        {"cache_implementation": "quantized"},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"token_healing": True},
    ],
)
def test_methods_that_are_not_offered_are_refused(settings):
    with pytest.raises(UnsupportedError, match=next(iter(settings)).removeprefix("output_")):
        merge(GenerationConfig(), None, settings)
    with pytest.raises(UnsupportedError):
        merge(GenerationConfig(), GenerationConfig(**settings), {})


def test_their_neutral_values_are_taken():
    config, rest = merge(
        GenerationConfig(), None, {"num_beam_groups": 1, "guidance_scale": None, "penalty_alpha": 0}
    )
    assert rest == {}
    assert config.num_beams == 1


def test_the_file_is_honoured_and_the_call_wins():
    config, _ = merge(released(), None, {"max_new_tokens": 3})
    assert (config.do_sample, config.temperature, config.repetition_penalty) == (True, 1e-6, 1.05)
    config, _ = merge(released(), None, {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 3})
    assert (config.do_sample, config.repetition_penalty) == (False, 1.0)
    params = sampling_params(decide(config, columns=5, rows=1, limit=None), 0)
    assert params == SamplingParams(
        max_new_tokens=3, eos_token_ids=(151645, 151643), prompt_lookup_num_tokens=None
    )


def test_a_given_config_wins_where_it_says_something_even_a_default():
    config, _ = merge(released(), GenerationConfig(do_sample=False, max_new_tokens=4), {})
    assert config.do_sample is False  # equal to the default, but said
    assert config.repetition_penalty == 1.05  # not said: the model's
    assert config.eos_token_id == [151645, 151643]


def test_use_model_defaults_false_takes_only_the_tokens():
    config, _ = merge(released(), GenerationConfig(max_new_tokens=4), {}, use_model_defaults=False)
    assert config.repetition_penalty == 1.0
    assert config.pad_token_id == 151643


def test_the_models_config_is_left_alone():
    model = released()
    merge(model, None, {"temperature": 0.5, "max_new_tokens": 9})
    assert model == released()


def test_unknown_arguments_are_named():
    _, rest = merge(GenerationConfig(), None, {"max_new_tokens": 3, "temprature": 1.0, "pixel_values": None})
    with pytest.raises(GenerationError, match="temprature"):
        check_arguments(rest, {"pixel_values"})
    check_arguments({"unknown": None}, set())


def test_arguments_of_other_methods_are_refused():
    with pytest.raises(UnsupportedError, match="negative_prompt_ids"):
        check_arguments({"negative_prompt_ids": object()}, set())
    check_arguments({"synced_gpus": False, "negative_prompt_ids": None}, set())


class TestLengths:
    def of(self, columns=10, limit=None, **arguments):
        config, _ = merge(GenerationConfig(), None, arguments)
        settings = decide(config, columns, rows=1, limit=limit)
        return settings.max_new_tokens, settings.min_new_tokens

    def test_max_new_tokens(self):
        assert self.of(max_new_tokens=7, min_new_tokens=2) == (7, 2)

    def test_max_length_counts_the_prompt(self):
        assert self.of(max_length=30, min_length=12) == (20, 2)

    def test_both(self):
        with pytest.warns(UserWarning, match="`max_new_tokens` will take precedence"):
            assert self.of(max_new_tokens=7, max_length=30) == (7, 0)

    def test_prompt_too_long_for_max_length(self):
        with pytest.raises(GenerationError, match="max_new_tokens"):
            self.of(max_length=10)

    def test_default_is_twenty_new_ones(self):
        with pytest.warns(UserWarning, match="max_new_tokens"):
            assert self.of() == (20, 0)
        with pytest.warns(UserWarning):
            assert self.of(limit=13) == (3, 0)

    def test_a_call_with_max_length_wins_over_the_files_max_new_tokens(self):
        config, _ = merge(GenerationConfig.from_dict({"max_new_tokens": 500}), None, {"max_length": 15})
        assert decide(config, 10, rows=1, limit=None).max_new_tokens == 5


def test_pad_is_eos_if_need_be():
    config, _ = merge(GenerationConfig(), None, {"eos_token_id": [7, 8], "max_new_tokens": 2})
    with pytest.warns(UserWarning, match="pad_token_id"):
        assert decide(config, 5, rows=2, limit=None).pad_id == 7


def test_settings_without_effect_are_named_when_the_call_says_them():
    with pytest.warns(UserWarning, match="temperature"):
        merge(GenerationConfig(), None, {"temperature": 0.5})


def test_seed_counts_rows():
    config, _ = merge(GenerationConfig(), None, {"seed": 40, "do_sample": True, "max_new_tokens": 2})
    settings = decide(config, 5, rows=2, limit=None)
    assert [sampling_params(settings, row).seed for row in range(2)] == [40, 41]


def test_eos_ids_in_every_spelling():
    torch = pytest.importorskip("torch")
    for spelling in (5, [5], (5,), torch.tensor(5), torch.tensor([5]), [5, -1]):
        assert GenerationConfig(eos_token_id=spelling).eos_token_ids == (5,)
    assert GenerationConfig().eos_token_ids == ()


def test_files_round_trip(tmp_path):
    config = released()
    config.update(top_p=0.8)
    config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again == config
    assert again.transformers_version == "4.49.0"  # not ours, kept
    assert json.loads((tmp_path / "generation_config.json").read_text())["top_p"] == 0.8
    assert GenerationConfig.from_pretrained(tmp_path, top_p=0.5).top_p == 0.5
    changed, unused = GenerationConfig.from_dict(RELEASED, top_k=3, foo=1, return_unused_kwargs=True)
    assert (changed.top_k, unused) == (3, {"foo": 1})
    assert GenerationConfig.from_dict(config.to_dict()) == config


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointNotFoundError):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{broken")
    with pytest.raises(CheckpointCorruptError):
        GenerationConfig.from_pretrained(tmp_path)


def test_update_returns_what_it_does_not_know():
    config = GenerationConfig()
    assert config.update(max_new_tokens=3, colour="red") == {"colour": "red"}
    assert config.max_new_tokens == 3
    with pytest.raises(GenerationError):
        config.update(max_new_tokens=-3)


def test_from_model_config_takes_special_tokens():
    class Config:
        def __init__(self, values, text_config=None):
            self.values, self.text_config = values, text_config

        def to_dict(self):
            return self.values

    text = Config({"eos_token_id": 4, "bos_token_id": 3, "hidden_size": 8})
    config = GenerationConfig.from_model_config(Config({"eos_token_id": 5, "pad_token_id": None}, text))
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, 5, None)
