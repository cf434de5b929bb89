"""The decoding loop on a toy network: packing, chunks, media, limits, hooks, guesses, errors."""

import pytest
import torch

from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.fake import FakeEngine
from qvl.engine.kv import SequenceKV
from qvl.engine.sampler import Sampler
from qvl.engine.sequence import Hooks
from qvl.errors import (
    CacheError,
    GenerationError,
    NonFiniteError,
    PlaceholderMismatchError,
    PromptError,
    PromptTooLongError,
)
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, VOCAB, WIDTH, FakeNetwork


def text(*ids, **fields):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1), **fields)


def picture(start, grid, seed=0):
    patches_PC = torch.randn(grid.patches, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    return Span("image", start, grid.tokens(2)), Medium("image", grid, patches_PC)


def pictures_prompt():
    """Fifteen tokens, six of one picture and two of another; their positions are not their indices."""
    first, second = picture(2, Grid(1, 4, 6), 1), picture(10, Grid(1, 2, 4), 2)
    ids = [1, 2, *[0] * 6, 3, 4, *[0] * 2, 5, 6, 7]
    positions = torch.tensor([[0, 1, *[2] * 6, 5, 6, *[7] * 2, 9, 10, 11]]).repeat(3, 1)
    positions[2, 2:8] += torch.tensor([0, 1, 2, 0, 1, 2])
    media = {"spans": (first[0], second[0]), "media": (first[1], second[1])}
    return Prompt(ids, positions, rope_delta=-3, **media)


PROMPTS = [text(1, 2, 3, 4, 5), pictures_prompt(), text(9), text(*range(20))]


def answer(network, prompt, params=None, settings=None, **more):
    """The new tokens and the finished sequence of one request."""
    engine = Engine(network, settings)
    engine.add(prompt, params or SamplingParams(), **more)
    deltas = list(engine.run())
    ids = [token for d in deltas for token in d.token_ids]
    finished = deltas[-1].extras["sequence"]
    assert finished.output_ids == ids and deltas[-1].finish_reason == finished.finish_reason is not None
    return ids, finished


def alone(prompt, **params):
    return answer(FakeNetwork(), prompt, SamplingParams(**params))[0]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "pictures", "one token", "long"])
def test_chunks_do_not_matter(prompt):
    whole = alone(prompt, max_new_tokens=12)
    assert len(set(whole)) > 2  # the toy says something
    for size in (1, 4, 7):
        network = FakeNetwork()
        assert answer(network, prompt, SamplingParams(max_new_tokens=12), EngineSettings(size))[0] == whole
        assert max(network.passes) <= size


def test_cached_steps_equal_one_pass_over_everything():
    """What is decoded token by token is what the prompt with these tokens in it says."""
    ids = alone(text(1, 2, 3), max_new_tokens=6)
    for n in range(1, 6):
        assert alone(text(1, 2, 3, *ids[:n]), max_new_tokens=1) == ids[n : n + 1]


@pytest.mark.parametrize("size", [5, 11, 1000])
def test_together_is_alone(size):
    """Greedy and sampled, guessing or not: nobody's answer depends on who shares the steps."""
    settings = [
        {},
        {"temperature": 0.7, "seed": 3},
        {"prompt_lookup_num_tokens": 3},
        {"repetition_penalty": 1.5},
        {"temperature": 1.3, "seed": 4, "top_k": 5, "prompt_lookup_num_tokens": 4},
    ]
    requests = [(p, {"max_new_tokens": 9 + i, **s}) for i, s in enumerate(settings) for p in PROMPTS]
    engine = Engine(FakeNetwork(), EngineSettings(size))
    numbers = [engine.add(prompt, SamplingParams(**params)) for prompt, params in requests]
    got = {number: [] for number in numbers}
    for delta in engine.run():
        got[delta.sequence_id] += delta.token_ids
    for number, (prompt, params) in zip(numbers, requests, strict=True):
        assert got[number] == alone(prompt, **params)
    assert not engine.has_work


