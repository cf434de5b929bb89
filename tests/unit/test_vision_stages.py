"""Pictures between others' tokens: the tower in stages, embeddings that are kept, chunks cut to a time."""

import pytest
import torch

from qvl.config import Qwen2_5_VLVisionConfig
from qvl.engine.encoder import VisionCache
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.stepsize import FIRST, LEAST, StepSize
from qvl.errors import InputError
from qvl.network import stages
from qvl.network.stages import Encoding
from qvl.network.vision import VisionTower
from qvl.types import Grid, Medium, Prompt, SamplingParams, Span
from support.fake_network import PATCH_VALUES, WIDTH, FakeEncoding, FakeNetwork

GRIDS = [(1, 18, 10), (2, 8, 12), (1, 4, 4)]  # edge windows, a video, one window
IMPATIENT = {"step_seconds": 1e-9}  # one stage a step


@pytest.fixture
def tower(monkeypatch):
    monkeypatch.setattr(stages, "PART_ROWS", 40)
    monkeypatch.setattr(stages, "PART_KEYS", 60)
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=4,
        hidden_size=32,
        intermediate_size=44,
        num_heads=4,
        out_hidden_size=24,
        fullatt_block_indexes=[1, 3],
        window_size=56,
    )
    tower = VisionTower(config).eval()
    tower.init_weights()
    return tower


PATCHES = torch.randn(sum(t * h * w for t, h, w in GRIDS), 1176, generator=torch.Generator().manual_seed(0))


class TestTower:
    def run(self, tower, dtype=torch.float32):
        with torch.inference_mode():
            encoding, count = Encoding(tower, PATCHES.to(dtype), GRIDS), 0
        while not encoding.done:
            with torch.inference_mode():
                encoding.advance()
            count += 1
        return encoding.embeds_ND, count

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("kernels", ["", "off"], ids=["kernels", "torch"])
    def test_stages_are_the_forward_to_the_bit(self, tower, monkeypatch, kernels, dtype):
        monkeypatch.setenv("QVL_KERNELS", kernels)
        tower = tower.to(dtype)
        with torch.inference_mode():
            whole = tower(PATCHES.to(dtype), GRIDS)
        embeds_ND, count = self.run(tower, dtype)
        assert torch.equal(embeds_ND, whole)
        assert count > 10 * len(tower.blocks)

    def test_no_stage_is_much_longer_than_a_part(self, tower):
        """No layer gets more than a part of the rows, no attention more than its share of the pairs."""
        rows, pairs = [], []
        for module in tower.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))

        def backend(q_THD, k_SGD, v_SGD, q_lengths, k_lengths, **more):
            pairs.append(sum(q * k for q, k in zip(q_lengths, k_lengths, strict=True)))
            return q_THD.clone()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qvl.network.vision.get_backend", lambda name: backend)
            self.run(tower)
        assert max(rows) < 2 * 40 and max(pairs) <= 40 * 60 + 180

    def test_a_block_that_somebody_watches_is_called_as_a_whole(self, tower):
        with torch.inference_mode():
            whole = tower(PATCHES, GRIDS)
        seen = []
        tower.blocks[1].register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
        embeds_ND, _ = self.run(tower)
        assert seen == [len(PATCHES)] and torch.equal(embeds_ND, whole)

    def test_a_tower_that_somebody_watches_too(self, tower):
        """As whoever spreads a model over devices does: the tower's inputs are moved by a hook."""
        with torch.inference_mode():
            whole = tower(PATCHES, GRIDS)
            seen = []
            tower.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
            made = stages.encoding(tower, PATCHES, GRIDS)
            made.advance()
        assert seen == [len(PATCHES)] and torch.equal(made.embeds_ND, whole)

    def test_patches_that_do_not_fit(self, tower):
        with pytest.raises(InputError, match="describe 388 patches"):
            Encoding(tower, PATCHES[:-1], GRIDS)

    def test_with_gradients_everything_at_once(self, tower):
        with torch.inference_mode():
            whole = tower(PATCHES, GRIDS)
        traced = tower(PATCHES, GRIDS)
        traced.sum().backward()
        torch.testing.assert_close(traced.detach(), whole, rtol=1e-5, atol=1e-6)
        assert tower.patch_embed.proj.weight.grad is not None
        count = 0
        encoding = Encoding(tower, PATCHES, GRIDS)
        while not encoding.done:
            encoding.advance()
            count += 1
        assert count == len(tower.blocks) + 2 and torch.equal(encoding.embeds_ND, traced)


