"""``generate()`` against transformers on tiny random checkpoints: the same ids, scores and texts."""

from __future__ import annotations

import pytest
import torch

from support.batches import MIXED, batch, prompt_row, single
from support.tiny import random_ids, tiny_models

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::UserWarning")]
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
PAD = 196  # an id that no prompt holds, so that transformers takes nothing else for padding

TEXT = (prompt_row(11, seed=5),)
IMAGE = (prompt_row(4, ("image", (1, 6, 10)), 6, seed=6),)
IMAGES = (prompt_row(4, ("image", (1, 6, 10)), ("image", (1, 16, 18)), 6, seed=7),)
VIDEO = (prompt_row(4, ("video", (3, 8, 6)), 6, seed=8),)
CASES = {"text": TEXT, "image": IMAGE, "images": IMAGES, "video": VIDEO, "mixed": MIXED}


@pytest.fixture(scope="module")
def models():
    return pair()


def pair(**settings):
    """The same weights twice. No end-of-sequence id unless a test gives one: answers have full length."""
    theirs, ours = tiny_models(**settings)
    for model in (theirs, ours):
        model.generation_config.eos_token_id = None
    return theirs, ours


def both(models, arguments, **settings):
    """transformers keeps rope deltas on the model between calls; they must not leak from test to test."""
    theirs, ours = models
    theirs.model.rope_deltas = None
    settings = {"max_new_tokens": 64, "pad_token_id": PAD, **settings}
    seed = settings.pop("manual_seed", 0)
    torch.manual_seed(seed)
    expected = theirs.generate(**arguments, **settings)
    torch.manual_seed(seed)
    return ours.generate(**arguments, **settings), expected


def frequent(models, arguments, rank=0, after=8):
    """An id that greedy decoding of these prompts brings after some tokens, to make it an eos id."""
    ids, _ = both(models, arguments)
    new = ids[:, arguments["input_ids"].shape[1] + after :]
    values, counts = new.unique(return_counts=True)
    return int(values[counts.argsort(descending=True)[rank]])