class TestMedia:
    def test_all_media_of_a_step_in_one_call(self):
        network = FakeNetwork()
        engine = Engine(network)
        for _ in range(2):
            engine.add(pictures_prompt(), SamplingParams(max_new_tokens=3))
        list(engine.run())
        assert network.encoded == [4]

    def test_a_shared_picture_is_encoded_once(self):
        network, prompt = FakeNetwork(), pictures_prompt()
        engine = Engine(network)
        for _ in range(3):
            engine.add(prompt, SamplingParams(max_new_tokens=3))
        list(engine.run())
        assert network.encoded == [2]

    def test_encoded_when_first_needed_and_forgotten_after(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(4))
        number = engine.add(pictures_prompt(), SamplingParams(max_new_tokens=2))
        kept = []
        while engine.has_work:
            engine.step()
            kept.append(list(engine.sequence(number).vision) if engine.has_work else [])
        assert network.encoded == [1, 1]
        assert kept == [[0], [], [], [], []]

    def test_not_encoded_inside_a_cached_prefix(self):
        prompt = pictures_prompt()
        expected, first = answer(FakeNetwork(), prompt, SamplingParams(max_new_tokens=6), keep_kv=True)
        kv, network = first.kv, FakeNetwork()
        kv.truncate(9)  # the first picture and a little more
        assert answer(network, prompt, SamplingParams(max_new_tokens=6), kv=kv)[0] == expected
        assert network.encoded == [1]
        assert network.passes[0] == 15 - 9

    def test_embeddings_instead_of_ids(self):
        prompt, table = pictures_prompt(), FakeNetwork().table
        given = Prompt(
            (),
            prompt.positions_3T,
            -3,
            prompt.spans,
            prompt.media,
            embeds_TD=table[torch.tensor(prompt.token_ids)],
        )
        expected = alone(prompt, max_new_tokens=8)
        for size in (6, 100):
            assert (
                answer(FakeNetwork(), given, SamplingParams(max_new_tokens=8), EngineSettings(size))[0]
                == expected
            )
        other = Prompt((), prompt.positions_3T, -3, embeds_TD=torch.ones(15, WIDTH))
        assert alone(other, max_new_tokens=8) != expected

    def test_wrong_number_of_placeholders(self):
        span, medium = picture(1, Grid(1, 4, 6))
        short = Span("image", 1, 4)
        for spans in ((short,), (span, span)):
            with pytest.raises(PlaceholderMismatchError, match=r"4 placeholders|2 pictures"):
                alone(text(*[1] * 9, spans=spans, media=(medium,)))