def text(*ids):
    return Prompt(list(ids), torch.arange(len(ids)).expand(3, -1))


def picture(seed, *, before=1, digest=True):
    grid = Grid(1, 4, 4)
    patches = torch.randn(grid.patches, PATCH_VALUES, generator=torch.Generator().manual_seed(seed))
    count = grid.tokens(2)
    ids = [*[3] * before, *[0] * count, 2, seed]
    medium = Medium("image", grid, patches, digest=seed.to_bytes(4, "big") if digest else None)
    positions = torch.arange(len(ids)).expand(3, -1)
    return Prompt(ids, positions, 0, (Span("image", before, count),), (medium,))


def new(count=8):
    return SamplingParams(max_new_tokens=count)


def answers(engine):
    got = {}
    for delta in engine.run():
        got.setdefault(delta.sequence_id, []).extend(delta.token_ids)
    return got


def alone(prompt, count=8):
    engine = Engine(FakeNetwork())
    engine.add(prompt, new(count))
    return answers(engine)[0]


class TestEngine:
    def test_others_get_their_tokens_in_between(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**IMPATIENT))
        engine.add(text(1, 2), new(30))
        engine.step()
        late = engine.add(picture(4), new())
        before = []
        while not network.encoded:
            deltas = engine.step()
            assert [d.sequence_id for d in deltas][:1] == [0] and len(deltas[0].token_ids) == 1
            before.append(network.stages[-1])
        assert before == list(range(1, FakeEncoding.STAGES + 1))
        got = answers(engine)
        assert got[late][-8:] == alone(picture(4))[-len(got[late]) :]

    def test_what_stands_before_a_picture_is_computed_meanwhile(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**IMPATIENT))
        engine.add(picture(4, before=30), new())
        engine.step()
        assert network.passes == [30] and not network.encoded
        assert answers(engine)[0] == alone(picture(4, before=30))

    def test_other_prompts_overtake(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**IMPATIENT))
        first, second = engine.add(picture(4), new()), engine.add(text(1, 2), new(2))
        order = [d.sequence_id for d in engine.run()]
        assert order[:2] == [second, second] and first in order

    def test_runs_through_where_time_is_no_matter(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(step_seconds=100.0))
        engine.add(text(1, 2), new(30))
        engine.step()
        engine.add(picture(4), new())
        engine.step()
        assert network.stages == [FakeEncoding.STAGES] and network.passes[-1] == 1 + len(picture(4).token_ids)

    def test_together_is_alone(self):
        prompts = [picture(seed % 3 + 1, before=seed, digest=seed % 2 == 0) for seed in range(6)] + [
            text(5, 6)
        ]
        engine = Engine(FakeNetwork(), EngineSettings(7, 4, **IMPATIENT))
        numbers = [engine.add(prompt, new()) for prompt in prompts]
        got = answers(engine)
        assert [got[n] for n in numbers] == [alone(prompt) for prompt in prompts]

    def test_aborting_drops_the_work(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**IMPATIENT))
        number = engine.add(picture(4), new())
        engine.step()
        assert engine.stats().encoding == 1
        engine.abort(number)
        assert engine.stats().encoding == 0
        list(engine.run())
        assert network.stages == [1] and not network.encoded

    def test_unless_another_waits_for_the_same(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**IMPATIENT))
        first, second = (engine.add(picture(4), new()) for _ in range(2))
        engine.step()
        engine.abort(first)
        assert engine.stats().encoding == 1
        assert answers(engine)[second] == alone(picture(4))
        assert network.stages == [FakeEncoding.STAGES]

    @pytest.mark.parametrize("settings", [{}, IMPATIENT], ids=["at once", "stages"])
    def test_the_same_digest_is_encoded_once(self, settings):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(**settings))
        for seed in (4, 4, 5, 4):
            engine.add(picture(seed), new())
        answers(engine)
        assert sum(network.encoded) == 2 == engine.stats().media_encoded

    @pytest.mark.parametrize("settings", [{}, IMPATIENT], ids=["at once", "stages"])
    def test_kept_for_later(self, settings):
        network = FakeNetwork()
        size = 4 * WIDTH * 4
        engine = Engine(network, EngineSettings(vision_bytes=2 * size, **settings))
        for seed in (1, 2, 1, 3, 1, 2):  # the last one is gone by then
            engine.add(picture(seed), new())
            assert answers(engine).popitem()[1] == alone(picture(seed))
            assert engine.stats().vision_bytes <= 2 * size
        assert sum(network.encoded) == 4 and engine.stats().media_reused == 2
        engine.add(picture(9, digest=False), new())
        answers(engine)
        engine.add(picture(9, digest=False), new())
        answers(engine)
        assert sum(network.encoded) == 6


