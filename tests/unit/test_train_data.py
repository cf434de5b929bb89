"""Training data: boxes land where the model sees them, lengths are known without pixels, nothing is cut."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.errors import InputError, MediaNotFoundError, PromptError, PromptTooLongError, RowError
from qvl.processing.grounding import Frame, find_shapes, rewritten
from qvl.processing.measuring import Measure
from qvl.processing.media import opening
from qvl.processing.rows import RowFile, parse_row
from qvl.processing.text.messages import MediaItem
from qvl.train.data.checking import check
from qvl.train.data.dataset import Dataset, Mixture
from qvl.train.data.preparing import Preparer
from qvl.train.data.settings import DataSettings
from qvl.train.encode import Encoder
from qvl.train.sample import IGNORED
from support.media import photo
from support.serving import bundled_config, bundled_processor
from support.video import write_video

QUESTION = {"role": "user", "content": "<image>Where?"}


@pytest.fixture
def encoder():
    return Encoder(bundled_processor(), bundled_config(), max_pixels=112 * 112)


def save(folder, name, width, height, box=None, orientation=1):
    """A dark picture, ``box`` of it white."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    if box is not None:
        x1, y1, x2, y2 = box
        pixels[y1:y2, x1:x2] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / name, exif=exif, quality=95)


def film(folder, frames, width, height):
    write_video(folder / "v.mp4", frames=frames, size=(width, height))