class TestEnds:
    def test_length_and_end_token(self):
        ids, finished = answer(FakeNetwork(), text(1, 2, 3), SamplingParams(max_new_tokens=7))
        assert len(ids) == 7 and finished.finish_reason == "length"
        end = ids[3]
        params = SamplingParams(max_new_tokens=7, eos_token_ids=(VOCAB - 1, end))
        shorter, finished = answer(FakeNetwork(), text(1, 2, 3), params)
        assert shorter == ids[: ids.index(end) + 1] and finished.finish_reason == "stop"

    def test_stop_hook_is_asked_after_every_token(self):
        asked = []

        def stop(sequence, scores_1V):
            asked.append((list(sequence.output_ids), tuple(scores_1V.shape)))
            return len(sequence.output_ids) == 3

        ids, finished = answer(FakeNetwork(), text(1, 2, 3), hooks=Hooks(stop=stop))
        assert finished.finish_reason == "stop"
        assert asked == [(ids[:n], (1, VOCAB)) for n in (1, 2, 3)]

    def test_abort(self):
        engine = Engine(FakeNetwork())
        first = engine.add(text(1, 2), SamplingParams(max_new_tokens=5))
        second = engine.add(text(1, 2), SamplingParams(max_new_tokens=5))
        engine.step()
        assert engine.abort(first) and not engine.abort(first)
        deltas = list(engine.run())
        assert [d.finish_reason for d in deltas if d.sequence_id == first] == ["abort"]
        assert sum(len(d.token_ids) for d in deltas if d.sequence_id == second) == 4

    def test_abort_of_the_only_one_is_still_told(self):
        engine = Engine(FakeNetwork())
        engine.abort(engine.add(text(1, 2), SamplingParams()))
        assert [d.finish_reason for d in engine.run()] == ["abort"]

    @pytest.mark.parametrize("hook", ["process", "stop", "record", "on_tokens", "progress"])
    def test_abort_from_a_hook(self, hook):
        """Of itself and of a neighbour: the step is done, then both are told to be over, once."""
        engine, asked = Engine(FakeNetwork()), []

        def abort(*args):
            asked.extend(engine.abort(i) for i in (() if asked else (0, 1)))
            return args[-1] if hook == "process" else False

        engine.add(text(1, 2), SamplingParams(), hooks=Hooks(**{hook: abort}))
        engine.add(text(3, 4), SamplingParams())
        engine.add(text(5, 6), SamplingParams())
        ends = [(d.sequence_id, d.finish_reason) for d in engine.run() if d.finish_reason]
        assert asked[:2] == [True, True]
        assert ends == [(0, "abort"), (1, "abort"), (2, "length")]

    def test_abort_in_a_step_that_fails(self):
        """The error is what is told, and once."""
        engine = Engine(FakeNetwork())

        def abort_and_fail(sequence, new):
            engine.abort(0)
            raise ZeroDivisionError

        engine.add(text(1, 2), SamplingParams(), hooks=Hooks(on_tokens=abort_and_fail))
        assert [d.finish_reason for d in engine.run()] == ["error"]
        assert not engine.has_work

    @pytest.mark.parametrize("reason", ["repetition", "length", "stop", True])
    def test_a_stop_hook_names_the_reason(self, reason):
        hooks = Hooks(stop=lambda sequence, scores_1V: reason if len(sequence.output_ids) == 2 else False)
        ids, finished = answer(FakeNetwork(), text(1, 2, 3), hooks=hooks)
        assert len(ids) == 2 and finished.finish_reason == ("stop" if reason is True else reason)


class TestHooks:
    def test_process_acts_between_penalties_and_truncation(self):
        def only_four_and_five(sequence, scores_1V):
            scores_1V[:] = float("-inf")
            scores_1V[:, [4, 5]] = torch.tensor([1.0, 0.9])
            return scores_1V

        hooks = Hooks(process=only_four_and_five)
        assert set(answer(FakeNetwork(), text(1), SamplingParams(), hooks=hooks)[0]) == {4}
        params = SamplingParams(temperature=1.0, seed=0, max_new_tokens=60)
        assert set(answer(FakeNetwork(), text(1), params, hooks=hooks)[0]) == {4, 5}
        params = SamplingParams(temperature=1.0, seed=0, max_new_tokens=60, top_k=1)
        assert set(answer(FakeNetwork(), text(1), params, hooks=hooks)[0]) == {4}

    def test_record_sees_logits_and_scores_of_every_token(self):
        seen = []

        def negate(sequence, scores_1V):
            return scores_1V.neg_()

        def record(sequence, logits_1V, scores_1V):
            seen.append((len(sequence.output_ids), logits_1V, scores_1V))

        ids, _ = answer(FakeNetwork(), text(1, 2), hooks=Hooks(process=negate, record=record))
        assert [n for n, _, _ in seen] == list(range(20))
        assert all(torch.equal(logits, -scores) for _, logits, scores in seen)
        assert [int(scores.argmax()) for _, _, scores in seen] == ids
        seen[0][1].zero_()  # ordinary tensors: no inference mode left on them

    def test_streaming_and_progress(self):
        new, progress = [], []
        hooks = Hooks(
            on_tokens=lambda sequence, ids: new.append(list(ids)),
            progress=lambda *pair: progress.append(pair),
        )
        ids, _ = answer(FakeNetwork(), text(*range(20)), settings=EngineSettings(8), hooks=hooks)
        assert [token for part in new for token in part] == ids and all(len(part) == 1 for part in new)
        assert progress == [(8, 20), (16, 20), (20, 20)]


