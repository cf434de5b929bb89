"""``generate(assistant_model=...)`` and guesses that nobody asked for, against transformers: the same ids."""

from __future__ import annotations

import pytest
import torch

from qvl.engine.guessing import StepTimes
from support.batches import MIXED, batch, prompt_row, single
from support.tiny import random_ids, tiny_models

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]
PAD, END = 196, 195

TEXT = (prompt_row(11, seed=5),)
IMAGE = (prompt_row(4, ("image", (1, 6, 10)), 6, seed=6),)
VIDEO = (prompt_row(4, ("video", (3, 8, 6)), 6, seed=8),)
CASES = {"text": TEXT, "image": IMAGE, "video": VIDEO}


def models_of(seed=0, **settings):
    theirs, ours = tiny_models(seed=seed, **settings)
    for model in (theirs, ours):
        model.generation_config.eos_token_id = END
    return theirs, ours


@pytest.fixture(scope="module")
def models():
    return models_of()


@pytest.fixture(scope="module")
def drafts():
    """A smaller model that is often right: the same weights, but for the last layer."""
    theirs, ours = models_of(text={"num_hidden_layers": 2})
    full, _ = models_of()
    known = {k: v for k, v in full.state_dict().items() if k in theirs.state_dict()}
    theirs.load_state_dict(known)
    ours.load_state_dict(known)
    return theirs, ours


def generated(models, arguments, drafts=(None, None), **settings):
    theirs, ours = models
    theirs.model.rope_deltas = None
    settings = {"max_new_tokens": 48, "pad_token_id": PAD, "do_sample": False, **settings}
    expected = theirs.generate(**arguments, **settings)
    theirs.model.rope_deltas = None
    return ours.generate(**arguments, assistant_model=drafts[1], **settings), expected


