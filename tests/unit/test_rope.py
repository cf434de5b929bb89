"""Rotary embedding: what turns with which axis, and that nothing depends on the company or on the past."""

import pytest
import torch

from qvl.errors import ConfigError, InputError, UnknownNameError
from qvl.ops.frequencies import RopeSettings, attention_factor, inverse_frequencies
from qvl.ops.rope import Rotary, apply_rotary, vision_rotary
from support.tiny import ROPE_SCALINGS


def settings(name="default", **changes):
    fields = {
        "head_dim": 8,
        "theta": 10_000.0,
        "sections": (2, 1, 1),
        "max_position_embeddings": 32,
        "scaling": ROPE_SCALINGS[name],
    }
    return RopeSettings(**{**fields, **changes})


def positions(*lengths, start=0):
    return torch.cat([torch.arange(start, start + n) for n in lengths]).expand(3, -1)


def test_scores_depend_on_distance_only():
    rotary = Rotary(settings())
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 8, generator=generator), torch.randn(1, 2, 8, generator=generator)

    def score(i, j):
        (cos_i, sin_i), (cos_j, sin_j) = (rotary(torch.full((3, 1), p), [1]) for p in (i, j))
        return (apply_rotary(q, cos_i, sin_i) * apply_rotary(k, cos_j, sin_j)).sum(-1)

    torch.testing.assert_close(score(9, 4), score(21, 16), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(score(9, 4), score(9, 5), atol=1e-3)


def test_each_axis_turns_its_own_frequencies():
    rotary = Rotary(settings())
    for axis, own in enumerate([[0, 1], [2], [3]]):
        moved = torch.zeros(3, 1, dtype=torch.long)
        moved[axis] = 5
        sin_F = rotary(moved, [1])[1][0]
        assert sin_F.nonzero().flatten().tolist() == own


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_a_packed_batch_equals_single_calls(name):
    rotary = Rotary(settings(name))
    lengths = [5, 50, 33, 32]  # on both sides of the original maximum
    packed = rotary(positions(*lengths), lengths)
    alone = [rotary(positions(n), [n]) for n in lengths]
    for part, parts in zip(packed, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(parts))


@pytest.mark.parametrize("name", ROPE_SCALINGS)
def test_chunks_with_the_whole_extent_equal_the_whole(name):
    rotary = Rotary(settings(name))
    whole = rotary(positions(50), [50])
    chunks = [rotary(positions(n, start=s), [n], [50]) for s, n in [(0, 20), (20, 1), (21, 29)]]
    for part, parts in zip(whole, zip(*chunks, strict=True), strict=True):
        assert torch.equal(part, torch.cat(parts))


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_long_texts_leave_no_trace(name):
    rotary = Rotary(settings(name))
    before = rotary(positions(10), [10])[0]
    assert not torch.equal(rotary(positions(60), [60])[0][:10], before)
    assert torch.equal(rotary(positions(10), [10])[0], before)


def test_the_switch_is_above_the_original_length():
    rotary = Rotary(settings("longrope", max_position_embeddings=64, original_max_position_embeddings=32))
    short, at, above = (rotary(positions(1, start=3), [1], [extent])[0] for extent in (4, 32, 33))
    assert torch.equal(short, at)
    assert not torch.equal(short, above)
    assert attention_factor(rotary.settings) == pytest.approx((1 + 1 / 5) ** 0.5)  # log 2 / log 32


def test_sections_of_the_released_models():
    rotary = Rotary(settings(head_dim=128, sections=(16, 24, 24)))
    assert rotary.axis_of_frequency == [0] * 16 + [1] * 24 + [2] * 24


def test_dtype_and_halves():
    cos, sin = Rotary(settings())(positions(4), [4], dtype=torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    x = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = Rotary(settings())(positions(4), [4])
    swapped = torch.cat((-x[..., 4:], x[..., :4]), dim=-1)
    expected = x * cos.repeat(1, 2)[:, None] + swapped * sin.repeat(1, 2)[:, None]
    assert torch.equal(apply_rotary(x, cos, sin), expected)


def test_vision_rows_and_columns():
    rows, columns = torch.tensor([0, 3, 0]), torch.tensor([0, 0, 5])
    cos, sin = vision_rotary(rows, columns, 16)
    assert cos.shape == sin.shape == (3, 8)
    assert sin[1].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert sin[2].nonzero().flatten().tolist() == [4, 5, 6, 7]
    torch.testing.assert_close(sin[1, 1], torch.tensor(3 / 10_000 ** (2 / 8)).sin())


def test_tables_made_in_inference_mode_serve_training():
    rotary = Rotary(settings())
    with torch.inference_mode():
        rotary(positions(4), [4])
    x = torch.randn(4, 2, 8, requires_grad=True)
    apply_rotary(x, *rotary(positions(4), [4])).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    "name,changes,error",
    [
        ("default", {"sections": (2, 1, 2)}, ConfigError),
        ("default", {"sections": (2, 2)}, ConfigError),
        ("default", {"scaling": {"rope_type": "su"}}, UnknownNameError),
        ("linear", {"scaling": {"rope_type": "linear"}}, ConfigError),
        ("longrope", {"head_dim": 10, "sections": (2, 2, 1)}, ConfigError),
    ],
)
def test_settings_that_cannot_work(name, changes, error):
    with pytest.raises(error):
        Rotary(settings(name, **changes))


def test_one_extent_per_sequence():
    with pytest.raises(InputError, match="2 packed sequences but 1 extents"):
        Rotary(settings("dynamic"))(positions(2, 2), [2, 2], [4])


def test_the_older_names():
    old = settings(scaling={"type": "mrope"})
    assert old.rope_type == "default"
    assert torch.equal(inverse_frequencies(old), inverse_frequencies(settings()))