def test_scores_and_tokens_are_those_of_each_alone():
    """Sequences of three kinds share a step; truncation in one tensor changes no bit and no draw."""
    kinds = [
        {"temperature": 0.8, "top_k": 9, "top_p": 0.9},
        {"repetition_penalty": 1.4},
        {"temperature": 1.3, "min_p": 0.02, "typical_p": 0.9, "no_repeat_ngram_size": 2},
    ]

    def run(numbers):
        engine, seen = Engine(FakeNetwork()), {n: [] for n in numbers}
        for n in numbers:

            def record(sequence, logits_1V, scores_1V, n=n):
                seen[n].append((logits_1V.clone(), scores_1V.clone()))

            engine.add(text(1, 2), SamplingParams(seed=n, **kinds[n % 3]), hooks=Hooks(record=record))
        ids = {}
        for delta in engine.run():
            ids.setdefault(numbers[delta.sequence_id], []).extend(delta.token_ids)
        return ids, seen

    ids, seen = run(range(7))
    for n in range(7):
        own_ids, own_seen = run([n])
        assert ids[n] == own_ids[n]
        for together, alone in zip(seen[n], own_seen[n], strict=True):
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_truncation_of_many_rows_is_that_of_each_bit_for_bit():
    params = SamplingParams(
        temperature=0.7, top_k=50, top_p=0.9, min_p=0.01, typical_p=0.9, epsilon_cutoff=1e-4, eta_cutoff=1e-3,
        renormalize_logits=True,
    )  # fmt: skip
    sampler = Sampler(params, [1], vocab_size=1000, device="cpu")
    logits_NV = 4 * torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    rows = [sampler.truncated(row) for row in logits_NV.split(1)]
    assert torch.equal(sampler.truncated(logits_NV), torch.cat(rows))


class TestGuessing:
    def test_fewer_passes_same_answer(self):
        """A hook that makes the model count in circles: guesses hold, and steps are saved."""

        def next_of_five(sequence, scores_1V):
            last = sequence.output_ids[-1] if sequence.output_ids else 0
            return torch.nn.functional.one_hot(torch.tensor([(last + 1) % 5]), VOCAB).float()

        hooks, network = Hooks(process=next_of_five), FakeNetwork()
        params = SamplingParams(max_new_tokens=40, prompt_lookup_num_tokens=6)
        ids, finished = answer(network, text(9, 9), params, hooks=hooks, keep_kv=True)
        assert ids == [(i + 1) % 5 for i in range(40)]
        assert len(network.passes) < 15
        assert finished.kv.length == finished.length - 1 == 41

    @pytest.mark.parametrize("sampled", [{}, {"temperature": 0.3}], ids=["greedy", "sampled"])
    def test_exact_whatever_the_guesses(self, sampled):
        prompt = text(1, 2, 3, 1, 2, 3, 1, 2)
        torch.manual_seed(5)
        plain = alone(prompt, max_new_tokens=40, **sampled)
        torch.manual_seed(5)
        assert alone(prompt, max_new_tokens=40, prompt_lookup_num_tokens=4, **sampled) == plain

    def test_an_end_inside_a_guess_ends(self):
        prompt = text(1, 2, 3, 1, 2, 3, 1, 2)
        plain = alone(prompt, max_new_tokens=40)
        end = plain[10]
        params = {"max_new_tokens": 40, "eos_token_ids": (end,)}
        assert alone(prompt, prompt_lookup_num_tokens=4, **params) == alone(prompt, **params)

    def test_no_guesses_where_frequencies_follow_the_length(self):
        network = FakeNetwork(follows_length=True)
        answer(network, text(1, 1, 1, 1), SamplingParams(prompt_lookup_num_tokens=4))
        assert network.passes[1:] == [1] * 19


