"""A draft model beside the checking one: the same answer when greedy, the same distribution when sampling."""

from collections import Counter
from itertools import product

import pytest
import torch

from qvl.engine.draft import DraftModel
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.guessing import StepTimes
from qvl.engine.sampler import Sampler
from qvl.engine.sequence import Hooks
from qvl.errors import GenerationError
from qvl.ops.sampling import check_draw
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, VOCAB, WIDTH, FakeNetwork


def text(*ids, **fields):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1), **fields)


def picture_prompt(seed=0):
    grid = Grid(1, 4, 6)
    patches_PC = torch.randn(grid.patches, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    ids = [1, 2, *[0] * 6, 3, 4]
    positions = torch.tensor([0, 1, *[2] * 6, 5, 6]).repeat(3, 1)
    media = {"spans": (Span("image", 2, 6),), "media": (Medium("image", grid, patches_PC),)}
    return Prompt(ids, positions, rope_delta=-3, **media)


PROMPTS = [text(1, 2, 3, 4, 5), picture_prompt(), text(9), text(*range(20)), text(7, 7, 7)]


def near(scale=0.05, seed=1):
    """A network much like `FakeNetwork()`: its likeliest token is often the same, not always."""
    network, noise = FakeNetwork(), torch.Generator().manual_seed(seed)
    network.head = network.head + scale * torch.randn(network.head.shape, generator=noise)
    return network


def run(draft, prompts, settings=None, hooks=None, times=None, **params):
    """The answers of all prompts, run together; and the finished sequences."""
    params = {"max_new_tokens": 40, **params}
    network = FakeNetwork()
    engine = Engine(network, settings, draft=draft, times=times)
    ids = [engine.add(p, SamplingParams(**params), hooks=hooks() if hooks else None) for p in prompts]
    answers, done = {i: [] for i in ids}, {}
    for delta in engine.run():
        answers[delta.sequence_id] += delta.token_ids
        if delta.finish_reason:
            done[delta.sequence_id] = delta.extras["sequence"]
    return [answers[i] for i in ids], [done[i] for i in ids], network


class Wandering:
    """A logits processor with a memory: it must see every token once, in order, and no draft."""

    def __init__(self):
        self.seen = []

    def __call__(self, sequence, scores_1V):
        assert len(sequence.output_ids) == len(self.seen)
        self.seen.append(len(sequence.output_ids))
        return scores_1V.roll(len(self.seen) % 3, dims=-1)


GREEDY = {
    "plain": {},
    "one": {"num_assistant_tokens": 1},
    "many": {"num_assistant_tokens": 12, "assistant_confidence_threshold": 0.0},
    "unsure": {"num_assistant_tokens": 6, "assistant_confidence_threshold": 0.9},
    "heuristic": {"num_assistant_tokens": 2, "num_assistant_tokens_schedule": "heuristic"},
    "penalties": {"num_assistant_tokens": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "forced end": {"num_assistant_tokens": 5, "forced_eos_token_ids": (3,), "min_new_tokens": 6},
    "bias": {"num_assistant_tokens": 5, "sequence_bias": (((4, 5), 9.0),), "suppress_tokens": (2,)},
}  # fmt: skip


class TestGreedy:
    @pytest.mark.parametrize("settings", GREEDY.values(), ids=GREEDY)
    @pytest.mark.parametrize(
        "draft", [FakeNetwork, near, lambda: FakeNetwork(seed=9)], ids=["same", "near", "no"]
    )
    def test_the_same_answers_together_and_alone(self, draft, settings):
        expected, _, _ = run(None, PROMPTS, **settings)
        together, sequences, _ = run(draft(), PROMPTS, **settings)
        assert together == expected
        assert [run(draft(), [p], **settings)[0][0] for p in PROMPTS] == expected
        if settings:
            assert all(s.guessed for s in sequences)

    def test_an_equal_model_saves_steps(self):
        """All but what follows a draft that the model itself was unsure of."""
        _, (sequence,), network = run(
            FakeNetwork(), PROMPTS[:1], num_assistant_tokens=4, assistant_confidence_threshold=0.0
        )
        assert sequence.accepted == sequence.guessed == 31  # 1 + 7 * (4 + 1) + (3 + 1) = 40 tokens
        assert network.passes == [5, *[5] * 7, 4]

    @pytest.mark.parametrize("size", [1, 3, 7])
    def test_in_chunks(self, size):
        settings = EngineSettings(max_step_tokens=size)
        expected, _, _ = run(None, PROMPTS)
        draft = near()
        assert run(draft, PROMPTS, settings, num_assistant_tokens=4)[0] == expected
        assert max(draft.passes, default=0) <= size

    def test_an_end_inside_the_drafts_ends(self):
        (plain,), _, _ = run(None, PROMPTS[:1])
        params = {"eos_token_ids": (plain[12],)}
        expected, _, _ = run(None, PROMPTS[:1], **params)
        assert run(FakeNetwork(), PROMPTS[:1], num_assistant_tokens=9, **params)[0] == expected

    def test_the_callers_processor_sees_every_token_once(self):
        expected, _, _ = run(None, PROMPTS, hooks=lambda: Hooks(process=Wandering()))
        assert (
            run(near(), PROMPTS, hooks=lambda: Hooks(process=Wandering()), num_assistant_tokens=5)[0]
            == expected
        )

    def test_a_stop_inside_the_drafts_stops(self):
        def stopping():
            return Hooks(
                stop=lambda sequence, scores: sequence.output_ids[-1] == 3 and len(sequence.output_ids) > 4
            )

        expected, _, _ = run(None, PROMPTS, hooks=stopping)
        assert run(near(), PROMPTS, hooks=stopping, num_assistant_tokens=6)[0] == expected

    def test_nothing_is_drafted_where_frequencies_follow_the_length(self):
        draft = FakeNetwork()
        engine = Engine(FakeNetwork(follows_length=True), draft=draft)
        engine.add(text(1, 2), SamplingParams(num_assistant_tokens=4))
        list(engine.run())
        assert draft.passes == []

    def test_left_out_where_zero_is_asked_for(self):
        draft = FakeNetwork()
        run(draft, PROMPTS, num_assistant_tokens=0)
        assert draft.passes == []


class TestDraftModel:
    def test_all_sequences_share_a_pass(self):
        draft = FakeNetwork()
        run(draft, PROMPTS, num_assistant_tokens=3, assistant_confidence_threshold=0.0, max_new_tokens=5)
        # Prompts, then three drafts for each of five sequences; then nothing is left to guess.
        assert draft.passes == [sum(len(p.token_ids) for p in PROMPTS), 5, 5, 5]

    def test_it_sees_the_picture_once(self):
        draft = FakeNetwork()
        run(draft, [picture_prompt()], num_assistant_tokens=3)
        assert draft.encoded == [1]

    def test_what_was_refused_is_forgotten(self):
        """Its keys and values are those of a pass over the tokens that really came."""
        network, draft = FakeNetwork(), near(0.4)
        engine = Engine(network, draft=draft)
        params = SamplingParams(max_new_tokens=30, num_assistant_tokens=6, assistant_confidence_threshold=0.0)
        engine.add(text(1, 2, 3), params, keep_kv=True)
        sequence = list(engine.run())[-1].extras["sequence"]
        assert 0 < sequence.accepted < sequence.guessed
        kept = sequence.kv.draft
        assert list(kept.ids) == [1, 2, 3, *sequence.output_ids][: kept.kv.length]
        other = Engine(draft)
        other.add(text(*kept.ids), SamplingParams(max_new_tokens=1), keep_kv=True)
        fresh = list(other.run())[-1].extras["sequence"].kv
        for ours, theirs in zip(kept.kv.read(0), fresh.read(0), strict=True):
            torch.testing.assert_close(ours, theirs)

    def test_the_next_turn_goes_on_from_what_it_knows(self):
        draft = FakeNetwork()
        params = SamplingParams(max_new_tokens=10, num_assistant_tokens=3)
        engine = Engine(FakeNetwork(), draft=draft)
        engine.add(text(*range(12)), params, keep_kv=True)
        first = list(engine.run())[-1].extras["sequence"]
        turn = text(*range(12), *first.output_ids, 5, 6)
        before = len(draft.passes)
        engine.add(turn, params, kv=first.kv)
        again = [token for delta in engine.run() for token in delta.token_ids]
        assert again == run(None, [turn], max_new_tokens=10)[0][0]
        assert draft.passes[before] <= 6  # of 24

    def test_other_pictures_under_the_same_ids_only_make_worse_drafts(self):
        params = SamplingParams(max_new_tokens=20, num_assistant_tokens=3)
        engine = Engine(FakeNetwork(), draft=FakeNetwork())
        engine.add(picture_prompt(0), params, keep_kv=True)
        kept = list(engine.run())[-1].extras["sequence"].kv.draft
        kv = Engine(FakeNetwork()).runner._new_kv(64)
        kv.draft = kept
        engine.add(picture_prompt(1), params, kv=kv)
        again = [token for delta in engine.run() for token in delta.token_ids]
        assert again == run(None, [picture_prompt(1)], max_new_tokens=20)[0][0]

    def test_a_clock_that_says_no_stops_it(self):
        """As slow as the model that it helps: tried a few times, then left alone; the answer stays."""
        times, slow = StepTimes(), near(2.0)
        for _ in range(4):
            times.note(1, 1e-9)
        engine = Engine(FakeNetwork(), draft=slow, times=times, draft_times=StepTimes())
        for _ in range(4):
            engine.draft.times.note(1, 1e3)
            times.note(4, 1e-9)
        engine.add(text(1, 2), SamplingParams(max_new_tokens=200))
        ids = [token for delta in engine.run() for token in delta.token_ids]
        assert ids == run(None, [text(1, 2)], max_new_tokens=200)[0][0]
        assert len(slow.passes) < 20

    def test_prompts_that_it_cannot_read(self):
        embeds_TD = torch.randn(4, WIDTH)
        engine = Engine(FakeNetwork(), draft=FakeNetwork())
        with pytest.raises(GenerationError, match="inputs_embeds"):
            engine.add(text(1, 2, 3, 4, embeds_TD=embeds_TD), SamplingParams())
        engine = Engine(FakeNetwork(), draft=FakeNetwork(max_positions=3))
        with pytest.raises(GenerationError, match="draft model cannot follow"):
            engine.add(text(1, 2, 3, 4), SamplingParams())
        assert not engine.has_work

    def test_a_failing_draft_model_leaves_the_sequences_alone(self):
        draft = FakeNetwork()
        draft.head = draft.head * torch.nan
        engine = Engine(FakeNetwork(), draft=draft)
        engine.add(text(1, 2), SamplingParams(max_new_tokens=10, num_assistant_tokens=3))
        tokens = list(engine.step()[0].token_ids)
        with pytest.raises(Exception, match="not finite"):
            engine.step()
        tokens += [token for delta in engine.run() for token in delta.token_ids]
        assert tokens == run(None, [text(1, 2)], max_new_tokens=10)[0][0]

    @pytest.mark.parametrize("rows", [VOCAB - 4, VOCAB + 4])
    def test_rows_that_only_one_vocabulary_has_are_never_drafted(self, rows):
        draft = FakeNetwork()
        generator = torch.Generator().manual_seed(3)
        more = 9 * torch.randn(WIDTH, 4, generator=generator)  # the extra rows would be the likeliest
        draft.head = torch.cat([draft.head, more], 1) if rows > VOCAB else draft.head[:, :rows]
        draft.model.language_model.config.vocab_size = max(rows, VOCAB)
        settings = {"num_assistant_tokens": 3, "temperature": 1.0, "seed": 3}
        answers, _, _ = run(draft, PROMPTS, **settings)
        assert all(0 <= token < VOCAB for ids in answers for token in ids)
        expected, _, _ = run(None, PROMPTS)
        assert run(draft, PROMPTS, num_assistant_tokens=3)[0] == expected


def far_off(counts, probabilities, total):
    """Standard deviations that chi-squared lies above its mean; cells too rare to tell are put together."""
    cells = [(counts.get(i, 0), p * total) for i, p in enumerate(probabilities)]
    told = [cell for cell in cells if cell[1] >= 5]
    rare = [sum(parts) for parts in zip(*(cell for cell in cells if cell[1] < 5), strict=True)]
    told += [rare] if rare and rare[1] >= 5 else []
    free = len(told) - 1
    return (sum((seen - due) ** 2 / due for seen, due in told) - free) / (2 * free) ** 0.5


class TestSampling:
    SCORES = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -torch.inf]])
    OTHER = torch.tensor([[0.0, 1.5, -torch.inf, 1.0, 0.5, 1.0]])

    def drawn(self, rule, total=20_000):
        generator, counts, stayed = torch.Generator().manual_seed(0), Counter(), 0
        q_1V = self.OTHER.softmax(-1)
        for _ in range(total):
            drafted = int(torch.multinomial(q_1V, 1, generator=generator))
            token = rule(self.SCORES, drafted, q_1V, generator)
            counts[token] += 1
            stayed += token == drafted
        return far_off(counts, self.SCORES.softmax(-1)[0].tolist(), total), stayed / total, counts

    def test_the_rule_keeps_the_distribution(self):
        distance, stayed, counts = self.drawn(check_draw)
        assert distance < 4
        assert counts[5] == 0
        overlap = torch.minimum(self.SCORES.softmax(-1), self.OTHER.softmax(-1)).sum()
        assert abs(stayed - float(overlap)) < 0.02  # the most that any rule can keep

    @pytest.mark.parametrize("wrong", ["resamples from p", "keeps too much", "takes the draft"])
    def test_the_test_tells_a_wrong_rule(self, wrong):
        def rule(scores_1V, drafted, q_1V, generator):
            p_1V = scores_1V.softmax(-1)
            ratio = p_1V[0, drafted] / q_1V[0, drafted]
            chance = torch.rand((), generator=generator)
            if wrong == "takes the draft" or chance < (ratio**0.5 if wrong == "keeps too much" else ratio):
                return drafted
            rest = p_1V if wrong == "resamples from p" else (p_1V - q_1V).clamp(min=0)
            return int(torch.multinomial(rest, 1, generator=generator))

        assert self.drawn(rule)[0] > 20

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"top_k": 4},
            {"top_p": 0.7, "repetition_penalty": 1.4},
            {"assistant_confidence_threshold": 0.5},
        ],
        ids=str,
    )
    def test_answers_are_distributed_as_without(self, settings):
        """Tokens that drafts stood for, of many sequences: counts of pairs, against the exact ones."""
        count, params = 800, {"temperature": 6.0, "max_new_tokens": 4, **settings}
        joint = self.exact(params)
        torch.manual_seed(1)
        drafts = {"assistant_confidence_threshold": 0.0, **params, "num_assistant_tokens": 3}
        answers, sequences, _ = run(near(0.6), [text(1, 2)] * count, EngineSettings(8192, 2048), **drafts)
        assert 0.1 < sum(s.accepted for s in sequences) / sum(s.guessed for s in sequences) < 0.95
        for first, second, exact in ((0, 1, joint.sum(2)), (1, 2, joint.sum(0))):
            pairs = Counter(ids[first] * VOCAB + ids[second] for ids in answers)
            assert far_off(pairs, exact.flatten().tolist(), count) < 4
            ones = Counter(ids[second] for ids in answers)
            assert far_off(ones, exact.sum(0).tolist(), count) < 4

    def exact(self, params):
        """(V, V, V): how likely each beginning of an answer is, from the network's own logits."""
        given = SamplingParams(**{k: v for k, v in params.items() if "assistant" not in k})
        engine, rows = Engine(FakeNetwork(), EngineSettings(8192, 2048)), {}

        def note(sequence, logits_1V, scores_1V):
            rows[tuple(sequence.output_ids)] = logits_1V

        for pair in product(range(VOCAB), repeat=2):
            hooks = Hooks(record=note, process=lambda s, x, p=pair: forced(x, [*p, 0][len(s.output_ids)]))
            engine.add(text(1, 2), SamplingParams(max_new_tokens=3), hooks=hooks)
        list(engine.run())
        sampler = Sampler(given, [1, 2], vocab_size=VOCAB, device="cpu")

        def likely(*before):
            twin = sampler.fork()
            for token in before:
                twin.append(token)
            return twin.truncated(twin._apply(twin.strategies.before, rows[before])).softmax(-1)[0]

        pairs = likely()[:, None] * torch.stack([likely(a) for a in range(VOCAB)])
        third = [likely(a, b) for a, b in product(range(VOCAB), repeat=2)]
        return pairs[:, :, None] * torch.stack(third).view(VOCAB, VOCAB, VOCAB)

    def test_repeatable_with_a_seed_whatever_the_clock_says(self):
        settings = {"temperature": 6.0, "seed": 5}
        clocks = [StepTimes(), StepTimes()]
        for _ in range(3):
            for clock, short, long in zip(clocks, (1e3, 1e-9), (1e3, 1e9), strict=True):
                clock.note(1, short)  # drafts are for nothing here, and never worth it there
                clock.note(6, long)
        draft = near()
        draft.named_parameters = list  # small beside the other
        runs = [run(draft, [text(1, 2)], times=clock, **settings) for clock in clocks]
        assert runs[0][0] == runs[1][0]
        assert all(sequences[0].guessed for _, sequences, _ in runs)


def forced(scores_1V, token):
    return torch.nn.functional.one_hot(torch.tensor([token]), scores_1V.shape[1]).float()


def test_draft_model_needs_no_engine_state():
    """What lasts beyond a step is on the sequences: the drafting class itself holds no request."""
    engine = Engine(FakeNetwork(), draft=FakeNetwork())
    before = dict(vars(engine.draft))
    engine.add(text(1, 2, 3), SamplingParams(num_assistant_tokens=3))
    list(engine.run())
    assert isinstance(engine.draft, DraftModel) and vars(engine.draft) == before
