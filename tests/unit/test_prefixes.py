"""Keys and values of finished and running requests, for prompts that begin in the same way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.engine import prefixes
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.prefixes import BLOCK, Beginning
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, VOCAB, WIDTH, FakeNetwork
from support.prompts import message_prompt

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
TOKEN = 64  # bytes of a token in the toy network
MUCH = EngineSettings(kv_bytes=5000 * TOKEN, keep_prefixes=True)


def ids(count, seed=0):
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def text(token_ids, **fields):
    return Prompt(list(token_ids), torch.arange(len(token_ids)).expand(3, -1), **fields)


def pictured(digest, tail, *, seed=1, before=5, **fields):
    """``before`` tokens, a picture of 24 tokens, and a question."""
    patches = torch.randn(96, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    token_ids = [*ids(before, 3), *[0] * 24, *tail]
    medium = Medium("image", Grid(1, 8, 12), patches, digest=digest)
    return text(token_ids, spans=(Span("image", before, 24),), media=(medium,), **fields)


def ask(engine, prompt, new=6, **more):
    """The answer, and how many tokens of the prompt came from others."""
    engine.add(prompt, SamplingParams(max_new_tokens=new), **more)
    deltas = list(engine.run())
    return [t for d in deltas for t in d.token_ids], deltas[-1].extras["sequence"].cached_tokens


def alone(prompt, new=6, network=FakeNetwork):
    return ask(Engine(network()), prompt, new)[0]


class TestReuse:
    def test_the_longest_shared_beginning(self):
        network = FakeNetwork()
        engine = Engine(network, MUCH)
        first = ids(50)
        ask(engine, text(first))
        for shared in (16, 17, 33, 49):
            other = text([*first[:shared], *((i + 1) % VOCAB for i in first[shared:])])
            answer, cached = ask(engine, other)
            assert answer == alone(other) and cached == shared
            assert network.passes[-6] == 50 - shared
        assert ask(engine, text([*first[:15], *ids(30, 9)]))[1] == 0  # less than a block

    def test_a_conversation_goes_on(self):
        """The second turn has the first, with its answer, in front: the cache moves, nothing is copied."""
        engine = Engine(FakeNetwork(), MUCH)
        first = ids(40)
        answer, _ = ask(engine, text(first))
        (entry,) = engine.prefixes._entries.values()
        second = text([*first, *answer, *ids(10, 4)])
        moved = entry.kv
        number = engine.add(second, SamplingParams(max_new_tokens=6))
        engine.step()
        assert engine.sequence(number).kv is moved and engine.stats().kept_bytes == 0
        tokens = list(engine.sequence(number).output_ids)
        tokens += [t for d in engine.run() for t in d.token_ids]
        assert tokens == alone(second)
        assert engine.stats().prefix_tokens == 40 + len(answer) - 1

    def test_the_same_again_computes_one_token(self):
        network = FakeNetwork()
        engine = Engine(network, MUCH)
        prompt = text(ids(48))
        answers = [ask(engine, prompt) for _ in range(3)]
        assert answers == [(alone(prompt), 0), (alone(prompt), 47), (alone(prompt), 47)]
        assert network.passes[6] == network.passes[12] == 1
        assert engine.stats().kept_prefixes == 1  # one that covers another replaces it

    def test_running_sequences_share_too(self, monkeypatch):
        """Others with the same beginning wait while it is computed, and then copy it."""
        monkeypatch.setattr(prefixes, "WORTH_WAITING", 32)
        network = FakeNetwork()
        engine = Engine(network, replace(MUCH, max_step_tokens=20))
        first = ids(60)
        prompts = [text([*first, *ids(5, seed)]) for seed in range(4)]
        numbers = [engine.add(prompt, SamplingParams(max_new_tokens=6)) for prompt in prompts]
        answers, cached = {n: [] for n in numbers}, {}
        for delta in engine.run():
            answers[delta.sequence_id] += delta.token_ids
            if delta.finish_reason:
                cached[delta.sequence_id] = delta.extras["sequence"].cached_tokens
        assert list(answers.values()) == [alone(prompt) for prompt in prompts]
        assert cached == {0: 0, 1: 60, 2: 60, 3: 60}
        assert engine.stats().prompt_tokens == 65 + 3 * 5

    def test_whoever_is_waited_for_may_go(self, monkeypatch):
        monkeypatch.setattr(prefixes, "WORTH_WAITING", 32)
        engine = Engine(FakeNetwork(), replace(MUCH, max_step_tokens=20))
        prompt = text(ids(60))
        first, second = (engine.add(prompt, SamplingParams(max_new_tokens=6)) for _ in range(2))
        engine.step()
        assert engine.sequence(second).num_computed == 0
        engine.abort(first)
        assert [t for d in engine.run() if d.sequence_id == second for t in d.token_ids] == alone(prompt)


class TestKeys:
    def test_pictures_by_their_digest(self):
        tail = ids(10, 5)
        for digest, other, cached in ((b"a", b"a", 5 + 24 + 10 - 1), (b"a", b"b", 5), (None, None, 5)):
            engine = Engine(FakeNetwork(), MUCH)
            long = {"before": 20} if cached == 5 else {}
            ask(engine, pictured(digest, tail, **long))
            again = pictured(other, tail, seed=2 if other == b"b" else 1, **long)
            answer, got = ask(engine, again)
            assert answer == alone(again) and got == (20 if long else cached)

    def test_a_hit_may_end_inside_a_picture(self):
        """Thirty-two tokens are shared, three of them behind the picture; or eleven of the picture."""
        network = FakeNetwork()
        engine = Engine(network, replace(MUCH, kv_bytes=60 * TOKEN))
        prompt = pictured(b"a", ids(10, 5))
        ask(engine, prompt)
        (entry,) = engine.prefixes._entries.values()
        entry.kv.truncate(16)  # as if only so much had been kept
        answer, cached = ask(engine, prompt)
        assert (answer, cached) == (alone(prompt), 16)
        assert network.encoded == [1, 1]
        engine = Engine(network, replace(MUCH, vision_bytes=24 * WIDTH * 4))
        ask(engine, prompt)
        (entry,) = engine.prefixes._entries.values()
        entry.kv.truncate(16)
        assert ask(engine, prompt) == (alone(prompt), 16)
        assert network.encoded == [1, 1, 1]  # the rest of its embeddings was still there

    def test_positions_count(self):
        prompt = text(ids(40))
        moved = replace(prompt, positions_3T=prompt.positions_3T + 1, rope_delta=1)
        engine = Engine(FakeNetwork(), MUCH)
        ask(engine, prompt)
        assert ask(engine, moved) == (alone(moved), 0)

    def test_every_block_depends_on_all_before_it(self):
        one, other = (Beginning.of(text([first, *ids(63)])) for first in (1, 2))
        assert len(one.keys) == 64 // BLOCK and not set(one.keys) & set(other.keys)

    def test_what_is_never_reused(self):
        table = FakeNetwork().table
        prompt = text(ids(40))
        given = replace(prompt, embeds_TD=table[torch.tensor(prompt.token_ids)])
        engine = Engine(FakeNetwork(), MUCH)
        for _ in range(2):
            assert ask(engine, given)[1] == 0
        kv = Engine(FakeNetwork()).runner._new_kv(8)
        ask(engine, text(ids(40, 8)), kv=kv)
        ask(engine, text(ids(40, 9)), keep_kv=True)
        assert engine.stats().kept_prefixes == 0
        assert Engine(FakeNetwork(follows_length=True), MUCH).prefixes is None

    def test_a_network_on_two_devices(self):
        network = FakeNetwork()
        network.named_parameters = lambda: [("a", torch.zeros(1)), ("b", torch.zeros(1, device="meta"))]
        assert Engine(network, MUCH).prefixes is None


class TestLimit:
    def test_the_least_recently_used_goes_first(self):
        prompts = [text(ids(40, seed)) for seed in range(3)]
        engine = Engine(FakeNetwork(), EngineSettings(kv_bytes=100 * TOKEN, keep_prefixes=True))
        for prompt in (*prompts[:2], prompts[0], prompts[2]):
            ask(engine, prompt)
            assert engine.stats().kv_bytes <= 100 * TOKEN
        assert [ask(engine, prompt)[1] for prompt in (prompts[2], prompts[0])] == [39, 39]
        assert ask(engine, prompts[1])[1] == 0

    def test_what_is_kept_gives_way_to_who_runs(self):
        engine = Engine(FakeNetwork(), EngineSettings(kv_bytes=120 * TOKEN, keep_prefixes=True))
        ask(engine, text(ids(40)))
        ask(engine, text(ids(100, 1)), new=21)
        assert engine.stats().preempted == 0

    def test_taken_over_where_a_copy_would_not_fit(self):
        engine = Engine(FakeNetwork(), EngineSettings(kv_bytes=130 * TOKEN, keep_prefixes=True))
        first = ids(90)
        ask(engine, text(first), new=10)
        other = text([*first[:70], *ids(20, 7)])
        assert ask(engine, other, new=10) == (alone(other, 10), 70)

    def test_nothing_is_kept_of_what_was_cut_off(self):
        engine = Engine(FakeNetwork(), MUCH)
        number = engine.add(text(ids(40)), SamplingParams())
        engine.step()
        engine.abort(number)
        assert engine.stats().kv_bytes == 0


@pytest.fixture(scope="module")
def bundled():
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained("qvl/tiny", dtype=torch.float32)
    return model, AutoProcessor.from_pretrained("qvl/tiny")


def test_answers_of_the_bundled_model_agree(bundled):
    """Text, pictures, a second question about the same picture, and a second turn: the same greedy ids."""
    model, processor = bundled

    def question(words, name, *turns):
        medium = {"type": "image", "path": str(PICTURES / name)}
        first = {"role": "user", "content": [medium, {"type": "text", "text": words}]}
        return message_prompt(processor, model.config, [first, *turns])

    turns = (
        {"role": "assistant", "content": [{"type": "text", "text": "407"}]},
        {"role": "user", "content": [{"type": "text", "text": "Read the digits."}]},
    )
    prompts = [
        question("What number is written here?", "digits.png"),
        question("Read the digits.", "digits.png"),
        question("What number is written here?", "digits.png", *turns),
        question("Read the digits.", "two_digits.png"),
        question("What number is written here?", "digits.png"),
    ]
    settings = EngineSettings(
        max_step_tokens=64, kv_bytes=2**26, keep_prefixes=True, vision_bytes=2**24, step_seconds=0.05
    )
    engine = Engine(model, settings)
    answers, cached = zip(*(ask(engine, prompt, 8) for prompt in prompts), strict=True)
    assert list(answers) == [ask(Engine(model), prompt, 8)[0] for prompt in prompts]
    assert cached[0] == 0 and all(c > prompts[0].spans[0].length for c in (cached[1], cached[2], cached[4]))
    assert cached[4] == len(prompts[4].token_ids) - 1
    assert engine.stats().media_encoded == 2
