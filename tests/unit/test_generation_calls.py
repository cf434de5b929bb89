"""Whole ``generate()`` calls: wrong ones, broken callbacks, several at once, independence of neighbours."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qvl.config import Qwen2_5_VLConfig
from qvl.engine.engine import EngineSettings
from qvl.errors import GenerationError, InputTypeError, PromptTooLongError
from qvl.generation import GenerationConfig, TextIteratorStreamer
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from support.batches import MIXED, batch, prompt_row, single
from support.ids import stable
from support.tiny import random_ids, tiny_settings

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PAD = 196
# What the released generation_config.json says, with the tiny model's padding.
RELEASED = {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05, "pad_token_id": PAD}
IMAGE = (prompt_row(4, ("image", (1, 6, 10)), 6, seed=6),)


@pytest.fixture(scope="module")
def model():
    return lively_model()


def lively_model(**text):
    """Random weights large enough that answers differ."""
    generator = torch.Generator().manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings(text=text))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.15, generator=generator)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model


class Numbers:
    """A tokenizer whose tokens are numbers."""

    def decode(self, ids, **kwargs):
        return "".join(f"{i} " for i in ids)


def fail(*args, **kwargs):
    raise ZeroDivisionError("on purpose")


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"max_new_tokens": -1}, GenerationError),
            ({"max_new_tokens": 0}, GenerationError),
            ({"seed": 2**64, "do_sample": True}, GenerationError),
            ({"eos_token_id": "end"}, GenerationError),
            ({"eos_token_id": [1, 2.5]}, GenerationError),
            ({"exponential_decay_length_penalty": 3}, GenerationError),
            ({"exponential_decay_length_penalty": ("a", 1.0)}, GenerationError),
            ({"do_sample": "yes"}, GenerationError),
            ({"generation_config": {"max_new_tokens": 3}}, InputTypeError),
            ({"logits_processor": fail}, InputTypeError),
            ({"logits_processor": [3]}, InputTypeError),
            ({"stopping_criteria": fail}, InputTypeError),
            ({"streamer": print}, InputTypeError),
        ],
        ids=stable,
    )
    def test_are_named_before_anything_is_computed(self, model, monkeypatch, settings, error):
        monkeypatch.setattr(model.model.language_model, "packed", fail)
        with pytest.raises(error, match=next(iter(settings))):
            model.generate(random_ids(1, 5), **{"max_new_tokens": 4, **settings})

    def test_a_prompt_that_is_too_long(self, model, monkeypatch):
        """One row of a batch is; nothing is computed for the other either."""
        limit = model.config.text_config.max_position_embeddings
        mask = torch.ones(2, limit + 1, dtype=torch.int64)
        mask[0, :-4] = 0
        with monkeypatch.context() as patch:
            patch.setattr(model.model.language_model, "packed", fail)
            with pytest.raises(PromptTooLongError, match=f"{limit + 1} positions.*{limit}"):
                model.generate(random_ids(2, limit + 1), attention_mask=mask, max_new_tokens=2)
        assert model.generate(random_ids(1, limit), max_new_tokens=2).shape == (1, limit + 2)

    def test_a_minimum_above_the_maximum_is_said(self, model):
        with pytest.warns(UserWarning, match="at most 3"):
            assert model.generate(random_ids(1, 5), max_new_tokens=3, min_new_tokens=9).shape == (1, 8)


class TestReleasedFile:
    def test_it_holds_and_arguments_win(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text(json.dumps(RELEASED))
        loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
        arguments = {**batch(*IMAGE), "max_new_tokens": 40}
        greedy = model.generate(**arguments)
        careful = model.generate(**arguments, repetition_penalty=1.05)
        heavy = model.generate(**arguments, repetition_penalty=1.8)
        assert not torch.equal(careful, heavy)
        assert torch.equal(loaded.generate(**arguments), careful)  # temperature 1e-6 is greedy
        assert torch.equal(loaded.generate(**arguments, do_sample=False, repetition_penalty=1.0), greedy)
        assert torch.equal(loaded.generate(**arguments, repetition_penalty=1.8), heavy)
        given = GenerationConfig(do_sample=False, repetition_penalty=1.0)
        assert torch.equal(loaded.generate(**arguments, generation_config=given), greedy)
        assert torch.equal(
            loaded.generate(**arguments, generation_config=given, repetition_penalty=1.8), heavy
        )


class TestNeighbours:
    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": True, "seed": 5, "temperature": 1.2},
            {"do_sample": True, "seed": 5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2},
            {"do_sample": True, "seed": 5, "min_p": 0.02, "typical_p": 0.9, "top_k": 0},
            {"no_repeat_ngram_size": 2},
        ],
        ids=stable,
    )
    @pytest.mark.parametrize("engine", [None, EngineSettings(max_step_tokens=11, max_sequences=3)], ids=str)
    def test_row_i_is_a_call_of_its_own_with_seed_plus_i(self, settings, engine):
        model = lively_model()
        model.engine_settings = engine
        arguments = batch(*MIXED, pad=PAD)
        together = model.generate(**arguments, max_new_tokens=40, **settings)
        model.engine_settings = None
        for i in range(len(MIXED)):
            own = settings | ({"seed": settings["seed"] + i} if "seed" in settings else {})
            alone = model.generate(**single(arguments, MIXED, i), max_new_tokens=40, **own)
            assert torch.equal(together[i, -40:], alone[0, -40:])

    def test_a_seed_leaves_torchs_own_generator_alone(self, model):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        model.generate(random_ids(1, 5), do_sample=True, seed=1, max_new_tokens=5)
        assert torch.equal(torch.get_rng_state(), before)

    def test_threads(self, model):
        """Calls of different kinds on one model at the same time give what they give alone."""
        image, mixed = batch(*IMAGE), batch(*MIXED, pad=PAD)
        calls = [
            {**mixed, "max_new_tokens": 20},
            {**image, "max_new_tokens": 20, "do_sample": True, "seed": 5},
            {**image, "max_new_tokens": 20, "num_beams": 3},
            {**mixed, "max_new_tokens": 20, "repetition_penalty": 1.3},
        ]
        alone = [model.generate(**call) for call in calls]
        got = {}

        def work(index):
            for turn in range(3):
                got[index, turn] = model.generate(**calls[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 12
        assert all(torch.equal(ids, alone[index]) for (index, _), ids in got.items())


class TestCallbacks:
    @pytest.mark.parametrize(
        "callback", [{"logits_processor": [fail]}, {"stopping_criteria": [fail]}], ids=lambda c: next(iter(c))
    )
    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_what_they_raise_comes_out_and_the_model_goes_on(self, model, callback, num_beams):
        arguments = batch(*MIXED, pad=PAD)
        expected = model.generate(**arguments, max_new_tokens=8)
        with pytest.raises(ZeroDivisionError):
            model.generate(**arguments, max_new_tokens=8, num_beams=num_beams, **callback)
        assert torch.equal(model.generate(**arguments, max_new_tokens=8), expected)

    def test_a_streamer_can_stop_the_call(self, model):
        class Enough(TextIteratorStreamer):
            def put(self, value):
                super().put(value)
                if value.numel() == 1:
                    raise InterruptedError

        with pytest.raises(InterruptedError):
            model.generate(random_ids(1, 5), max_new_tokens=8, streamer=Enough(Numbers()))


class TestReaders:
    """Whoever reads a TextIteratorStreamer in another thread gets an end or the error, never a wait."""

    def read(self, model, streamer, **call):
        raised = []

        def work():
            try:
                model.generate(streamer=streamer, **call)
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            return "".join(streamer), raised
        finally:
            thread.join(timeout=30)
            assert not thread.is_alive()

    def test_text(self, model):
        ids = random_ids(1, 5)
        streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=30)
        text, raised = self.read(model, streamer, inputs=ids, max_new_tokens=6)
        assert text == Numbers().decode(model.generate(ids, max_new_tokens=6)[0, 5:].tolist())
        assert raised == []

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            ({"max_new_tokens": -1}, GenerationError),
            ({"max_new_tokens": 3, "num_beams": 2}, GenerationError),
            ({"max_new_tokens": 3, "logits_processor": [fail]}, ZeroDivisionError),
            ({"max_new_tokens": 3, "logits_processor": 5}, InputTypeError),
            ({"max_new_tokens": 3, "stopping_criteria": [fail]}, ZeroDivisionError),
            ({"max_new_tokens": 3, "colour": "red"}, GenerationError),
            ({"max_new_tokens": 3, "attention_mask": torch.ones(1, 2)}, ValueError),
        ],
        ids=stable,
    )
    def test_errors(self, model, call, error):
        streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=30)
        with pytest.raises(error):
            self.read(model, streamer, inputs=random_ids(1, 5), **call)
        text, _ = self.read(model, streamer, inputs=random_ids(1, 5), max_new_tokens=4)
        assert text.count(" ") == 4  # the streamer serves the next call as if nothing had been

    def test_a_tokenizer_that_fails(self, model):
        class Broken:
            decode = staticmethod(fail)

        with pytest.raises(ZeroDivisionError):
            self.read(
                model, TextIteratorStreamer(Broken(), timeout=30), inputs=random_ids(1, 5), max_new_tokens=3
            )


class Joined(TorchDispatchMode):
    """Notes the sizes of all tensors that come out of a concatenation."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.stack):
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.1, "no_repeat_ngram_size": 8, "do_sample": True, "top_p": 0.9},
        {"logits_processor": [lambda ids, scores: scores], "stopping_criteria": [lambda ids, scores: False]},
        {"return_dict_in_generate": True, "output_scores": True},
        {"num_beams": 2},
    ],
    ids=["greedy", "penalties", "callbacks", "scores", "beams"],
)
def test_no_tensor_grows_by_concatenation_step_after_step(settings):
    """Concatenations have few different sizes, however long the answer: buffers double. Without guesses,
    with which steps have different sizes of their own.
    """
    settings = {"prompt_lookup_num_tokens": 0, **settings}
    model, counts = lively_model(max_position_embeddings=512), []
    for new_tokens in (80, 240):
        with Joined() as joined:
            out = model.generate(random_ids(1, 9), max_new_tokens=new_tokens, **settings)
        assert getattr(out, "sequences", out).shape == (1, 9 + new_tokens)
        counts.append(len(set(joined.sizes)))
    assert counts[1] <= counts[0] + 4  # the buffers of ids and keys have doubled twice