class TestCaches:
    def test_kept_and_continued(self):
        ids, finished = answer(FakeNetwork(), text(1, 2, 3), SamplingParams(max_new_tokens=4), keep_kv=True)
        assert finished.kv.length == 6
        network = FakeNetwork()
        more, _ = answer(network, text(1, 2, 3, *ids, 8, 9), kv=finished.kv)
        assert more == alone(text(1, 2, 3, *ids, 8, 9))
        assert network.passes[0] == 3

    def test_let_go_unless_asked_for(self):
        assert answer(FakeNetwork(), text(1, 2))[1].kv is None

    def test_that_do_not_fit(self):
        def cache(layers=1, **settings):
            return SequenceKV(layers, 2, 4, dtype=torch.float32, device="cpu", **settings)

        with pytest.raises(CacheError, match="another model"):
            answer(FakeNetwork(), text(1, 2), kv=cache(layers=2))
        with pytest.raises(CacheError, match="at most 10 tokens, but prompt and answer may need 21"):
            answer(FakeNetwork(), text(1, 2), kv=cache(max_capacity=10))
        full = answer(FakeNetwork(), text(1, 2), keep_kv=True)[1].kv
        with pytest.raises(CacheError, match="already holds 21 tokens"):
            answer(FakeNetwork(), text(1, 2), kv=full)

    def test_positions_of_a_long_rope_count_the_whole_prompt(self):
        network = FakeNetwork(follows_length=True)
        engine = Engine(network, EngineSettings(5))
        engine.add(pictures_prompt(), SamplingParams(max_new_tokens=3))
        extents = []
        while engine.has_work:
            engine.step()
            extents += network.extents
        assert extents == [12, 12, 12, 13, 14]


class TestRefusals:
    @pytest.mark.parametrize("count", [0, -3])
    def test_new_tokens(self, count):
        with pytest.raises(GenerationError, match="at least 1"):
            alone(text(1), max_new_tokens=count)

    def test_prompts(self):
        with pytest.raises(PromptError, match="empty"):
            alone(text())
        with pytest.raises(PromptError, match="2 token ids, but positions for 3"):
            alone(Prompt([1, 2], torch.zeros(3, 3, dtype=torch.long)))
        with pytest.raises(PromptError, match="1 embeddings"):
            alone(text(1, 2, embeds_TD=torch.zeros(1, WIDTH)))
        for wrong in (-1, VOCAB):
            with pytest.raises(PromptError, match=f"Token id {wrong} is not in the vocabulary of {VOCAB}"):
                alone(text(1, wrong))

    def test_too_long_and_nothing_is_queued(self):
        engine = Engine(FakeNetwork(max_positions=4))
        with pytest.raises(PromptTooLongError, match="5 positions, but the model was made for 4"):
            engine.add(text(1, 2, 3, 4, 5), SamplingParams())
        assert not engine.has_work
        network = FakeNetwork(max_positions=4)
        network.model.language_model.config.rope_scaling = {"rope_type": "yarn", "factor": 2.0}
        assert answer(network, text(1, 2, 3, 4, 5))[0]

    def test_not_a_number(self):
        network = FakeNetwork()
        network.head[0, 0] = float("nan")
        engine = Engine(network)
        engine.add(text(1, 2), SamplingParams())
        (delta,) = engine.step()
        assert delta.finish_reason == "error"
        with pytest.raises(NonFiniteError, match=r"text decoder output .* weights head hold"):
            raise delta.extras["error"]
        assert not engine.has_work  # the broken request does not block the engine
        network.head[0, 0] = 1.0
        engine.add(text(1, 2), SamplingParams())
        assert len(list(engine.run())) == 20

    def test_a_hook_that_raises_ends_its_request(self):
        engine = Engine(FakeNetwork())

        def stop(sequence, scores_1V):
            raise ZeroDivisionError

        engine.add(text(1, 2), SamplingParams(), hooks=Hooks(stop=stop))
        (delta,) = engine.step()
        assert isinstance(delta.extras["error"], ZeroDivisionError)
        assert delta.extras["sequence"].error is delta.extras["error"]
        assert not engine.has_work