def write(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def answered(text, images=("a.png",), question=QUESTION, **more):
    return {"messages": [question, {"role": "assistant", "content": text}], "images": list(images), **more}


def prepared(folder, encoder, row, **settings):
    file = RowFile(write(folder, row))
    return Preparer(encoder, DataSettings(**settings))(parse_row(file, 0))


# -- boxes ----------------------------------------------------------------------------------------------


def seen_box(sample, grid):
    """Where the picture of a sample is bright, in pixels that the model sees: x1, y1, x2, y2."""
    patches_PC = sample.prompt.media[0].patches_PC
    values = patches_PC.view(grid.h // 2, grid.w // 2, 2, 2, 3, 2, 14, 14)[..., 0, 0, :, :]
    picture_HW = values.permute(0, 2, 4, 1, 3, 5).reshape(grid.h * 14, grid.w * 14)
    ys, xs = torch.nonzero(picture_HW > 0.5, as_tuple=True)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("boxes", ["original", "thousandths"])
def test_a_box_lands_on_what_it_was_drawn_around(tmp_path, encoder, orientation, boxes):
    """The white rectangle, found in the pixels that the model sees, is where the answer says."""
    stored = (200, 120)
    save(tmp_path, "a.jpg", *stored, box=(40, 30, 130, 70), orientation=orientation)
    shown = opening.load_image(str(tmp_path / "a.jpg"))
    bright = np.argwhere(np.asarray(shown)[:, :, 0] > 128)
    (y1, x1), (y2, x2) = bright.min(0), bright.max(0) + 1
    numbers = [int(n) for n in (x1, y1, x2, y2)]
    if boxes == "thousandths":
        numbers = [
            round(1000 * n / side) for n, side in zip(numbers, (shown.width, shown.height) * 2, strict=True)
        ]
    row = answered(json.dumps({"bbox_2d": numbers, "label": "white"}), ["a.jpg"])
    data = Dataset(write(tmp_path, row), encoder, DataSettings(boxes=boxes))
    sample = data[0]
    text = bundled_processor().tokenizer.decode([t for t in sample.targets_T.tolist() if t != IGNORED])
    (box,) = find_shapes(text)
    seen = seen_box(sample, sample.prompt.media[0].grid)
    assert np.abs(np.array(box.xyxy) - seen).max() <= 1, (box, seen)


PLACED = {
    "JSON": (
        '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "a [1, 2]"}]```',
        '```json\n[{"bbox_2d": [5, 10, 15, 20], "label": "a [1, 2]"}]```',
    ),
    "a point": ('{"point_2d":[10,20]}', '{"point_2d":[5,10]}'),
    "several in one": (
        '{"bbox_2d": [[10, 20, 30, 40], [2, 4, 6, 8]]}',
        '{"bbox_2d": [[5, 10, 15, 20], [1, 2, 3, 4]]}',
    ),
    "box tokens": (
        "<|object_ref_start|>10<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>",
        "<|object_ref_start|>10<|object_ref_end|><|box_start|>(5,10),(15,20)<|box_end|>",
    ),
    "a point in tokens": ("<|box_start|>(10,20)<|box_end|>", "<|box_start|>(5,10)<|box_end|>"),
    "fractions of a pixel": ('{"bbox_2d": [10.4, 20.4, 30.0, 40.6]}', '{"bbox_2d": [5, 10, 15, 20]}'),
    "a little outside": ('{"bbox_2d": [-3, 0, 203, 200]}', '{"bbox_2d": [0, 0, 100, 100]}'),
    "no box": ("10 and [20, 30] and (40, 50)", "10 and [20, 30] and (40, 50)"),
}


@pytest.mark.parametrize("name", PLACED)
def test_only_the_numbers_of_boxes_change(name):
    frame = Frame(200, 200, 100, 100)
    text, expected = PLACED[name]
    assert rewritten(text, lambda numbers, _: frame.place(numbers)) == expected


def test_a_box_of_three_numbers_is_an_error():
    with pytest.raises(InputError, match=r"a box or point has 3 numbers: '1, 2, 3'"):
        rewritten('{"bbox_2d": [1, 2, 3]}', lambda numbers, _: None)


def test_a_box_far_outside_its_picture_makes_the_row_bad(tmp_path, encoder):
    save(tmp_path, "a.png", 200, 100)
    row = answered('{"bbox_2d": [10, 10, 900, 50]}')
    expected = "a box is not in its picture: 900 lies outside a picture of 200 x 100; say what the numbers"
    with pytest.raises(PromptError, match=expected):
        prepared(tmp_path, encoder, row)
    assert prepared(tmp_path, encoder, row, boxes="thousandths")


def test_boxes_that_count_resized_pixels_stay(tmp_path, encoder):
    save(tmp_path, "a.png", 400, 400)
    text = '{"bbox_2d": [10, 10, 100, 50]}'
    assert prepared(tmp_path, encoder, answered(text), boxes="resized").messages[1]["content"] == text


def box_texts(messages):
    return [
        part["text"]
        for message in messages
        for part in (
            [{"text": message["content"]}] if isinstance(message["content"], str) else message["content"]
        )
        if "bbox_2d" in part.get("text", "")
    ]


def test_which_picture_a_box_lies_in(tmp_path, encoder):
    """a.png is halved and b.png is not: the number says which picture was taken."""
    save(tmp_path, "a.png", 224, 224)
    save(tmp_path, "b.png", 112, 112)
    box = '{"bbox_2d": [20, 20, 40, 40]}'
    named = '{"image": 1, "bbox_2d": [20, 20, 40, 40]}'
    halved, whole = box.replace("20, 20, 40, 40", "10, 10, 20, 20"), box

    def texts(*contents, images=("a.png", "b.png")):
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)
        ]
        return box_texts(prepared(tmp_path, encoder, {"messages": messages, "images": images}).messages)

    assert texts("<image>?", box, "<image>?", box) == [halved, whole]
    assert texts("<image>?", "Yes", f"And {box}?", box, images=["a.png"]) == [f"And {halved}?", halved]
    assert texts("<image><image>?", named) == ['{"image": 1, "bbox_2d": [10, 10, 20, 20]}']
    assert texts("<image>" + box + "<image>?", "Yes") == [halved]
    assert texts("<image><image>?", box, images=["a.png", "a.png"]) == [halved]
    with pytest.raises(PromptError, match="a box in message 2 may lie in any of 2 pictures that are scaled"):
        texts("<image><image>?", box)
    with pytest.raises(PromptError, match='message 2 says "image": 3, and the row has 2 pictures'):
        texts("<image><image>?", named.replace('"image": 1', '"image": 3'))
    with pytest.raises(PromptError, match="a box in message 2 stands before any picture"):
        texts("?", box, "<image>?", "Yes", images=["a.png"])
    assert texts("?", box, images=[]) == [box]


