"""The network by itself: packing, meta device, weights, and what it refuses."""

import pytest
import torch

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import InputError, NonFiniteError, PlaceholderMismatchError, UnknownNameError
from qvl.network.layers import RMSNorm, activation
from qvl.network.vlm import CausalLM
from qvl.types import Grid
from support.released import RELEASED, released_parameters, released_settings
from support.tiny import ROPE_SCALINGS, random_ids, random_patches, tiny_settings


def tiny(seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CausalLM(Qwen2_5_VLConfig(**tiny_settings(**settings)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model.eval()


def run(model, ids, positions, lengths, **options):
    decoder = model.model.language_model
    with torch.no_grad():
        return decoder.packed(
            model.model.embed(ids), positions, decoder.packed_attends(lengths), lengths=lengths, **options
        )


@pytest.mark.parametrize("rope", ROPE_SCALINGS)
def test_packed_text_equals_single_calls(rope):
    window = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
    text = {"rope_scaling": ROPE_SCALINGS[rope], "max_position_embeddings": 32, **window}
    model, lengths = tiny(text=text), (5, 1, 40, 40, 33)
    ids = random_ids(sum(lengths))
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    packed = run(model, ids, positions, lengths).split(lengths)
    alone = [
        run(model, i, p, (len(i),))
        for i, p in zip(ids.split(lengths), positions.split(lengths, dim=1), strict=True)
    ]
    for one, two in zip(packed, alone, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_packed_pictures_equal_single_calls():
    tower = tiny().model.visual
    grids = [(1, 6, 10), (3, 8, 6), (1, 6, 10), (1, 4, 4)]
    patches, counts = random_patches(grids), [t * h * w for t, h, w in grids]
    with torch.no_grad():
        packed = tower(patches, torch.tensor(grids))
        alone = [tower(part, [Grid(*g)]) for part, g in zip(patches.split(counts), grids, strict=True)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_frames_of_a_video_do_not_see_each_other():
    tower = tiny().model.visual
    patches = random_patches([(2, 4, 4)])
    with torch.no_grad():
        before = tower(patches, [(2, 4, 4)])
        patches[16:] += 1
        after = tower(patches, [(2, 4, 4)])
    assert torch.equal(before[:4], after[:4])
    assert not torch.allclose(before[4:], after[4:])


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes_build_without_memory(size):
    with torch.device("meta"):
        model = CausalLM(Qwen2_5_VLConfig(**released_settings(size)))
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())  # nothing to lose when weights are put into a model made on meta
    assert sum(p.numel() for p in model.parameters()) == released_parameters(size)


def test_a_model_from_meta_computes_the_same():
    model = tiny(text={"tie_word_embeddings": True})
    with torch.device("meta"):
        other = CausalLM(model.config)
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    assert other.lm_head.weight is other.model.language_model.embed_tokens.weight
    ids, positions = random_ids(12), torch.arange(12).expand(3, -1)
    assert torch.equal(run(other, ids, positions, (12,)), run(model, ids, positions, (12,)))
    patches = random_patches([(1, 6, 10)])
    with torch.no_grad():
        assert torch.equal(*(m.model.visual(patches, [(1, 6, 10)]) for m in (model, other)))


def test_weights_made_in_inference_can_be_trained_afterwards():
    model = tiny()
    patches, ids, positions = random_patches([(1, 10, 6)]), random_ids(6), torch.arange(6).expand(3, -1)
    with torch.inference_mode():
        model.model.encode(patches, [(1, 10, 6)])
        run(model, ids, positions, (6,))
    model.train()
    decoder = model.model.language_model
    x = decoder.packed(model.model.embed(ids), positions, decoder.packed_attends((6,)), lengths=(6,))
    (model.logits(x).mean() + model.model.encode(patches, [(1, 10, 6)]).mean()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_embedding_puts_pictures_in_their_places():
    model = tiny().model
    ids, mask = random_ids(6), torch.tensor([False, True, True, False, False, True])
    vision = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    x = model.embed(ids, vision, mask)
    assert torch.equal(x[mask], vision)
    assert torch.equal(x[~mask], model.language_model.embed_tokens(ids)[~mask])
    with pytest.raises(PlaceholderMismatchError, match="3 placeholder tokens, but the media have 2"):
        model.embed(ids, vision[:2], mask)


def test_initial_weights():
    model = tiny(text={"initializer_range": 0.05, "pad_token_id": 7})
    model.init_weights()
    text = model.model.language_model
    assert not text.embed_tokens.weight[7].any()
    assert abs(model.lm_head.weight.std() / 0.05 - 1) < 0.1
    assert abs(text.layers[0].mlp.gate_proj.weight.std() / 0.05 - 1) < 0.1
    assert abs(model.model.visual.blocks[0].attn.qkv.weight.std() / 0.02 - 1) < 0.1
    assert not text.layers[0].self_attn.q_proj.bias.any()
    assert (text.norm.weight == 1).all()


def test_dropout_only_in_training():
    model = tiny(text={"attention_dropout": 0.5})
    ids, positions = random_ids(16), torch.arange(16).expand(3, -1)
    assert torch.equal(run(model, ids, positions, (16,)), run(model, ids, positions, (16,)))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(run(model, ids, positions, (16,)), run(model, ids, positions, (16,)))


def test_attention_by_name():
    model = tiny()
    ids, positions = random_ids(5), torch.arange(5).expand(3, -1)
    model.model.language_model.attention_backend = "paged"
    with pytest.raises(UnknownNameError, match="paged"):
        run(model, ids, positions, (5,))
    model.model.visual.attention_backend = "paged"
    with pytest.raises(UnknownNameError, match="paged"):
        model.model.visual(random_patches([(1, 4, 4)]), [(1, 4, 4)])


def test_norm_is_computed_in_float32():
    norm = RMSNorm(8, 1e-6).half()
    x = torch.full((2, 8), 3e4, dtype=torch.float16)  # its square overflows half precision
    assert torch.equal(norm(x), torch.ones_like(x))


def test_unknown_activation():
    with pytest.raises(UnknownNameError, match=r"'swoosh'.*silu"):
        activation("swoosh")
    assert activation(torch.relu) is torch.relu


def test_broken_weights_are_named():
    model = tiny().model
    with torch.no_grad():
        model.visual.merger.mlp[2].bias[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"vision tower.*float32"):
        model.encode(random_patches([(1, 4, 4)]), [(1, 4, 4)])


@pytest.mark.parametrize("rows,grid", [(15, (1, 4, 4)), (17, (1, 4, 4)), (16, (1, 4, 6))])
def test_patches_that_do_not_fit_the_grid(rows, grid):
    with pytest.raises(InputError, match=f"{grid[1] * grid[2]} patches of 1176 values"):
        tiny().model.visual(torch.zeros(rows, 1176), [grid])


def test_arguments_that_do_not_fit_each_other():
    model = tiny()
    decoder = model.model.language_model
    x, positions = torch.zeros(4, 32), torch.arange(4).expand(3, -1)
    attends = decoder.packed_attends((4,))
    with pytest.raises(InputError, match=r"shape \(3, 4\)"):
        decoder.packed(x, positions[:, :3], attends, lengths=(4,))
    with pytest.raises(InputError, match="add up to 5"):
        decoder.packed(x, positions, attends, lengths=(2, 3))
    with pytest.raises(InputError, match="3 layers"):
        decoder.packed(x, positions, attends[:2], lengths=(4,))
