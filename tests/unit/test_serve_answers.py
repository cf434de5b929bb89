"""From tokens to what a client reads: characters, stop texts, log probabilities, constraints, ends."""

import random

import pytest
import torch

from qvl.serve.jobs import Usage
from qvl.serve.tokentext import Detokenizer, StopTexts, TokenTable
from qvl.types import SamplingParams
from support.serving import (
    VOCAB,
    ScriptedEngine,
    bundled_processor,
    fake_backend,
    job,
    run_jobs,
    text_prompt,
)

TEXTS = ("Größe, naïve, 你好世界, こんにちは", "🙂 emoji 👨‍👩‍👧 and\n\n\ttabs", "plain words 123", "")


def tokenizer():
    return bundled_processor().tokenizer


def token(content):
    """The id of an added token."""
    return tokenizer().convert_tokens_to_ids(content)


def answer(script, one=None, *, per_step=1):
    """(text, pieces) of one job."""
    engine = ScriptedEngine(script, per_step=per_step)
    (pieces,) = run_jobs(fake_backend(engine=engine, media=False), one or job())
    return "".join(piece.text for piece in pieces), pieces


class TestDetokenizer:
    @pytest.mark.parametrize("text", TEXTS, ids=["accents", "emoji", "ascii", "empty"])
    @pytest.mark.parametrize("special", [False, True], ids=["hidden", "shown"])
    def test_pieces_are_whole_and_make_the_tokenizers_text(self, text, special):
        ids = [
            *tokenizer().encode(text),
            token("<|im_start|>"),
            *tokenizer().encode(text),
            token("<tool_call>"),
        ]
        detokenizer = Detokenizer(TokenTable(tokenizer()), special=special)
        pieces = [detokenizer.add(number) for number in ids]
        assert "".join(pieces) == tokenizer().decode(ids, skip_special_tokens=not special)
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)

    def test_random_tokens_read_as_the_tokenizer_reads_them(self):
        draw = random.Random(0)
        for _ in range(50):
            ids = [draw.randrange(VOCAB) for _ in range(20)] + tokenizer().encode("end")
            detokenizer = Detokenizer(TokenTable(tokenizer()), special=True)
            assert "".join(map(detokenizer.add, ids)) == tokenizer().decode(ids)

    def test_every_token_is_the_bytes_that_it_decodes_to(self):
        table = TokenTable(tokenizer())
        for number in range(len(tokenizer())):
            assert table.data(number).decode(errors="replace") == tokenizer().decode([number])
        assert table.data(VOCAB - 1) == b""  # a row of the model that no token has


class TestStopTexts:
    def first(self, text, stops):
        """Where a stop text is complete first and which, written out."""
        for end in range(1, len(text) + 1):
            found = [stop for stop in stops if text[:end].endswith(stop)]
            if found:
                return end, max(found, key=len)
        return None

    def test_agrees_with_plain_search_however_the_text_is_cut(self):
        draw = random.Random(0)
        for _ in range(500):
            text = "".join(draw.choice("ab") for _ in range(draw.randrange(20)))
            stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 6))) for _ in range(3)]
            search, done, found = StopTexts(stops), 0, None
            while done < len(text) and found is None:
                piece = text[done : done + draw.randrange(1, 4)]
                found = search.feed(piece)
                if found is not None:
                    found = (done + found[0], found[1])
                else:
                    begun = text[: done + len(piece)][len(text[: done + len(piece)]) - search.begun :]
                    assert not search.begun or any(stop.startswith(begun) for stop in stops)
                done += len(piece)
            assert found == self.first(text, stops), (text, stops)

    def test_empty_texts_stop_nothing(self):
        search = StopTexts(["", ""])
        assert search.feed("anything") is None and search.begun == 0


class TestStops:
    @pytest.mark.parametrize("per_step", [1, 3, 50])
    @pytest.mark.parametrize(
        ("stops", "shown", "met"),
        [
            (("###",), "one ## two ", "###"),
            (("two", "###"), "one ## ", "two"),
            (("## three", "# thr"), "one ## two ##", "# thr"),
            (("nowhere",), "one ## two ### three", None),
            (("o",), "", "o"),
            (("three ", "e three"), "one ## two ### three", None),
        ],
        ids=["split", "first wins", "first to be complete", "none", "at once", "begun but never complete"],
    )
    def test_the_stop_text_is_never_shown(self, stops, shown, met, per_step):
        text, pieces = answer("one ## two ### three", job(stops=stops), per_step=per_step)
        assert text == shown
        assert (pieces[-1].end, pieces[-1].stop) == ("stop", met)

    def test_what_may_become_a_stop_text_is_held_back_and_then_shown(self):
        _, pieces = answer("a##b###", job(stops=("###",)))
        assert [piece.text for piece in pieces] == ["a", "##b", ""]

    def test_tokens_behind_the_stop_text_do_not_count(self):
        _, pieces = answer("12345678", job(stops=("3",)), per_step=8)
        assert pieces[-1].usage.completion_tokens == 3

    def test_a_stop_text_split_over_the_bytes_of_a_character(self):
        text, _ = answer("x🙂y", job(stops=("🙂",)))
        assert text == "x"

    def test_a_special_token_may_be_named_as_a_stop_text(self):
        ids = [*tokenizer().encode("a"), token("<|im_start|>"), *tokenizer().encode("b")]
        text, pieces = answer(ids, job(stops=("<|im_start|>",)))
        assert text == "a" and pieces[-1].stop == "<|im_start|>"
        assert answer(ids, job(stops=("<|im_start|>",), special=True))[0] == "a"

    def test_the_end_token_is_no_part_of_the_text(self):
        assert answer("yes", job(special=True))[0] == "yes"
        params = SamplingParams(max_new_tokens=20, eos_token_ids=tuple(tokenizer().encode("!")))
        assert answer("yes!no", job(params=params))[0] == "yes"