def test_what_the_system_message_says_of_boxes_is_left_alone(tmp_path, encoder):
    save(tmp_path, "a.png", 224, 224)
    system = 'Answer as {"bbox_2d": [20, 20, 900, 900]}.'
    row = answered('{"bbox_2d": [20, 20, 40, 40]}', system=system)
    assert box_texts(prepared(tmp_path, encoder, row).messages) == [system, '{"bbox_2d": [10, 10, 20, 20]}']


def test_boxes_of_a_video_are_those_of_its_frames(tmp_path, encoder):
    film(tmp_path, 8, 224, 224)
    answer = {"role": "assistant", "content": '{"bbox_2d": [20, 20, 40, 40]}'}
    row = {"messages": [{"role": "user", "content": "<video>?"}, answer], "videos": ["v.mp4"]}
    assert box_texts(prepared(tmp_path, encoder, row).messages) == ['{"bbox_2d": [10, 10, 20, 20]}']


def test_objects_of_ms_swift_are_written_in_pixels_that_the_model_sees(tmp_path, encoder):
    save(tmp_path, "a.png", 224, 224)
    save(tmp_path, "b.png", 112, 112)
    boxes = [[20, 20, 40, 40], [20, 20, 40, 40]]
    row = answered(
        "<ref-object><bbox><bbox>",
        ["a.png", "b.png"],
        {"role": "user", "content": "<image><image>?"},
        objects={"ref": ["cat"], "bbox": boxes, "image_id": [0, 1]},
    )
    assert prepared(tmp_path, encoder, row).messages[1]["content"] == (
        "<|object_ref_start|>cat<|object_ref_end|>"
        "<|box_start|>(10,10),(20,20)<|box_end|><|box_start|>(20,20),(40,40)<|box_end|>"
    )
    numbers = prepared(tmp_path, encoder, row, objects_as="numbers").messages[1]["content"]
    assert numbers == "cat[10, 10, 20, 20][20, 20, 40, 40]"
    row["objects"] |= {"bbox": [[0.25, 0.5, 0.75, 1.0]] * 2, "bbox_type": "norm1"}
    numbers = prepared(tmp_path, encoder, row, objects_as="numbers").messages[1]["content"]
    assert numbers == "cat[28, 56, 84, 112][28, 56, 84, 112]"
    row["objects"]["image_id"] = [0, 2]
    with pytest.raises(PromptError, match=r"lies in picture 2, and there are 2 \(from 0\)"):
        prepared(tmp_path, encoder, row)


def test_box_tokens_in_answers_are_tokens_and_typed_ones_are_text(encoder):
    """What the assistant says is learned as the tokens that it will say; nobody else can write tokens."""
    tokens = [f"<|{name}|>" for name in ("object_ref_start", "object_ref_end", "box_start", "box_end")]
    ids = bundled_processor().tokenizer.convert_tokens_to_ids(tokens)
    text = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text + "<|im_end|>"}]
    sample = encoder.encode(messages)
    assert [t for t in sample.prompt.token_ids if t in ids] == ids
    learned = [t for t in sample.targets_T.tolist() if t != IGNORED]
    assert [t for t in learned if t in ids] == ids
    end = bundled_processor().tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert learned.count(end) == 1, "a typed <|im_end|> must not end the turn"


# -- lengths --------------------------------------------------------------------------------------------