SETTINGS = {
    "measured": {},
    "number": {"num_assistant_tokens": 5},
    "heuristic": {"num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic"},
    "unsure": {"num_assistant_tokens": 7, "assistant_confidence_threshold": 0.0},
    "penalties": {"num_assistant_tokens": 5, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    "end": {"num_assistant_tokens": 6, "eos_token_id": [35, 120, 7]},
}


class TestAssistant:
    @pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
    @pytest.mark.parametrize("case", CASES)
    def test_the_answers_of_transformers_without_one(self, models, drafts, case, settings):
        ours, expected = generated(models, batch(*CASES[case]), drafts, **settings)
        assert torch.equal(ours, expected)

    @pytest.mark.parametrize("case", ["text", "image"])
    def test_the_answers_of_transformers_with_one(self, models, drafts, case):
        settings = {"max_new_tokens": 40, "pad_token_id": PAD, "do_sample": False, "num_assistant_tokens": 4}
        arguments = batch(*CASES[case])
        for model in (*models, *drafts):
            model.model.rope_deltas = None
        expected = models[0].generate(**arguments, assistant_model=drafts[0], **settings)
        ours = models[1].generate(**arguments, assistant_model=drafts[1], **settings)
        assert torch.equal(ours, expected)

    def test_a_batch_gives_what_single_calls_give(self, models, drafts):
        settings = {"max_new_tokens": 32, "pad_token_id": PAD, "num_assistant_tokens": 4}
        arguments = batch(*MIXED)
        together = models[1].generate(**arguments, assistant_model=drafts[1], **settings)
        plain = models[1].generate(**arguments, **settings, prompt_lookup_num_tokens=0)
        assert torch.equal(together, plain)
        width = arguments["input_ids"].shape[1]
        for row in range(len(MIXED)):
            one = single(arguments, MIXED, row)
            alone = models[1].generate(**one, assistant_model=drafts[1], **settings)
            new = alone[0, one["input_ids"].shape[1] :]
            assert torch.equal(together[row, width : width + len(new)], new)

    def test_scores_have_one_entry_for_each_token(self, models, drafts):
        settings = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
        ours, expected = generated(models, batch(*IMAGE), drafts, num_assistant_tokens=4, **settings)
        torch.testing.assert_close(ours.scores, expected.scores, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=1e-4)

    def test_sampling_is_repeatable_and_settings_come_from_the_assistant(self, models, drafts):
        settings = {
            "do_sample": True,
            "seed": 3,
            "max_new_tokens": 30,
            "pad_token_id": PAD,
            "temperature": 2.0,
        }
        arguments = batch(*IMAGE)
        one, other = (
            models[1].generate(**arguments, assistant_model=drafts[1], **settings) for _ in range(2)
        )
        assert torch.equal(one, other)
        explicit = models[1].generate(
            **arguments, assistant_model=drafts[1], num_assistant_tokens=2, **settings
        )
        drafts[1].generation_config.num_assistant_tokens = 2
        try:
            own = models[1].generate(**arguments, assistant_model=drafts[1], **settings)
        finally:
            drafts[1].generation_config = type(drafts[1].generation_config)(eos_token_id=END)
        assert torch.equal(own, explicit)

    def test_a_conversation_keeps_the_draft_models_cache(self, models, drafts):
        first = batch(*IMAGE)
        settings = {"max_new_tokens": 12, "pad_token_id": PAD, "num_assistant_tokens": 4}
        out = models[1].generate(**first, assistant_model=drafts[1], return_dict_in_generate=True, **settings)
        kept = out.past_key_values.rows[0].draft
        assert kept.kv.length >= first["input_ids"].shape[1]
        turn = {"input_ids": torch.cat([out.sequences, random_ids(1, 5, seed=9)], 1)}
        turn |= {k: v for k, v in first.items() if "pixel" in k or "grid" in k}
        plain = models[1].generate(**turn, max_new_tokens=12, pad_token_id=PAD)
        again = models[1].generate(
            **turn, assistant_model=drafts[1], past_key_values=out.past_key_values, **settings
        )
        assert torch.equal(again, plain)


def free_steps():
    """Times of a machine where more rows cost nothing: whatever is likely is guessed."""
    times = StepTimes()
    for rows in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(5):
            times.note(rows, 1.0)
    times.note = lambda tokens, seconds: None  # and stays so
    return times


class TestUnasked:
    """Lookup that nobody asked for changes no answer, though the machine makes it run as often as it can."""

    @pytest.fixture
    def eager(self, models, monkeypatch):
        from qvl.generation import speculation

        used = []

        def always():
            used.append(free_steps())
            return used[-1]

        monkeypatch.setattr(speculation, "StepTimes", always)
        models[1].__dict__.pop("_step_times", None)
        yield used
        models[1].__dict__.pop("_step_times", None)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"repetition_penalty": 1.1}, {"eos_token_id": [35]}, {"max_new_tokens": 64}],
        ids=str,
    )
    @pytest.mark.parametrize("case", [*CASES, "loop"])
    def test_the_answers_of_transformers(self, models, eager, monkeypatch, case, settings):
        from qvl.engine.runner import Runner

        passes, run = [], Runner.run
        monkeypatch.setattr(
            Runner, "run", lambda self, step: passes.append(len(step.decodes)) or run(self, step)
        )
        ids = random_ids(1, 12).repeat(1, 3)
        arguments = {"input_ids": ids} if case == "loop" else batch(*CASES[case])
        ours, expected = generated(models, arguments, **settings)
        assert torch.equal(ours, expected)
        assert eager
        if case == "loop" and not settings:
            assert len(passes) < 40  # of 48

    def test_a_streamer_does_not_notice(self, models, eager):
        class Pieces:
            def __init__(self):
                self.sizes = []

            def put(self, value):
                self.sizes.append(value.numel())

            def end(self):
                pass

        ids, pieces = random_ids(1, 12).repeat(1, 3), Pieces()
        models[1].generate(ids, max_new_tokens=48, pad_token_id=PAD, streamer=pieces)
        assert pieces.sizes == [36, *[1] * 48]

    def test_drawn_answers_do_not_notice(self, models, eager):
        ids = random_ids(1, 12).repeat(1, 3)
        settings = {
            "do_sample": True,
            "temperature": 0.4,
            "seed": 2,
            "max_new_tokens": 40,
            "pad_token_id": PAD,
        }
        free = models[1].generate(ids, **settings)
        assert torch.equal(models[1].generate(ids, prompt_lookup_num_tokens=0, **settings), free)
