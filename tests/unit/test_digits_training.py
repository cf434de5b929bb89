"""How the bundled model is trained: examples/digits, in steps small enough for a test."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
pytest.importorskip("sklearn")

from examples.digits import checkpoint, tokenizer  # noqa: E402
from examples.digits.data import FAITHFUL, TRAINING, draw_pictures, load_scans  # noqa: E402
from examples.digits.lessons import (  # noqa: E402
    IGNORED,
    NOTHING,
    SIZES,
    Conversations,
    Pictures,
    Writer,
    draw_lesson,
    patchify,
)
from examples.digits.small import SmallPicturesLM, attend_by_length  # noqa: E402
from examples.digits.train import Recipe, Training  # noqa: E402
from qvl import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, smart_resize  # noqa: E402
from qvl.network.vlm import CausalLM  # noqa: E402
from qvl.ops.attention import get_backend, packed_attend  # noqa: E402

ASSETS = ROOT / "src" / "qvl" / "assets" / "digits"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scans():
    return load_scans()


@pytest.fixture(scope="module")
def writer():
    return Writer(ASSETS)


@pytest.fixture(scope="module")
def lesson(scans) -> Pictures:
    return draw_lesson(scans[0], 6, (84, 112), TRAINING, seeded())


def test_the_last_quarter_is_held_out(scans):
    from sklearn.datasets import load_digits

    training, held_out = scans
    assert (len(training), len(held_out)) == (1348, 449)
    assert torch.cat([training.labels_N, held_out.labels_N]).tolist() == load_digits().target.tolist()


def test_pictures_are_a_function_of_the_seed(scans):
    first, second, other = (draw_lesson(scans[0], 4, (56, 112), TRAINING, seeded(n)) for n in (1, 1, 2))
    assert torch.equal(first.pixels, second.pixels)
    assert not torch.equal(first.pixels, other.pixels)


@pytest.mark.parametrize("size", SIZES)
def test_digits_stay_inside_and_apart(scans, size):
    pictures = draw_lesson(scans[0], 8, size, FAITHFUL, seeded())
    assert pictures.pixels.shape == (8, 3, *size)
    ink = draw_pictures(torch.ones(8, 3, 60, 60), pictures.counts_B, size, FAITHFUL, seeded(3)).x_BK
    assert bool((ink[:, 0] > 0).all())
    assert all(0 < ink[i, pictures.counts_B[i] - 1] < size[1] for i in range(8))


@pytest.mark.parametrize("size", SIZES)
def test_the_processor_keeps_the_sizes_that_train(size):
    limits = Qwen2VLImageProcessor.from_pretrained(ASSETS).size
    assert smart_resize(*size, 28, limits["shortest_edge"], limits["longest_edge"]) == size


def test_tokens_know_the_digit_and_the_scan_they_show(scans, lesson):
    seen = lesson.seen_N.view(len(lesson), -1)
    for i in range(len(lesson)):
        assert set(seen[i].tolist()) - {NOTHING} <= {int(digit) for digit in lesson.number(i)}
    there = lesson.seen_N != NOTHING
    assert 0.1 < float(there.float().mean()) < 0.9
    # The nearest of all scans to what a token should copy is one of the digit that it should name.
    nearest = torch.cdist(lesson.scans_NC[there], scans[0].cells_NC).argmin(1)
    assert torch.equal(scans[0].labels_N[nearest], lesson.seen_N[there])


def test_patches_are_those_of_the_image_processor(lesson):
    processor = Qwen2VLImageProcessor.from_pretrained(ASSETS)
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in lesson.pixels]
    expected = processor(pictures, return_tensors="pt")
    frames = expected["pixel_values"].view(-1, 3, 2, 14, 14)
    assert expected["image_grid_thw"].tolist() == [[1, 6, 8]] * 6
    torch.testing.assert_close(patchify(lesson.pixels), frames[:, :, 0], atol=1e-5, rtol=0)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])


def test_conversations_are_those_of_the_processor(lesson, writer):
    """The same ids as messages make on the public way, and targets only where the assistant speaks."""
    processor = Qwen2_5_VLProcessor.from_pretrained(ASSETS)
    talk = writer.write(lesson, seeded(3))
    pictures = iter(Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in lesson.pixels)
    start, shown = 0, 0
    for length in talk.lengths:
        ids, targets = talk.ids_T[start : start + length], talk.targets_T[start : start + length]
        turns = processor.decode(ids, skip_special_tokens=False).count("<|vision_start|>")
        text = processor.decode([t for t in ids.tolist() if t != writer.image], skip_special_tokens=False)
        prompt = text.replace("<|vision_start|>", "<|vision_start|><|image_pad|>")
        expected = processor(text=[prompt], images=[next(pictures) for _ in range(turns)])["input_ids"][0]
        assert ids.tolist() == list(expected)
        said = processor.decode(targets[targets != IGNORED], skip_special_tokens=False)
        assert said == "".join(f"{lesson.number(i)}<|im_end|>" for i in range(shown, shown + turns))
        start, shown = start + length, shown + turns
    assert shown == 6


def test_the_template_is_rendered_as_the_processor_does(writer):
    processor = Qwen2_5_VLProcessor.from_pretrained(ASSETS)
    content = [{"type": "image"}, {"type": "text", "text": "Read the number."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "12"}]
    assert writer.template.render(messages=messages) == processor.apply_chat_template(messages)


def test_attention_by_length_is_packed_attention():
    lengths, generator = (3, 5, 3, 1, 5), seeded()
    q, k, v = (torch.randn(17, heads, 8, generator=generator) for heads in (4, 2, 2))
    for causal in (True, False):
        expected = packed_attend(get_backend("eager"), lengths, causal=causal)(q, k, v)
        torch.testing.assert_close(attend_by_length(lengths, causal=causal)(q, k, v), expected)


def test_the_arrangement_for_training_gives_the_same_numbers(lesson):
    torch.manual_seed(0)
    plain = CausalLM(checkpoint.model_config())
    plain.init_weights()
    small = SmallPicturesLM(checkpoint.model_config())
    small.load_state_dict(plain.state_dict())
    frames = patchify(lesson.pixels)
    twice = frames[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    grids = (lesson.grid,) * len(lesson)
    torch.testing.assert_close(
        small.model.visual(frames, grids), plain.model.visual(twice, grids), atol=1e-5, rtol=1e-5
    )


def test_a_stopped_training_goes_on_as_if_it_had_not(scans, tmp_path):
    recipe = Recipe(steps=4, tower_steps=1, batch=4, warm_up=2)

    def steps(training: Training, last: int) -> None:
        while training.step < last:
            training.advance(*training.lessons[training.step])

    whole = Training(recipe, *scans)
    steps(whole, 4)
    stopped = Training(recipe, *scans)
    steps(stopped, 2)
    stopped.save(tmp_path / "state.pt")
    again = Training(recipe, *scans)
    again.load(tmp_path / "state.pt")
    steps(again, 4)
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, again.average.state_dict()[name]), name


def test_learning_lowers_the_loss(scans):
    training = Training(Recipe(steps=1000, tower_steps=0, batch=8, warm_up=1), *scans)
    pictures, talk = training.lessons[0]
    assert isinstance(talk, Conversations)
    losses = [sum(training.advance(pictures, talk)) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_tokenizer_in_the_assets_is_the_script_s(tmp_path):
    tokenizer.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (ASSETS / name).read_text(), name


def test_every_byte_has_a_token():
    words = tokenizer.build()
    text = "Grüße, 漢字 \U0001f600\n\t 0123456789"
    assert words.decode(words.encode(text).ids) == text
    assert all(len(words.encode(digit).ids) == 1 for digit in "0123456789")


def test_faithful_pictures_show_the_scan_as_it_is(scans):
    """One digit, drawn large: where the scan has ink, the picture has the ink's colour."""
    drawn = draw_pictures(
        scans[1].ink_NSS[:1, None].expand(-1, 3, -1, -1), torch.tensor([1]), (112, 112), FAITHFUL, seeded()
    )
    grey = drawn.pixels[0].float().mean(0)
    assert np.ptp(grey.numpy()) > 60