def conversations(folder):
    save(folder, "a.jpg", 300, 200, orientation=6)
    save(folder, "b.png", 90, 400)
    film(folder, 20, 96, 64)
    ask = {"role": "user", "content": "Time?"}
    call = {"role": "tool_call", "content": '{"name": "clock", "arguments": {}}'}
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    return {
        "text": {"messages": [ask, {"role": "assistant", "content": "Noon"}]},
        "turned picture": answered("Here", ["a.jpg"]),
        "two pictures": answered(
            "Here", ["a.jpg", "b.png"], {"role": "user", "content": "<image>or<image>?"}
        ),
        "with limits": answered("Here", [{"image": "a.jpg", "max_pixels": 56 * 56, "min_pixels": 28 * 28}]),
        "resized": answered("Here", [{"image": "a.jpg", "resized_height": 56, "resized_width": 84}]),
        "video": {
            "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "Yes"}],
            "videos": [{"video": "v.mp4", "fps": 4}],
        },
        "typed tokens": {"messages": [ask, {"role": "assistant", "content": "<|image_pad|><|im_end|>"}]},
        "boxes": answered('{"bbox_2d": [1, 2, 3, 4]} <|box_start|>(1,2)<|box_end|>', ["a.jpg"]),
        "tools": {
            "messages": [
                ask,
                call,
                {"role": "tool", "content": "12"},
                {"role": "assistant", "content": "Noon"},
            ],
            "tools": tools,
        },
        "a picture in an answer": {
            "messages": [ask, {"role": "assistant", "content": "<image> is it"}],
            "images": ["b.png"],
        },
    }


NAMES = (
    "text",
    "turned picture",
    "two pictures",
    "with limits",
    "resized",
    "video",
    "typed tokens",
    "boxes",
    "tools",
    "a picture in an answer",
)


@pytest.mark.parametrize("learn", ["answers", "all", "last"])
@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_those_of_the_sample(tmp_path, monkeypatch, name, learn):
    encoder = Encoder(bundled_processor(), bundled_config(), learn=learn, max_pixels=112 * 112)
    data = Dataset(write(tmp_path, conversations(tmp_path)[name]), encoder)
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
        _, found = data.prepared(0)
    sample = data[0]
    assert found.tokens == len(sample)
    assert found.vision == sum(span.length for span in sample.prompt.spans)
    assert found.learned == int((sample.targets_T != IGNORED).sum())
    assert [one.grid for one in found.media] == [medium.grid for medium in sample.prompt.media]


def test_tools_are_told_as_the_server_tells_them(tmp_path, encoder):
    sample = Dataset(write(tmp_path, conversations(tmp_path)["tools"]), encoder)[0]
    text = bundled_processor().tokenizer.decode(sample.prompt.token_ids)
    assert '<tools>\n{"type": "function", "function": {"name": "clock"' in text
    assert '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\n12\n</tool_response><|im_end|>" in text


def test_pictures_in_answers_are_not_learned(tmp_path, encoder):
    sample = Dataset(write(tmp_path, conversations(tmp_path)["a picture in an answer"]), encoder)[0]
    assert bundled_config().image_token_id not in sample.targets_T.tolist()
    assert sample.prompt.spans


# -- too long -------------------------------------------------------------------------------------------


def long_row(folder):
    save(folder, "big.png", 560, 560)
    save(folder, "small.png", 56, 84)
    row = answered(
        '{"image": 1, "bbox_2d": [0, 0, 280, 560]}',
        ["big.png", "small.png"],
        {"role": "user", "content": "<image><image>?"},
    )
    return row, Encoder(bundled_processor(), bundled_config(), max_pixels=560 * 560, min_pixels=28 * 28)


def test_a_row_is_shrunk_until_it_fits_and_its_boxes_with_it(tmp_path):
    row, encoder = long_row(tmp_path)
    whole = prepared(tmp_path, encoder, row)
    assert (whole.media[0].resized, whole.shrunk) == ((560, 560), False)
    limit = whole.tokens - whole.media[0].tokens + 81
    data = Dataset(write(tmp_path, row), encoder, DataSettings(max_tokens=limit, too_long="shrink"))
    _, found = data.prepared(0)
    assert found.shrunk
    assert found.tokens <= limit
    assert found.media[0].resized == (252, 252), "the largest size that fits"
    assert found.media[1].resized == (56, 84), "what is small already stays"
    assert '"bbox_2d": [0, 0, 126, 252]' in found.messages[1]["content"]
    sample = data[0]
    assert len(sample) == found.tokens
    assert [medium.grid for medium in sample.prompt.media] == [one.grid for one in found.media]