class TestLogprobs:
    def test_they_are_the_log_softmax_of_the_raw_logits(self):
        _, pieces = answer("12", job(logprobs=3))
        (entry,) = pieces[0].logprobs
        one = tokenizer().encode("1")[0]
        logits = torch.zeros(VOCAB)
        logits[one] = 10.0
        expected = torch.log_softmax(logits, -1)
        assert (entry.token_id, entry.data) == (one, b"1")
        assert entry.logprob == pytest.approx(float(expected[one]), abs=1e-6)
        assert entry.top[0][0] == one and len(entry.top) == 3
        assert entry.top[1][2] == pytest.approx(float(expected[0]), abs=1e-6)

    def test_without_alternatives_there_are_none(self):
        _, pieces = answer("1", job(logprobs=0))
        assert pieces[0].logprobs[0].top == ()

    def test_they_come_with_their_text_and_not_for_what_is_cut(self):
        _, pieces = answer("a##b###c", job(stops=("###",), logprobs=0))
        shown = [(piece.text, b"".join(e.data for e in piece.logprobs).decode()) for piece in pieces]
        assert all(text == data for text, data in shown), shown

    @pytest.mark.parametrize("per_step", [1, 4])
    def test_all_tokens_but_the_end_have_one(self, per_step):
        text, pieces = answer("Größe 🙂", job(logprobs=0), per_step=per_step)
        data = b"".join(entry.data for piece in pieces for entry in piece.logprobs)
        assert data.decode() == text == "Größe 🙂"


class Only:
    """A constraint that allows the given tokens in turn, and ends behind the last."""

    def __init__(self, *tokens):
        self.tokens, self.taken = list(tokens), []

    def mask(self, scores_1V):
        allowed = self.tokens[len(self.taken)]
        kept = scores_1V[0, allowed].item()
        scores_1V.fill_(float("-inf"))
        scores_1V[0, allowed] = kept
        return scores_1V

    def accept(self, token):
        self.taken.append(token)
        return self.taken == self.tokens


class TestEnds:
    def test_a_constraint_decides_what_is_said_and_when_it_is_over(self):
        wanted = tokenizer().encode("77")
        text, pieces = answer("12345", job(constraint=Only(*wanted)))
        assert text == "77" and pieces[-1].end == "stop"
        assert pieces[-1].usage.completion_tokens == 2

    def test_a_loop_is_cut(self):
        text, pieces = answer("ab" * 500, job(repetition_tokens=64, max_new_tokens=900))
        assert pieces[-1].end == "repetition" and text == "ab" * 32

    def test_a_loop_may_run_where_the_detector_is_off(self):
        text, pieces = answer("ab" * 100, job(max_new_tokens=900))
        assert pieces[-1].end == "stop" and text == "ab" * 100

    def test_the_length(self):
        text, pieces = answer("12345", job(max_new_tokens=3))
        assert (text, pieces[-1].end) == ("123", "length")
        assert pieces[-1].usage == Usage(len(text_prompt("Hello").token_ids), 0, 3)

    def test_an_unfinished_character_at_the_end_is_left_out(self):
        ids = tokenizer().encode("a🙂")
        text, pieces = answer(ids[:-1], job())
        assert text == "a" and pieces[-1].usage.completion_tokens == len(ids) - 1

    def test_a_failing_hook_ends_its_own_answer(self):
        class Broken(Only):
            def accept(self, token):
                raise ZeroDivisionError("of the grammar")

        backend = fake_backend("12", media=False)
        broken, good = run_jobs(backend, job(constraint=Broken(16)), job())
        assert broken[-1].end == "error" and isinstance(broken[-1].error, ZeroDivisionError)
        assert good[-1].end == "stop"

    def test_every_token_is_reported_once(self):
        _, pieces = answer("one ## two", job(stops=("###",)), per_step=2)
        assert [t for piece in pieces for t in piece.token_ids] == [
            *tokenizer().encode("one ## two"),
            token("<|im_end|>"),
        ]