def test_a_part_of_a_larger_tensor_is_kept_by_itself():
    both = torch.zeros(8, 4)
    cache = VisionCache(1000)
    cache.put(b"a", both.split([4, 4])[0])
    assert cache.get(b"a").untyped_storage().nbytes() == 64 == cache.nbytes
    cache.put(b"b", torch.zeros(300))
    assert cache.get(b"b") is None and cache.nbytes == 64  # larger than all of the cache
    assert VisionCache(0).put(b"a", both) is None and VisionCache(0).get(None) is None


class TestStepSize:
    def settled(self, seconds_of, wanted=0.5, steps=40):
        size = StepSize(wanted)
        for _ in range(steps):
            tokens = 4 + size.prompt_tokens(4)
            size.note(tokens, seconds_of(tokens))
        return 4 + size.prompt_tokens(4)

    @pytest.mark.parametrize("slope", [1e-4, 1e-3, 5e-3])
    @pytest.mark.parametrize("base", [0.0, 0.1, 0.4])
    def test_finds_the_step_that_takes_so_long(self, slope, base):
        found = self.settled(lambda tokens: base + slope * tokens)
        assert base + slope * found == pytest.approx(0.5, rel=0.05)

    def test_prompts_move_whatever_it_takes(self):
        assert self.settled(lambda tokens: 9.0) == 4 + LEAST
        assert StepSize(0.5).prompt_tokens(100) == LEAST
        assert StepSize(0.5).prompt_tokens(0, spent=0.5) == LEAST
        assert StepSize(0.5).prompt_tokens(0) == FIRST

    def test_slow_decoding_leaves_prompts_as_much_again(self):
        size = StepSize(0.5)
        assert size.begin(0.1) == pytest.approx(0.4) and size.begin(2.0) == 2.0
        for _ in range(20):
            size.note(10 + size.prompt_tokens(10), 2.0 + 0.01 * size.prompt_tokens(10))
        assert size.prompt_tokens(10) == pytest.approx(200, rel=0.1)

    def test_short_steps_do_not_shrink_it(self):
        size = StepSize(0.5)
        size.note(1000, 0.5)
        size.note(2000, 0.5)
        before = size.tokens
        size.note(3, 0.3)
        assert size.tokens == before

    def test_chunks_are_small_only_beside_those_who_decode(self):
        network = FakeNetwork()
        engine = Engine(network, EngineSettings(max_step_tokens=200, **IMPATIENT))
        engine.add(text(*[1] * 150), new(40))
        engine.step()
        assert network.passes == [150]
        engine.add(text(*[2] * 100), new(2))
        list(engine.run())
        assert network.passes[1:7] == [1 + LEAST] * 6 and network.passes[7] == 1 + 100 - 6 * LEAST