def test_resized_boxes_follow_when_a_picture_is_shrunk(tmp_path):
    row, encoder = long_row(tmp_path)
    limit = prepared(tmp_path, encoder, row).tokens - 300
    found = prepared(tmp_path, encoder, row, boxes="resized", max_tokens=limit, too_long="shrink")
    side = found.media[0].resized[0]
    assert side < 560
    assert f'"bbox_2d": [0, 0, {side // 2}, {side}]' in found.messages[1]["content"]


def test_videos_are_shrunk_too(tmp_path, encoder):
    film(tmp_path, 8, 224, 224)
    row = {
        "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "Yes"}],
        "videos": ["v.mp4"],
    }
    encoder = Encoder(bundled_processor(), bundled_config(), max_pixels=224 * 224, min_pixels=28 * 28)
    whole = prepared(tmp_path, encoder, row)
    data = Dataset(
        write(tmp_path, row), encoder, DataSettings(max_tokens=whole.tokens - 1, too_long="shrink")
    )
    _, found = data.prepared(0)
    assert 0 < found.vision < whole.vision
    assert len(data[0]) == found.tokens


@pytest.mark.parametrize("policy", ["error", "drop", "shrink"])
def test_text_that_is_too_long_is_never_cut(tmp_path, encoder, policy):
    row = {"messages": [{"role": "user", "content": "word " * 50}, {"role": "assistant", "content": "Yes"}]}
    with pytest.raises(PromptTooLongError, match=r"it has \d+ tokens \(\d+ of text\), more than 30"):
        prepared(tmp_path, encoder, row, max_tokens=30, too_long=policy)


def test_a_picture_that_cannot_be_small_enough(tmp_path, encoder):
    save(tmp_path, "a.png", 100, 100)
    with pytest.raises(PromptTooLongError, match="at the least size that the processor makes"):
        prepared(tmp_path, encoder, answered("Yes"), max_tokens=20, too_long="shrink")


def test_without_a_limit_the_models_positions_are_the_limit(tmp_path, encoder):
    small = SimpleNamespace(**vars(encoder) | {"targets": encoder.targets})
    small.config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=10))
    with pytest.raises(PromptTooLongError, match="more than 10"):
        prepared(tmp_path, small, {"messages": [{"role": "assistant", "content": "Hello, all of you"}]})


# -- the source -----------------------------------------------------------------------------------------


def test_the_same_number_is_the_same_sample_in_any_process(tmp_path, encoder):
    """Loaded by processes of torch's loader, which get the source pickled or forked."""
    path = write(tmp_path, *conversations(tmp_path).values())
    data = Dataset(path, encoder)
    loader = torch.utils.data.DataLoader(
        data, batch_size=None, sampler=range(len(data)), num_workers=1, multiprocessing_context="spawn"
    )
    for index, other in enumerate(loader):
        mine = data[index]
        assert mine.prompt.token_ids == other.prompt.token_ids
        assert torch.equal(mine.targets_T, other.targets_T)
        assert all(
            torch.equal(one.patches_PC, two.patches_PC)
            for one, two in zip(mine.prompt.media, other.prompt.media, strict=True)
        )


def test_samples_are_named_by_file_and_line(tmp_path, encoder):
    path = write(tmp_path, *conversations(tmp_path).values())
    assert Dataset(path, encoder)[1].name == f"{path}:2"


def test_whatever_is_wrong_with_a_row_names_its_line(tmp_path, encoder):
    path = write(tmp_path, answered("Yes", ["missing.png"]))
    with pytest.raises(RowError, match=r"rows.jsonl, line 1: There is no file .*missing.png"):
        Dataset(path, encoder)[0]
    with pytest.raises(IndexError):
        Dataset(path, encoder)[1]