class TestFakeEngine:
    def test_says_its_script(self):
        engine, new = FakeEngine([5, 6, 7]), []
        hooks = Hooks(on_tokens=lambda sequence, ids: new.extend(ids))
        first = engine.add(text(1), SamplingParams(max_new_tokens=2), hooks=hooks)
        second = engine.add(text(1), SamplingParams())
        third = engine.add(text(1), SamplingParams(eos_token_ids=(5,)))
        deltas = list(engine.run())
        ends = {
            d.sequence_id: (d.extras["sequence"].output_ids, d.finish_reason)
            for d in deltas
            if d.finish_reason
        }
        assert ends == {first: ([5, 6], "length"), second: ([5, 6, 7], "stop"), third: ([5], "stop")}
        assert new == [5, 6]

    def test_script_from_the_prompt_and_abort(self):
        engine = FakeEngine(lambda prompt: prompt.token_ids)
        number = engine.add(text(3, 4, 5), SamplingParams())
        assert engine.step()[0].token_ids == (3,)
        assert engine.abort(number) and not engine.abort(number)
        assert [d.finish_reason for d in engine.run()] == ["abort"]

    def test_same_refusals(self):
        with pytest.raises(GenerationError):
            FakeEngine([1]).add(text(1), SamplingParams(max_new_tokens=0))

    def test_hooks_see_the_scripted_token_as_the_likeliest(self):
        seen = []

        def forbid_six(sequence, scores_1V):
            assert scores_1V.shape == (1, 30)
            scores_1V[0, 6] = -1.0
            return scores_1V

        hooks = Hooks(
            process=forbid_six,
            record=lambda sequence, logits, scores: seen.append(int(logits.argmax())),
            stop=lambda sequence, scores: "repetition" if len(sequence.output_ids) == 3 else False,
        )
        engine = FakeEngine([5, 6, 7, 8], vocab_size=30)
        engine.add(text(1), SamplingParams(), hooks=hooks, client="somebody")
        deltas = list(engine.run())
        assert [d.token_ids for d in deltas] == [(5,), (0,), (7,)]
        assert seen == [5, 6, 7] and deltas[-1].finish_reason == "repetition"
        assert engine.stats().output_tokens == 3 and engine.stats().running == 0

    def test_errors_on_request(self):
        engine = FakeEngine([5, ValueError("as told")])
        engine.add(text(1), SamplingParams())
        first, last = engine.run()
        assert first.token_ids == (5,) and last.finish_reason == "error"
        assert str(last.extras["error"]) == "as told"

        def refuse(prompt):
            raise PromptTooLongError("too long")

        with pytest.raises(PromptTooLongError):
            FakeEngine(refuse).add(text(1), SamplingParams())

    def test_a_hook_that_raises_or_aborts(self):
        engine = FakeEngine([5, 6])
        engine.add(text(1), SamplingParams(), hooks=Hooks(on_tokens=lambda s, new: 1 / 0))
        second = engine.add(text(1), SamplingParams(), hooks=Hooks(stop=lambda s, x: engine.abort(second)))
        ends = {d.sequence_id: d.finish_reason for d in engine.run() if d.finish_reason}
        assert ends == {0: "error", 1: "stop"}  # the step was done first