class TestGreedy:
    @pytest.mark.parametrize("case", CASES)
    def test_ids(self, models, case):
        ours, theirs = both(models, batch(*CASES[case], pad=PAD))
        assert ours.shape[1] == batch(*CASES[case])["input_ids"].shape[1] + 64
        assert torch.equal(ours, theirs)

    def test_rows_that_end_early_are_padded(self, models):
        arguments = batch(*MIXED, pad=PAD)
        ids = [frequent(models, arguments, rank) for rank in (0, 1)]
        for eos in (ids[0], ids):
            ours, theirs = both(models, arguments, eos_token_id=eos)
            assert torch.equal(ours, theirs)
        assert (ours[:, -1] == PAD).any()

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_batch_gives_what_single_calls_give(self, models, side):
        """Where padding is on the right, transformers continues behind the padding; qvl does not."""
        _, model = models
        arguments = batch(*MIXED, side=side, pad=PAD)
        settings = {"max_new_tokens": 64, "return_dict_in_generate": True, "output_logits": True}
        together = model.generate(**arguments, **settings)
        new = together.sequences[:, arguments["input_ids"].shape[1] :]
        for i in range(len(MIXED)):
            alone = single(arguments, MIXED, i)
            expected = model.generate(**alone, **settings)
            assert torch.equal(new[i], expected.sequences[0, alone["input_ids"].shape[1] :])
            for ours, own in zip(together.logits, expected.logits, strict=True):
                torch.testing.assert_close(ours[i], own[0], atol=1e-5, rtol=1e-5)

    def test_sliding_window(self):
        models = pair(text={"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1})
        ours, theirs = both(models, batch(*IMAGE))
        assert torch.equal(ours, theirs)

    def test_positional_inputs_and_default_length(self, models):
        theirs, ours = models
        ids = random_ids(1, 7)
        assert torch.equal(ours.generate(ids), theirs.generate(ids, pad_token_id=PAD))
        assert torch.equal(ours.generate(ids, max_length=20), theirs.generate(ids, max_length=20))


class TestBeams:
    @pytest.mark.parametrize("case", CASES)
    def test_ids(self, models, case):
        ours, theirs = both(models, batch(*CASES[case], pad=PAD), num_beams=3)
        assert torch.equal(ours, theirs)

    @pytest.mark.parametrize("early_stopping", [True, False, "never"])
    @pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.7, 2.0])
    def test_ends(self, models, early_stopping, length_penalty):
        arguments = batch(*MIXED[:2], pad=PAD)
        eos = [frequent(models, arguments, rank, after=4) for rank in (0, 2)]
        ours, theirs = both(
            models,
            arguments,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_token_id=eos,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert torch.equal(ours.sequences, theirs.sequences)
        assert torch.equal(ours.beam_indices, theirs.beam_indices)
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, **CLOSE)

    def test_scores_and_logits(self, models):
        ours, theirs = both(
            models,
            batch(*IMAGE),
            num_beams=3,
            repetition_penalty=1.3,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        assert len(ours.scores) == len(theirs.scores) == len(ours.logits) == 64
        torch.testing.assert_close(ours.scores, theirs.scores, **CLOSE)
        torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)

    def test_drawn_beams(self, models):
        ours, theirs = both(models, batch(*IMAGE), num_beams=3, do_sample=True, temperature=0.7, top_k=20)
        assert torch.equal(ours, theirs)

    def test_the_released_settings(self, models):
        released = {
            "do_sample": True,
            "temperature": 1e-6,
            "repetition_penalty": 1.05,
            "top_k": 1,
            "top_p": 0.001,
        }
        ours, theirs = both(models, batch(*IMAGE), num_beams=2, **released, max_new_tokens=16)
        assert (
            ours.shape == theirs.shape
        )  # the ids are drawn: softmax of scores near 1e6 leaves ties to chance


class TestSampling:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"temperature": 0.6},
            {"temperature": 1.7, "top_k": 5},
            {"top_k": 0, "top_p": 0.8},
            {"top_k": 0, "min_p": 0.05},
            {"typical_p": 0.6},
            {"top_k": 0, "epsilon_cutoff": 0.01},
            {"top_k": 0, "eta_cutoff": 0.01},
            {
                "temperature": 0.9,
                "top_k": 30,
                "top_p": 0.9,
                "repetition_penalty": 1.2,
                "renormalize_logits": True,
            },
            {"temperature": 1e-6, "repetition_penalty": 1.05},
        ],
        ids=str,
    )
    def test_ids_for_one_seed(self, models, settings):
        for seed in (0, 1):
            ours, theirs = both(models, batch(*IMAGE), do_sample=True, manual_seed=seed, **settings)
            assert torch.equal(ours, theirs)