def test_several_files_mix_by_weight(tmp_path, encoder):
    def file(name, count):
        rows = [{"messages": [{"role": "assistant", "content": f"{name} {i}"}]} for i in range(count)]
        return Dataset(write(tmp_path, *rows, name=f"{name}.jsonl"), encoder)

    one, two = file("a", 2), file("b", 4)
    names = [
        sample.name.rsplit("/", 1)[-1] for sample in map(Mixture([one, two], [2, 0.5]).__getitem__, range(6))
    ]
    assert names == ["a.jsonl:1", "a.jsonl:1", "a.jsonl:2", "a.jsonl:2", "b.jsonl:1", "b.jsonl:3"]
    assert len(Mixture([one, two])) == 6
    with pytest.raises(InputError, match="Weights of files must be more than 0"):
        Mixture([one, two], [1, 0])
    with pytest.raises(InputError, match="one weight for each file: 2, not 1"):
        Mixture([one, two], [1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("boxes", "percent"), ("objects_as", "html"), ("too_long", "cut"), ("max_tokens", 0)],
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(InputError, match=name):
        DataSettings(**{name: value})


# -- the check ------------------------------------------------------------------------------------------


def checked_file(folder):
    save(folder, "a.png", 224, 224)
    photo(60, 90).save(folder / "whole.jpg")
    cut = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "text.png").write_text("no picture")
    hello = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    rows = [
        hello,
        answered("Here", ["a.png"]),
        hello,
        answered("Here", ["missing.png"]),
        answered("Here", ["text.png"]),
        answered("Here", ["cut.jpg"]),
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "word " * 80}, {"role": "assistant", "content": " "}]},
    ]
    return write(folder, *rows)


def test_the_check_of_a_whole_file(tmp_path, encoder):
    steps = []
    report = check(checked_file(tmp_path), encoder, progress=lambda *step: steps.append(step))
    assert (report.rows, len(report.kept), report.sound) == (8, 5, False)
    assert (report.pictures, report.videos, report.turns, report.with_media) == (2, 0, 5, 2)
    assert report.duplicates == [(3, 1)]
    assert [(row.line, row.kind) for row in report.bad] == [(4, "media"), (5, "media"), (7, "form")]
    assert report.bad[0].reason == f"There is no file {tmp_path}/missing.png"
    assert report.bad[1].reason.endswith("text.png is not a picture in a format that Pillow reads")
    assert report.bad[2].reason == "it has no turn of the assistant, so there is nothing to learn"
    assert report.answers_empty == 1
    assert [line for _, line in report.longest(2)] == [8, 2]
    data = Dataset(report.path, encoder, kept=report.kept)
    assert list(report.lengths[:3]) == [len(data[i]) for i in range(3)]
    assert report.learned > 0
    assert steps == [(8, 8)]


def test_pixels_are_decoded_only_where_that_is_asked_for(tmp_path, encoder):
    report = check(checked_file(tmp_path), encoder, decode=True)
    broken = next(row for row in report.bad if row.line == 6)
    assert broken.kind == "media"
    assert "broken or truncated" in broken.reason


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_long_rows_stop_training_or_are_left_out(tmp_path, encoder, policy):
    hello = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    long = {"messages": [{"role": "user", "content": "word " * 80}, {"role": "assistant", "content": "Yes"}]}
    settings = DataSettings(max_tokens=60, too_long=policy)
    report = check(write(tmp_path, hello, long, hello), encoder, settings)
    assert [row.line for row in (report.bad if policy == "error" else report.dropped)] == [2]
    assert report.sound == (policy == "drop")
    assert list(report.kept) == [0, 2]
    assert Dataset(report.path, encoder, settings, report.kept)[1].name.endswith(":3")


def test_percentiles_are_of_the_nearest_rank():
    from qvl.train.data.checking import Report

    report = Report(path=None)
    report.lengths.extend(range(100, 0, -1))
    assert [report.percentile(share) for share in (0, 0.5, 0.95, 1)] == [1, 50, 95, 100]


def test_a_reason_is_kept_of_the_kind_that_it_is(encoder):
    with pytest.raises(MediaNotFoundError):
        Measure(encoder.processor, {})(MediaItem("image", "/no/such/picture.png"))
