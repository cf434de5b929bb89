"""Memory that does not suffice for everybody: who waits, who makes way, and that no answer changes by it."""

import random
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch

from qvl import Qwen2_5_VLForConditionalGeneration
from qvl.engine import budget
from qvl.engine.beams import BeamParams
from qvl.engine.budget import Memory
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.scheduler import Scheduler
from qvl.engine.sequence import Sequence
from qvl.errors import GenerationError, PromptTooLongError
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, VOCAB, FakeNetwork

TOKEN = 64  # bytes of a token's keys and values in the toy network: 2 tensors, 2 heads, 4 float32 each


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Memory is set aside a few tokens at a time, so that short answers outgrow it too."""
    monkeypatch.setattr(budget, "PIECE", 8)


def text(*ids, **fields):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1), **fields)


def counted(number, length, new, client="", token_bytes=3):
    """A sequence for the scheduler alone."""
    positions = SimpleNamespace(shape=(3, length))
    sequence = Sequence(
        number, Prompt(range(length), positions), SamplingParams(max_new_tokens=new), client=client
    )
    sequence.token_bytes = token_bytes
    return sequence


class Search:
    """A beam search, for the scheduler: one lane until the prompt is computed, then all of them."""

    def __init__(self, leader, width):
        self.id, self.client, self.width, self.status = leader.id, leader.client, width, "waiting"
        self.lanes = (leader,)

    def append(self):
        for lane in self.lanes:
            lane.append(7)
        if len(self.lanes) < self.width:
            leader = self.lanes[0]
            twins = [
                counted(self.id, leader.prompt_length, leader.params.max_new_tokens)
                for _ in range(self.width - 1)
            ]
            for twin in twins:
                twin.output_ids, twin.num_computed = list(leader.output_ids), leader.num_computed
                twin.reserved, twin.started = leader.reserved, True
            self.lanes = (leader, *twins)


class CountedPrefixes:
    """Kept prefixes as numbers: which of them a prompt begins with is drawn by lot."""

    def __init__(self, lot):
        self.lot, self.entries = lot, []

    @property
    def nbytes(self):
        return sum(entry.nbytes for entry in self.entries)

    def drop(self):
        return bool(self.entries and self.entries.pop(0))

    def find(self, sequence):
        fitting = [entry for entry in self.entries if self.lot.random() < 0.3]
        if not fitting:
            return None
        entry = fitting[0]
        self.entries.remove(entry)
        self.entries.append(entry)
        return entry

    def give(self, found, sequence, *, move):
        if move:
            self.entries.remove(found)
        sequence.num_computed = min(found.length, sequence.length - 1)

    def follow(self, sequence):
        return False


def play(seed):
    """One random schedule to its end, every promise checked at every step."""
    lot = random.Random(seed)
    limit = lot.choice([60, 150, 300]) * 3
    kept = CountedPrefixes(lot) if lot.random() < 0.5 else None
    memory = Memory(limit, kept)
    scheduler = Scheduler(
        lot.choice([4, 16, 64]), lot.choice([3, 8]), client_share=lot.choice([0.3, 1.0]), memory=memory
    )
    preempted = []

    def on_preempt(sequence):
        others = [r.id for r in scheduler.running if isinstance(r, Sequence)]
        assert all(number < sequence.id for number in others), "not the youngest"
        preempted.append(sequence)

    scheduler.on_preempt = on_preempt
    arriving, requests, steps = lot.randint(5, 25), [], 0
    while arriving or scheduler.has_work:
        steps += 1
        assert steps < 20000, "nobody gets on"
        if arriving and lot.random() < 0.3:
            arriving -= 1
            most = limit // 3
            length = lot.randint(1, most // 5)
            sequence = counted(len(requests), length, lot.randint(1, most - length), lot.choice("aab"))
            wide = lot.random() < 0.15 and 2 * sequence.final_length <= most
            request = Search(sequence, 2) if wide else sequence
            scheduler.add(request)
            requests.append(request)
        if lot.random() < 0.02 and scheduler.running:
            gone = lot.choice([*scheduler.running, *scheduler.waiting])
            scheduler.remove(gone)
            gone.status = "aborted"
        step = scheduler.next()
        assert memory.reserved + (kept.nbytes if kept else 0) <= limit
        assert memory.reserved == sum(r.lanes[0].reserved * 3 * r.width for r in scheduler.running)
        assert [r.id for r in scheduler.waiting] == sorted(r.id for r in scheduler.waiting)
        assert sum(w.count for w in step.work) <= scheduler.max_step_tokens
        assert sum(r.width for r in scheduler.running) <= scheduler.max_sequences
        assert step.work or not scheduler.running
        moving = [w.sequence for w in step.work]
        assert len({id(s) for s in moving}) == len(moving)
        for work in step.work:
            sequence = work.sequence
            assert work.start == sequence.num_computed and work.start + work.count <= sequence.reserved
            sequence.num_computed += work.count
            assert bool(work.samples) == (sequence.num_computed == sequence.length)
        for request in list(scheduler.running):
            if not any(w.samples for w in step.work if w.sequence in request.lanes):
                continue
            if isinstance(request, Search):
                request.append()
                request.status = request.lanes[0].status
            else:
                request.append(7)
            if request.status == "finished":
                lane = request.lanes[0]
                scheduler.remove(request)
                if kept is not None and lane is request:
                    entry = SimpleNamespace(
                        length=lane.num_computed, capacity=lane.reserved, nbytes=lane.reserved * 3
                    )
                    entry.whole, entry.mostly = lot.random() < 0.5, lot.random() < 0.5
                    kept.entries.append(entry)
    for request in requests:
        if request.status != "aborted":
            assert len(request.lanes[0].output_ids) == request.lanes[0].params.max_new_tokens
    assert memory.reserved == 0
    assert not any(isinstance(s, Search) for s in preempted)
    return len(preempted)


def test_everybody_finishes_within_the_limit():
    """A hundred random schedules of sequences, searches, clients, kept prefixes and aborts."""
    assert sum(play(seed) for seed in range(100)) > 100  # memory really is short


class TestFairness:
    def scheduler(self, share, **more):
        scheduler = Scheduler(100, 4, client_share=share, **more)
        for number, client in enumerate("aaaaabab"):
            scheduler.add(counted(number, 2, 5, client))
        scheduler.next()
        return scheduler

    def running(self, scheduler):
        scheduler.next()
        return [r.id for r in scheduler.running]

    def test_a_share_while_others_wait(self):
        scheduler = self.scheduler(0.5)
        assert self.running(scheduler) == [0, 1, 5, 7]
        scheduler.remove(scheduler.running[0])
        assert self.running(scheduler) == [1, 5, 7, 2]  # first come, first served below the share

    def test_all_of_it_where_nobody_else_waits(self):
        scheduler = self.scheduler(0.5)
        for number in (5, 7):
            scheduler.remove(next(r for r in scheduler.running if r.id == number))
        assert self.running(scheduler) == [0, 1, 2, 3]

    def test_none_by_default(self):
        assert self.running(self.scheduler(1.0)) == [0, 1, 2, 3]

    def test_one_request_always_gets_through(self):
        scheduler = Scheduler(100, 4, client_share=0.25)
        for number, client in enumerate("ab"):
            scheduler.add(Search(counted(number, 2, 5, client), 2))
        assert self.running(scheduler) == [0, 1]


class TestLimits:
    def engine(self, tokens, **settings):
        return Engine(FakeNetwork(), EngineSettings(kv_bytes=tokens * TOKEN, **settings))

    def test_what_could_never_fit_is_refused_at_once(self):
        engine = self.engine(30)
        with pytest.raises(PromptTooLongError, match=r"31 tokens.* holds 30"):
            engine.add(text(*[1] * 31), SamplingParams(max_new_tokens=1))
        with pytest.raises(GenerationError, match="set max_new_tokens to 21 or less"):
            engine.add(text(*[1] * 10), SamplingParams(max_new_tokens=22))
        with pytest.raises(GenerationError, match="max_new_tokens to 6 or less"):
            engine.add_beams(text(*[1] * 10), SamplingParams(max_new_tokens=21), BeamParams(2))
        assert not engine.has_work
        engine.add(text(*[1] * 10), SamplingParams(max_new_tokens=21))
        assert len(list(engine.run())) == 21

    def test_settings_out_of_range(self):
        for bad in (
            {"kv_bytes": 0},
            {"vision_bytes": -1},
            {"client_share": 0.0},
            {"step_seconds": 0.0},
            {"keep_prefixes": True},
        ):
            with pytest.raises(GenerationError):
                EngineSettings(**bad)

    def test_a_request_waits_until_its_prompt_fits(self):
        engine = self.engine(200)
        first = engine.add(text(*[1] * 100), SamplingParams(max_new_tokens=40))
        second = engine.add(text(*[2] * 100), SamplingParams(max_new_tokens=40))
        engine.step()
        assert engine.sequence(first).status == "running" and engine.sequence(second).status == "waiting"
        assert engine.stats().kv_bytes == 112 * TOKEN  # an eighth more than the prompt
        engine.abort(first)
        assert engine.stats().kv_bytes == 0
        engine.step()
        assert engine.sequence(second).status == "running"

    def test_buffers_grow_in_pieces(self):
        engine = self.engine(10000)
        number = engine.add(text(*[1] * 100), SamplingParams(max_new_tokens=900))
        seen = []
        while engine.has_work:
            engine.step()
            if engine.has_work:
                kv = engine.sequence(number).kv
                assert kv.nbytes == kv.capacity * TOKEN == engine.stats().kv_bytes
                assert kv.capacity - kv.length <= max(8, kv.length // 8) + 1
                seen.append(kv.capacity)
        assert len(set(seen)) > 5 and max(seen) == 999

    def test_a_search_is_never_preempted(self):
        engine = self.engine(288)
        search = engine.add_beams(text(*[1] * 20), SamplingParams(max_new_tokens=90), BeamParams(2))
        engine.add(text(1, 2), SamplingParams(max_new_tokens=180))
        ends = {d.sequence_id: d for d in engine.run() if d.finish_reason}
        expected = Engine(FakeNetwork())
        expected.add_beams(text(*[1] * 20), SamplingParams(max_new_tokens=90), BeamParams(2))
        (alone,) = expected.run()
        assert ends[search].token_ids == alone.token_ids
        assert len(ends[1].extras["sequence"].output_ids) == 180
        assert engine.stats().preempted >= 1


def pictures_prompt(seed, lot):
    grid = Grid(1, 4, lot.choice([4, 6, 8]))
    patches = torch.randn(grid.patches, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    medium = Medium("image", grid, patches, digest=seed.to_bytes(8, "big") if seed % 3 else None)
    count = grid.tokens(2)
    ids = [1, 2, *[0] * count, *(lot.randrange(VOCAB) for _ in range(lot.randint(1, 40)))]
    positions = torch.arange(len(ids)).expand(3, -1).clone()
    positions[:, 2 : 2 + count] = 2
    positions[:, 2 + count :] -= count - 2
    return Prompt(ids, positions, 2 - count, (Span("image", 2, count),), (medium,))


def alone(prompt, params, **network):
    engine = Engine(FakeNetwork(**network))
    engine.add(prompt, params)
    return [token for delta in engine.run() for token in delta.token_ids]


KINDS = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"repetition_penalty": 1.3, "temperature": 1.1, "seed": 6, "top_k": 7},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"prompt_lookup_num_tokens": 4},
]


@lru_cache
def pool(seed):
    """Requests to pick from, each with the answer of a single run."""
    lot, requests = random.Random(seed), []
    for number in range(16):
        base = lot.choice([3, 5])
        ids = [(base * i) % VOCAB for i in range(lot.randint(1, 90))]
        prompt = pictures_prompt(number % 7 + 1, lot) if lot.random() < 0.4 else text(*ids)
        params = SamplingParams(max_new_tokens=lot.randint(1, 60), **KINDS[number % len(KINDS)])
        requests.append((prompt, params, alone(prompt, params)))
    return requests


@pytest.mark.parametrize(
    "settings",
    [{}, {"keep_prefixes": True, "vision_bytes": 700}, {"keep_prefixes": True, "step_seconds": 1e-9}],
    ids=["plain", "reuse", "stages"],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_nobody_notices(settings, seed):
    """Two hundred random adds, aborts and steps, memory for about two requests: answers are those of single
    runs, no token comes twice, the limit holds, and nothing is left behind."""
    lot = random.Random(seed)
    limit = 180 * TOKEN
    engine = Engine(FakeNetwork(), EngineSettings(16, 5, kv_bytes=limit, client_share=0.5, **settings))
    requests, answers, ends, order = {}, {}, {}, []

    def step():
        for delta in engine.step():
            answers[delta.sequence_id] += delta.token_ids
            if delta.finish_reason:
                ends[delta.sequence_id] = delta.finish_reason
                order.append(delta.extras["sequence"])
        stats = engine.stats()
        assert stats.kv_bytes <= limit
        held = engine.scheduler.memory.reserved + stats.kept_bytes
        assert stats.kv_bytes <= held <= limit

    for _ in range(200):
        what = lot.random()
        if what < 0.25:
            prompt, params, expected = lot.choice(pool(seed))
            number = engine.add(prompt, params, client=lot.choice("abc"))
            requests[number], answers[number] = expected, []
        elif what < 0.3 and requests:
            before = engine.stats()
            number = lot.choice(list(requests))
            if engine.abort(number):
                after = engine.stats()
                assert after.running + after.waiting == before.running + before.waiting - 1
        else:
            step()
    while engine.has_work:
        step()
    stats = engine.stats()
    assert stats.preempted >= 3 and stats.recomputed_tokens > 0
    assert stats.kv_bytes == stats.kept_bytes and engine.scheduler.memory.reserved == 0
    assert stats.running == stats.waiting == stats.encoding == 0
    assert engine._requests == {} and engine.runner.media.job is None
    assert all(s.kv is None and not s.vision for s in order) and len(order) == len(requests)
    for number, expected in requests.items():
        if ends[number] == "abort":
            assert answers[number] == expected[: len(answers[number])]
        else:
            assert answers[number] == expected and ends[number] == "length"


def test_computed_again_where_frequencies_follow_the_length():
    """Each token behind the prompt had frequencies of its own, so each comes alone again."""
    network = FakeNetwork(follows_length=True)
    engine = Engine(network, EngineSettings(kv_bytes=150 * TOKEN))
    for _ in range(2):
        engine.add(text(*range(20)), SamplingParams(max_new_tokens=100))
    chunks = []
    while engine.has_work:
        before = engine.stats()
        engine.step()
        now = engine.stats()
        if now.recomputed_tokens > before.recomputed_tokens:
            chunks.append(now.recomputed_tokens - before.recomputed_tokens)
    assert engine.stats().preempted >= 1
    assert chunks[0] == 20 and set(chunks[1:]) <= {1, 20}


def test_drafts_go_on():
    """A draft model's cache goes with the rest and is made again."""
    params = SamplingParams(max_new_tokens=60, num_assistant_tokens=3)
    expected = alone(text(1, 2, 3), SamplingParams(max_new_tokens=60))
    engine = Engine(FakeNetwork(), EngineSettings(kv_bytes=100 * TOKEN), draft=FakeNetwork())
    numbers = [engine.add(text(1, 2, 3), params) for _ in range(3)]
    got = {n: [] for n in numbers}
    accepted = 0
    let_go = []
    on_preempt = engine.scheduler.on_preempt
    engine.scheduler.on_preempt = lambda sequence: (
        on_preempt(sequence),
        let_go.append(sequence.draft.twin.kv.length),
    )
    for delta in engine.run():
        got[delta.sequence_id] += delta.token_ids
        if delta.finish_reason:
            accepted += delta.extras["sequence"].accepted
    assert list(got.values()) == [expected] * 3
    assert engine.stats().preempted == len(let_go) >= 1 and set(let_go) == {0} and accepted > 50


@pytest.mark.parametrize(
    "options", [{}, {"num_return_sequences": 2, "num_beams": 2}], ids=["greedy", "beams"]
)
def test_generate_under_a_limit(options):
    """The documented call, with memory for about two of its five rows: its cache and its ids are the same."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/tiny", dtype=torch.float32)
    ids = torch.randint(5, 200, (5, 30), generator=torch.Generator().manual_seed(0))
    call = {"max_new_tokens": 30, "min_new_tokens": 30, "return_dict_in_generate": True, **options}
    expected = model.generate(ids, **call)
    tokens = Engine(model).runner.token_bytes * 140
    model.engine_settings = EngineSettings(64, 8, kv_bytes=tokens)
    got = model.generate(ids, **call)
    assert torch.equal(got.sequences, expected.sequences)
    assert got.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length() == 59