class TestPenalties:
    @pytest.mark.parametrize(
        "settings",
        [
            {"repetition_penalty": 1.4},
            {"repetition_penalty": 0.8},
            {"no_repeat_ngram_size": 2},
            {"no_repeat_ngram_size": 1},
            {"encoder_no_repeat_ngram_size": 1},
            {"forced_bos_token_id": 5},
            {"bad_words_ids": [[198], [80, 185], [117, 35, 84]]},
            {"sequence_bias": [[[198], -20.0], [[80, 185], -30.0], [[3], 2.0]], "repetition_penalty": 1.1},
            {"suppress_tokens": [80, 198], "begin_suppress_tokens": [124, 161]},
            {"forced_eos_token_id": 77},
            {"min_new_tokens": 40, "eos_token_id": [80, 198]},
            {"min_length": 40, "eos_token_id": [80, 198]},
            {"exponential_decay_length_penalty": (5, 1.3), "eos_token_id": 21},
            {"remove_invalid_values": True},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("num_beams", [1, 2])
    def test_ids_and_scores(self, models, settings, num_beams):
        ours, theirs = both(
            models,
            batch(*TEXT),
            max_new_tokens=48,
            num_beams=num_beams,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        assert torch.equal(ours.sequences, theirs.sequences)
        torch.testing.assert_close(ours.scores, theirs.scores, **CLOSE)

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_reward_of_the_prompt(self, models, num_beams):
        """transformers rewards the first beam only; given the prompt once for each beam, all of them."""
        from transformers import EncoderRepetitionPenaltyLogitsProcessor as Theirs

        arguments = batch(*TEXT)
        prompts = arguments["input_ids"].expand(num_beams, -1)
        settings = {"max_new_tokens": 48, "num_beams": num_beams, "pad_token_id": PAD}
        expected = models[0].generate(**arguments, **settings, logits_processor=[Theirs(1.5, prompts)])
        ours = models[1].generate(**arguments, **settings, encoder_repetition_penalty=1.5)
        assert torch.equal(ours, expected)
        assert not torch.equal(ours, models[1].generate(**arguments, **settings))

    def test_padding_is_no_token_of_the_prompt(self, models):
        """In transformers pad ids are penalised and make n-grams: each row is held against its own call."""
        arguments = batch(*MIXED, pad=PAD)
        settings = {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3, "max_new_tokens": 40}
        together = models[1].generate(**arguments, **settings)
        for i in range(len(MIXED)):
            _, expected = both(models, single(arguments, MIXED, i), **settings)
            assert torch.equal(together[i, -40:], expected[0, -40:])


class TestOutput:
    def test_scores_and_logits(self, models):
        ours, theirs = both(
            models,
            batch(*MIXED, pad=PAD),
            temperature=0.7,
            top_k=7,
            do_sample=True,
            max_new_tokens=1,  # a batch draws its rows in another order, so one step only
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        torch.testing.assert_close(ours.scores, theirs.scores, **CLOSE)
        torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
        assert list(ours.keys()) == ["sequences", "scores", "logits", "past_key_values"]

    def test_rows_that_ended_say_pad_for_certain(self, models):
        arguments = batch(*MIXED, pad=PAD)
        eos = frequent(models, arguments)
        ours, theirs = both(
            models, arguments, eos_token_id=eos, return_dict_in_generate=True, output_scores=True
        )
        start = arguments["input_ids"].shape[1]
        assert len(ours.scores) == len(theirs.scores) == ours.sequences.shape[1] - start
        ended = torch.zeros(len(MIXED), dtype=torch.bool)
        for step, (mine, other) in enumerate(zip(ours.scores, theirs.scores, strict=True)):
            assert mine.shape == other.shape
            torch.testing.assert_close(mine[~ended], other[~ended], **CLOSE)
            assert (mine[ended].log_softmax(-1)[:, PAD] == 0).all()
            ended |= ours.sequences[:, start + step] == eos
        assert ended.any()

    def test_embeddings_alone_give_the_new_tokens(self, models):
        theirs, ours = models
        ids = random_ids(2, 9)
        with torch.no_grad():
            embeds = ours.get_input_embeddings()(ids)
        expected = theirs.generate(inputs_embeds=embeds, max_new_tokens=20, pad_token_id=PAD)
        got = ours.generate(inputs_embeds=embeds, max_new_tokens=20, pad_token_id=PAD, repetition_penalty=1.0)
        assert got.shape == (2, 20)
        assert torch.equal(got, expected)
        penalised = {"repetition_penalty": 1.5, "min_length": 12, "eos_token_id": [int(got[0, 1])]}
        ours_ids, theirs_ids = both(
            models, {"inputs_embeds": embeds}, max_length=30, max_new_tokens=None, **penalised
        )
        assert torch.equal(ours_ids, theirs_ids)

    def test_embeddings_beside_ids_come_behind_the_ids(self, models):
        ids = random_ids(1, 9)
        with torch.no_grad():
            embeds = models[1].get_input_embeddings()(random_ids(1, 9, seed=1))
        ours, theirs = both(models, {"input_ids": ids, "inputs_embeds": embeds})
        assert torch.equal(ours, theirs)

    def test_nothing_at_all_begins_with_bos(self, models):
        ours, theirs = both(models, {}, bos_token_id=194, max_new_tokens=12)
        assert torch.equal(ours, theirs)

    def test_several_answers(self, models):
        """Row r of the answer is what a call of its own gives with seed + r."""
        arguments = batch(*MIXED[:2], pad=PAD)
        sampled = {"do_sample": True, "temperature": 1.3, "seed": 70}
        ours, theirs = both(models, arguments, num_return_sequences=3, **sampled | {"seed": None})
        assert ours.shape == theirs.shape
        ours = models[1].generate(**arguments, num_return_sequences=3, max_new_tokens=30, **sampled)
        assert len({tuple(row) for row in ours.tolist()}) == 6
        for row, ids in enumerate(ours):
            alone = single(arguments, MIXED[:2], row // 3)
            own = models[1].generate(**alone, max_new_tokens=30, **sampled | {"seed": 70 + row})
            assert torch.equal(ids[-30:], own[0, -30:])


class TestCallbacks:
    def test_processors_and_criteria_see_rows_as_handed_in(self, models):
        from transformers import LogitsProcessor as TheirProcessor
        from transformers import LogitsProcessorList as TheirProcessors
        from transformers import StoppingCriteria as TheirCriterion
        from transformers import StoppingCriteriaList as TheirCriteria

        from qvl.generation import (
            LogitsProcessor,
            LogitsProcessorList,
            StoppingCriteria,
            StoppingCriteriaList,
        )

        def callbacks(processor, processors, criterion, criteria):
            class LikeLast(processor):
                """Makes ids near the last but one likelier."""

                def __call__(self, input_ids, scores):
                    seen.append(input_ids[0].tolist())
                    centre = input_ids[:, -2:-1]
                    return scores - 0.02 * (torch.arange(scores.shape[1])[None] - centre).abs()

            class Seventeen(criterion):
                def __call__(self, input_ids, scores, **kwargs):
                    return torch.full((len(input_ids),), int(input_ids[0, -1]) % 17 == 0)

            return {
                "logits_processor": processors([LikeLast()]),
                "stopping_criteria": criteria([Seventeen()]),
            }

        arguments = batch(*IMAGE)
        arguments["input_ids"] = torch.nn.functional.pad(arguments["input_ids"], (3, 0))
        arguments["attention_mask"] = torch.nn.functional.pad(arguments["attention_mask"], (3, 0))
        results, logs = [], []
        for model, classes in zip(
            models,
            (
                (TheirProcessor, TheirProcessors, TheirCriterion, TheirCriteria),
                (LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList),
            ),
            strict=True,
        ):
            seen = []
            models[0].model.rope_deltas = None
            settings = {"max_new_tokens": 30, "pad_token_id": PAD, "repetition_penalty": 1.2}
            results.append(model.generate(**arguments, **settings, **callbacks(*classes)))
            logs.append(seen)
        assert torch.equal(*results)
        assert results[0].shape[1] < arguments["input_ids"].shape[1] + 30
        assert logs[0] == logs[1]

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_prefix_allowed_tokens(self, models, num_beams):
        def allowed(row, ids):
            return [(int(ids[-1]) * 7 + k * 11 + row) % 190 for k in range(4)]

        ours, theirs = both(
            models, batch(*MIXED[:2], pad=PAD), prefix_allowed_tokens_fn=allowed, num_beams=num_beams
        )
        assert torch.equal(ours, theirs)

    def test_processors_of_ours_replace_the_settings(self, models):
        from transformers import RepetitionPenaltyLogitsProcessor as Theirs

        from qvl.generation.processors import RepetitionPenaltyLogitsProcessor as Ours

        arguments, settings = (
            batch(*TEXT),
            {"repetition_penalty": 1.05, "max_new_tokens": 30, "pad_token_id": PAD},
        )
        expected = models[0].generate(**arguments, **settings, logits_processor=[Theirs(1.8)])
        assert torch.equal(
            models[1].generate(**arguments, **settings, logits_processor=[Ours(1.8)]), expected
        )


class TestLookup:
    @pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.1}, {"eos_token_id": [35]}], ids=str)
    def test_guesses_do_not_change_the_answer(self, models, settings):
        ids = random_ids(1, 12).repeat(1, 3)
        settings = {"eos_token_id": 195, **settings}  # transformers' lookup cannot do without one
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        ours, theirs = both(
            models, arguments, prompt_lookup_num_tokens=5, max_matching_ngram_size=3, **settings
        )
        plain, _ = both(models, arguments, **settings)
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, plain)

    def test_scores_have_one_entry_for_each_token(self, models):
        ids = random_ids(1, 12).repeat(1, 3)
        ours, theirs = both(
            models,
            {"input_ids": ids},
            prompt_lookup_num_tokens=4,
            eos_token_id=195,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        torch.testing.assert_close(ours.scores, theirs.scores, **CLOSE)
        torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)


class TestText:
    """Streamers and stop strings, with the same tokenizer in both."""

    @pytest.fixture(scope="class")
    def tokenizer(self, tmp_path_factory):
        from transformers import AutoTokenizer

        from support.tokens import write_tiny_tokenizer

        return AutoTokenizer.from_pretrained(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))

    def test_stop_strings(self, models, tokenizer):
        arguments = batch(*TEXT)
        ids, _ = both(models, arguments)
        text = tokenizer.decode(ids[0, 11:])
        for start, size in ((20, 3), (33, 2), (40, 6), (47, 1)):
            stops = [text[start : start + size]]
            if "\ufffd" in stops[0]:
                continue
            for given in (stops, ["never said", *stops], stops[0]):
                ours, theirs = both(models, arguments, stop_strings=given, tokenizer=tokenizer)
                assert torch.equal(ours, theirs)
                assert ours.shape[1] < ids.shape[1]

    @pytest.mark.parametrize("skip_prompt", [True, False])
    def test_printed_text(self, models, tokenizer, skip_prompt, capsys):
        import transformers

        from qvl.generation import TextStreamer

        printed = []
        for model, streamer in zip(models, (transformers.TextStreamer, TextStreamer), strict=True):
            streamer = streamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
            model.generate(**batch(*TEXT), max_new_tokens=40, pad_token_id=PAD, streamer=streamer)
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]
        assert len(printed[0]) > 20

    def test_pieces(self, models, tokenizer):
        import transformers

        from qvl.generation import TextIteratorStreamer

        pieces = []
        for model, streamer in zip(
            models, (transformers.TextIteratorStreamer, TextIteratorStreamer), strict=True
        ):
            streamer = streamer(tokenizer, timeout=10)
            model.generate(**batch(*TEXT), max_new_tokens=40, pad_token_id=PAD, streamer=streamer)
            pieces.append(list(streamer))
        assert pieces[0] == pieces[1]

    def test_what_a_streamer_is_given(self, models):
        class Log:
            def __init__(self):
                self.log = []

            def put(self, value):
                self.log.append(value.tolist())

            def end(self):
                self.log.append("end")

        arguments = batch(*MIXED, pad=PAD)
        eos = frequent(models, arguments)
        logs = []
        for model in models:
            models[0].model.rope_deltas = None
            streamer = Log()
            model.generate(
                **arguments, max_new_tokens=30, pad_token_id=PAD, eos_token_id=eos, streamer=streamer
            )
            logs.append(streamer.log)
        assert logs[0] == logs[1]
