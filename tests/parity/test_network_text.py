"""The text decoder and the head against transformers', with the same random weights."""

import pytest
import torch

from qvl.ops.attention import get_backend
from support.tiny import ROPE_SCALINGS, random_ids, tiny_pair

pytestmark = pytest.mark.oracle


SHARP_YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0}


def multimodal_positions(length, seed=0):
    """Three different, mostly rising axes, as a picture in the middle of a text gives."""
    steps = torch.randint(0, 3, (3, length), generator=torch.Generator().manual_seed(seed))
    steps[:, 0] = 0
    return steps.cumsum(1)


def both(pair, ids, positions_3T, **options):
    """(transformers' hidden states of all layers, qvl's) for one sequence, as (layers, T, D)."""
    theirs, ours = pair
    decoder = ours.model.language_model
    with torch.no_grad():
        expected = theirs.model.language_model(
            inputs_embeds=theirs.get_input_embeddings()(ids[None]),
            position_ids=positions_3T[:, None],
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        found = []
        attends = decoder.packed_attends((len(ids),), **options)
        decoder.packed(ours.model.embed(ids), positions_3T, attends, lengths=(len(ids),), hidden_states=found)
    return torch.cat(expected), torch.stack(found)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [1, 2, 37])
def test_hidden_states(backend, length):
    pair = tiny_pair(seed=1)
    ids = random_ids(length)
    expected, found = both(pair, ids, multimodal_positions(length), backend=get_backend(backend))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_every_rope_type_below_and_above_the_original_length(name):
    pair = tiny_pair(text={"rope_scaling": ROPE_SCALINGS[name], "max_position_embeddings": 32})
    for length in (20, 60):
        positions = multimodal_positions(length) if length == 60 else torch.arange(length).expand(3, -1)
        assert (int(positions.max()) + 1 > 32) == (length == 60)
        expected, found = both(pair, random_ids(length), positions)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rope_scaling,text",
    [
        ({"rope_type": "yarn", "factor": 4.0}, {}),
        ({**SHARP_YARN, "truncate": False}, {"rope_theta": 50.0, "max_position_embeddings": 256}),
        ({**SHARP_YARN, "truncate": True}, {"rope_theta": 50.0, "max_position_embeddings": 256}),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.3}, {}),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8}, {}),
        (ROPE_SCALINGS["longrope"], {"original_max_position_embeddings": 16}),
        ({**ROPE_SCALINGS["longrope"], "attention_factor": 0.8}, {}),
        ({**ROPE_SCALINGS["longrope"], "original_max_position_embeddings": 4}, {}),
        ({**ROPE_SCALINGS["dynamic"], "original_max_position_embeddings": 4}, {}),
        ({"type": "mrope"}, {}),
        ({"rope_type": "default", "mrope_section": [0, 3, 1]}, {}),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
@pytest.mark.filterwarnings("ignore")
def test_what_each_rope_type_reads(rope_scaling, text):
    settings = {"rope_scaling": rope_scaling, "max_position_embeddings": 32, "rope_theta": 500.0, **text}
    pair = tiny_pair(text=settings)
    for length in (12, 24, 60):
        expected, found = both(pair, random_ids(length), torch.arange(length).expand(3, -1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 5, 64])
def test_sliding_window(backend, window):
    text = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1}
    pair = tiny_pair(text=text)
    assert pair[1].model.language_model.windows == [None, window, window]
    expected, found = both(pair, random_ids(40), multimodal_positions(40), backend=get_backend(backend))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 1)])
def test_logits_tied_and_untied(tied, heads, kv_heads):
    text = {"tie_word_embeddings": tied, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    theirs, ours = tiny_pair(text=text, tie_word_embeddings=tied)
    assert (ours.lm_head.weight is ours.model.language_model.embed_tokens.weight) == tied
    ids, positions = random_ids(19), torch.arange(19).expand(3, -1)
    decoder = ours.model.language_model
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).logits[0]
        hidden = decoder.packed(
            ours.model.embed(ids), positions, decoder.packed_attends((19,)), lengths=(19,)
        )
        found = ours.logits(hidden)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden_act", ["silu", "gelu", "gelu_new", "relu", "mish", "tanh"])
def test_activations(hidden_act):
    expected, found = both(tiny_pair(text={"hidden_act": hidden_act}), random_ids(9), multimodal_positions(9))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_precise(dtype):
    theirs, ours = tiny_pair(seed=2)
    ids, positions = random_ids(64), multimodal_positions(64)
    exact, _ = both((theirs, ours), ids, positions)
    expected, found = both((theirs.to(dtype), ours.to(dtype)), ids, positions)
    assert found.dtype == dtype
    assert (found.float() - exact).abs().mean() < 1.2 * (expected.float() - exact).abs().mean()


def test_gradients_with_and_without_checkpointing():
    theirs, ours = tiny_pair(seed=4)
    ids, positions = random_ids(30), multimodal_positions(30)
    theirs.train()
    ours.train()
    hidden = theirs.model.language_model(
        input_ids=ids[None], position_ids=positions[:, None]
    ).last_hidden_state
    theirs.lm_head(hidden).square().mean().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if "visual" not in name}
    decoder = ours.model.language_model
    for checkpointing in (False, True):
        decoder.gradient_checkpointing = checkpointing
        ours.zero_grad()
        hidden = decoder.packed(
            ours.model.embed(ids), positions, decoder.packed_attends((30,)), lengths=(30,)
        )
        ours.logits(hidden).square().mean().backward()
        found = {name: p.grad for name, p in ours.named_parameters() if "visual" not in name}
        assert found.keys() == expected.keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name], atol=1e-4, rtol=1e-3, msg=name)
