"""Media of requests become what `generate()` would get, and what is too large is refused from its header."""

import io
import os
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from qvl import Qwen2_5_VLProcessor
from qvl.errors import InputError, MediaDecodeError, MediaError, MediaTooLargeError
from qvl.hub import resolve
from qvl.processing.media.opening import load_image, load_pdf_pages
from qvl.serve.errors import QueueFullError, RefusedError
from qvl.serve.media.decoding import Decoder, Task
from qvl.serve.media.service import MediaRequest
from qvl.serve.settings import Limits
from support.media import data_uri, encoded, gif_of, pdf_of, photo, png_bomb, png_chunk, running_media
from support.video import write_video

WHERE = "messages[0].content[1]"


@pytest.fixture(scope="module")
def media():
    with running_media(video_frames=500, sampled_frames=30, pdf_pages=3) as running:
        yield running


@pytest.fixture(scope="module")
def processor():
    return Qwen2_5_VLProcessor.from_pretrained("qvl/tiny")


def request(data, kind="image", most_tokens=None, **options):
    url = data if isinstance(data, str) else data_uri(data)
    return MediaRequest(WHERE, kind, url, options, most_tokens)


def sideways(**options):
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif, **options}


PICTURES = {
    "jpeg": lambda: encoded(photo(), "JPEG"),
    "jpeg on its side": lambda: encoded(photo(), "JPEG", **sideways()),
    "png": lambda: encoded(photo()),
    "png with alpha": lambda: encoded(photo(mode="RGBA")),
    "png on its side": lambda: encoded(photo(), "PNG", **sideways()),
    "png with late exif": lambda: late_exif_png(),
    "grey": lambda: encoded(photo(mode="L")),
    "webp": lambda: encoded(photo(mode="RGBA"), "WEBP", lossless=True),
    "gif": lambda: encoded(photo(mode="L"), "GIF", save_all=True, append_images=[photo(mode="L", seed=1)]),
    "bmp": lambda: encoded(photo(), "BMP"),
}


def late_exif_png():
    """A PNG whose EXIF, which turns it, stands behind its pixels."""
    plain, exif = encoded(photo()), Image.Exif()
    exif[0x0112] = 8
    end = plain.rindex(b"IEND") - 4
    return plain[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[end:]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_becomes_what_the_processor_makes_of_it(media, processor, name):
    data = PICTURES[name]()
    wanted = processor(text="<|image_pad|>", images=[data], return_tensors="pt")
    (prepared,) = media.prepare(request(data))
    (medium,), (cost,) = prepared.media, prepared.costs
    assert torch.equal(medium.patches_PC, wanted["pixel_values"])
    assert [medium.grid.t, medium.grid.h, medium.grid.w] == wanted["image_grid_thw"][0].tolist()
    picture = load_image(data)
    assert (cost.width, cost.height) == picture.size
    assert (cost.resized_width, cost.resized_height) == (medium.grid.w * 14, medium.grid.h * 14)
    assert cost.tokens == (wanted["input_ids"] == processor.image_token_id).sum()
    assert media.measure(request(data)) == [[cost]]


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 28 * 28 * 40},
        {"min_pixels": 28 * 28 * 20, "max_pixels": 28 * 28 * 40},
        {"resized_height": 84, "resized_width": 28, "max_pixels": None},
    ],
    ids=["most", "least and most", "size"],
)
def test_settings_of_one_picture(media, processor, options):
    data = encoded(photo())
    message = {"role": "user", "content": [{"type": "image", "base64": data_uri(data), **options}]}
    wanted = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    (prepared,) = media.prepare(request(data, **options))
    assert torch.equal(prepared.media[0].patches_PC, wanted["pixel_values"])
    assert media.measure(request(data, **options)) == [list(prepared.costs)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fps": 1.0},
        {"num_frames": 6},
        {"nframes": 6},
        {"video_start": 1.0, "video_end": 3.0, "max_pixels": 9408},
    ],
    ids=["as it is", "fps", "num_frames", "nframes", "segment"],
)
def test_a_video_becomes_what_the_processor_makes_of_it(media, processor, tmp_path, options):
    path = write_video(tmp_path / "bar.mp4", frames=20, fps=4)
    message = {"role": "user", "content": [{"type": "video", "path": str(path), **options}]}
    wanted = processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt")
    asked = request(path.read_bytes(), "video", **options)
    (prepared,) = media.prepare(asked)
    (medium,), (cost,) = prepared.media, prepared.costs
    assert torch.equal(medium.patches_PC, wanted["pixel_values_videos"])
    assert medium.seconds_per_grid == wanted["second_per_grid_ts"][0]
    assert cost.tokens == (wanted["input_ids"] == processor.video_token_id).sum()
    assert (cost.width, cost.height, cost.seconds) == (64, 48, 5.0)
    assert cost.frames in (2 * medium.grid.t - 1, 2 * medium.grid.t)
    assert cost.sampled_fps == pytest.approx(2 / medium.seconds_per_grid)
    assert media.measure(asked) == [[cost]]


def test_an_animated_gif_as_a_video(media, processor, tmp_path):
    frames = [photo(56, 56, seed=seed, mode="L") for seed in range(6)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=250)
    path = tmp_path / "frames.gif"
    path.write_bytes(data)
    (prepared,) = media.prepare(request(data, "video"))
    assert torch.equal(
        prepared.media[0].patches_PC, processor.video_processor([str(path)])["pixel_values_videos"]
    )


def test_pages_of_a_pdf(media, processor):
    data = pdf_of([(200, 100), (100, 200), (100, 100), (300, 100)])
    (prepared,) = media.prepare(request(data, "file", pages=[2, 1]))
    wanted = processor.image_processor(load_pdf_pages(data, [1, 0]), return_tensors="pt")
    assert torch.equal(torch.cat([medium.patches_PC for medium in prepared.media]), wanted["pixel_values"])
    assert [(cost.width, cost.height) for cost in prepared.costs] == [(209, 417), (417, 209)]
    assert media.measure(request(data, "file", pages=[2, 1])) == [list(prepared.costs)]
    with pytest.raises(MediaTooLargeError, match=r"content\[1\]: the file has 4 pages, and 3 of a file"):
        media.prepare(request(data, "file"))
    with pytest.raises(InputError, match="pages 1 to 4, there is no page 5"):
        media.prepare(request(data, "file", pages=[5]))
    with pytest.raises(InputError, match="list of page numbers"):
        media.prepare(request(data, "file", pages="all"))
    with pytest.raises(MediaDecodeError, match="the file is broken"):
        media.prepare(request(data[:200], "file"))


def test_a_page_larger_than_a_picture_may_be(media):
    with pytest.raises(MediaTooLargeError, match="page 1 is 20,834 x 20,834"):
        media.measure(request(pdf_of([(10_000, 10_000)]), "file"))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_budget_of_tokens_chooses_the_size(media, tmp_path, kind):
    data = encoded(photo(600, 900), "JPEG")
    if kind == "video":
        data = write_video(tmp_path / "bar.mp4", frames=8, size=(320, 240)).read_bytes()
    small, large = (media.prepare(request(data, kind, most))[0].costs[0] for most in (5, None))
    assert small.tokens <= 5 < large.tokens
    own = {"max_pixels": 28 * 28 * 8, "min_pixels": 1}
    assert media.prepare(request(data, kind, 5, **own))[0].costs[0].tokens > 5  # said outright, it wins


def test_the_digest_names_what_the_model_gets(media):
    def digest(data, kind="image", **options):
        return media.prepare(request(data, kind, **options))[0].media[0].digest

    one, other = encoded(photo(56, 56)), encoded(photo(56, 56, seed=1))
    assert len(digest(one)) == 32
    assert digest(one) == digest(encoded(photo(56, 56), compress_level=1))  # other bytes, the same pixels
    assert len({digest(one), digest(other), digest(one, max_pixels=28 * 28), digest(gif_of(4), "video")}) == 4
    slow, fast = (
        encoded(photo(56, 56), "GIF", save_all=True, append_images=[photo(56, 56, seed=1)], duration=duration)
        for duration in (1000, 100)
    )
    assert digest(slow, "video", num_frames=2) != digest(fast, "video", num_frames=2)  # the same pixels


def test_media_asked_about_again_are_not_decoded_again(media):
    asked = request(encoded(photo(seed=7)))
    first, second = media.prepare(asked)[0], media.prepare(asked)[0]
    assert second.media[0] is first.media[0]
    changed = request(encoded(photo(seed=7)), max_pixels=28 * 28 * 3)
    assert media.prepare(changed)[0].media[0] is not first.media[0]


# What is refused


def test_a_picture_of_too_many_pixels_is_not_decoded(media):
    data = png_bomb(10_000)
    assert len(data) < 200_000
    words = r"content\[1\]: the picture is 10,000 x 10,000 = 100,000,000 pixels, more than the 50,000,000"
    for work in (media.prepare, media.measure):
        with pytest.raises(MediaTooLargeError, match=words):
            work(request(data))


def test_a_gif_of_very_many_frames(media):
    data = gif_of(100_000)
    assert media.prepare(request(data))[0].costs[0].width == 1  # as a picture it is its first frame
    with pytest.raises(MediaTooLargeError, match="the video has more frames than the 500 allowed"):
        media.prepare(request(data, "video"))


def test_more_tokens_than_there_is_room_for(media):
    one = request(encoded(photo()))
    tokens = media.measure(one)[0][0].tokens
    with pytest.raises(MediaTooLargeError, match=f"it takes {tokens:,} tokens, more than the 2 "):
        media.prepare(one, most_tokens=2)
    last = replace(one, where="messages[3].content[0]")
    with pytest.raises(
        MediaTooLargeError, match=rf"messages\[3\].content\[0\]: with what .* {2 * tokens} tokens"
    ):
        media.prepare(one, last, most_tokens=2 * tokens - 1)
    assert len(media.prepare(one, last, most_tokens=2 * tokens)) == 2


def test_more_frames_than_a_request_may_take(media, tmp_path):
    data = write_video(tmp_path / "bar.mp4", frames=40).read_bytes()
    assert media.measure(request(data, "video", num_frames=30))[0][0].frames == 30
    for work in (media.measure, media.prepare):
        with pytest.raises(
            MediaTooLargeError, match="40 frames of the video are wanted, more than the 30 allowed"
        ):
            work(request(data, "video", num_frames=40))


def test_a_worker_counts_tokens_itself():
    decoder, data = Decoder(str(resolve("qvl/tiny")), Limits()), io.BytesIO(encoded(photo()))
    task = Task("image", "PNG", {})
    tokens = decoder.measure(task, data)[0].tokens
    data.seek(0)
    assert len(list(decoder.decode(task, data, tokens))) == 1
    data.seek(0)
    with pytest.raises(MediaTooLargeError, match=f"takes {tokens} tokens, more than the {tokens - 1} "):
        list(decoder.decode(task, data, tokens - 1))


def test_enlarging_beyond_reason_is_refused_before_it_is_done(media):
    with pytest.raises(MediaTooLargeError, match="tokens"):
        media.prepare(request(encoded(photo()), min_pixels=10**9, max_pixels=10**9 + 10**7))


@pytest.mark.parametrize(
    "options",
    [
        {"colour": "red"},
        {"min_pixels": 1e300},
        {"max_pixels": float("nan")},
        {"max_pixels": float("inf")},
        {"max_pixels": "many"},
        {"max_pixels": True},
        {"max_pixels": 0},
        {"max_pixels": 12.5},
        {"min_pixels": [1]},
        {"resized_height": 28},
        {"resized_height": 2**50, "resized_width": 28},
        {"pages": [1]},
        {"min_pixels": "9" * 5000},
        {"min_pixels": object()},
        {"max_pixels": 10**9, "min_pixels": -1},
    ],
    ids=lambda options: "-".join(f"{name} {type(value).__name__}" for name, value in options.items()),
)
def test_settings_that_make_no_sense(media, options):
    with pytest.raises(InputError, match=r"^messages\[0\].content\[1\]: "):
        media.prepare(request(encoded(photo()), **options))


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 1, "num_frames": 2},
        {"fps": 0},
        {"fps": -1},
        {"num_frames": 1000},
        {"num_frames": 2.5},
        {"video_start": 99},
        {"video_start": "soon"},
        {"do_sample_frames": False},
        {"frame_sampling": "backwards"},
        {"frame_sampling": 7},
        {"max_frames": 0},
        {"min_frames": -1},
    ],
    ids=lambda options: "-".join(options),
)
def test_settings_of_a_video_that_make_no_sense(media, tmp_path, options):
    data = write_video(tmp_path / "bar.mp4", frames=8).read_bytes()
    with pytest.raises(InputError, match=r"^messages\[0\].content\[1\]: "):
        media.prepare(request(data, "video", **options))


def broken_files(tmp_path):
    video = write_video(tmp_path / "bar.mp4", frames=30).read_bytes()
    return {
        "truncated mp4": ("video", video[:-400]),
        "mp4 without a start": ("video", b"\0\0\0\x18ftypisom" + bytes(5000)),
        "mp4 of noise": ("video", video[:300] + os.urandom(4000)),
        "webm of nothing": ("video", b"\x1a\x45\xdf\xa3" + bytes(100)),
        "truncated png": ("image", encoded(photo())[:-3000]),
        "truncated jpeg": ("image", encoded(photo(), "JPEG")[:400]),
        "truncated webp": ("image", encoded(photo(), "WEBP")[:100]),
        "png of noise": ("image", b"\x89PNG\r\n\x1a\n" + os.urandom(500)),
        "jpeg header only": ("image", b"\xff\xd8\xff\xe0"),
        "bmp header only": ("image", b"BM"),
        "no aspect": ("image", encoded(Image.new("RGB", (3000, 3)))),
        "pdf of noise": ("file", b"%PDF-1.7\n" + os.urandom(500)),
    }


def test_broken_files_give_plain_reasons(media, tmp_path):
    before = media.workers
    for name, (kind, data) in broken_files(tmp_path).items():
        with pytest.raises(MediaError) as caught:
            media.prepare(request(data, kind))
        words = str(caught.value)
        assert words.startswith(WHERE), name
        for leak in ("Traceback", "Errno", "memfd", "MediaLimits", "cannot identify", "object at", "<"):
            assert leak not in words, (name, words)
    assert media.workers == before  # no error of a decoder ends the process


def test_a_picture_is_opened_as_what_it_was_recognised_as_and_nothing_else():
    decoder = Decoder(str(resolve("qvl/tiny")), Limits())
    for kind in ("PNG", "TIFF", "PPM"):
        with pytest.raises(MediaDecodeError, match="the picture is broken"):
            decoder.measure(Task("image", "JPEG", {}), io.BytesIO(encoded(photo(), kind)))


def test_other_schemes_and_closed_doors(media):
    with pytest.raises(RefusedError, match="must begin with data:"):
        media.prepare(request("ftp://example.com/x.png"))
    with pytest.raises(RefusedError, match="reads no local files"):
        media.prepare(request("file:///etc/hostname"))


def test_what_all_requests_hold_is_bounded():
    with running_media(waiting_memory=3_000_000) as media:
        held = [
            media.prepare(request(encoded(photo(seed=1)), max_pixels=28 * 28 * 100, min_pixels=28 * 28 * 90))
        ]
        size = held[0][0].media[0].patches_PC.nbytes
        assert media.service.held_bytes >= size > 1_000_000
        with pytest.raises(QueueFullError, match=r"content\[1\]: the server holds as many media"):
            for seed in range(2, 5):
                asked = request(encoded(photo(seed=seed)), max_pixels=28 * 28 * 100, min_pixels=28 * 28 * 90)
                held.append(media.prepare(asked))
        with pytest.raises(MediaTooLargeError, match=r"needs .* bytes of memory"):
            media.prepare(request(encoded(photo()), max_pixels=28 * 28 * 300, min_pixels=28 * 28 * 290))
        held.clear()
        media.prepare(request(encoded(photo(seed=9)), max_pixels=28 * 28 * 100, min_pixels=28 * 28 * 90))
        media(media.service.close())
        assert media.service.held_bytes == 0


def test_pdf_without_its_reader(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    decoder = Decoder(str(resolve("qvl/tiny")), Limits())
    with pytest.raises(MediaError, match=r'pip install "qvl\[pdf\]"'):
        decoder.measure(Task("file", "PDF", {}), io.BytesIO(b"%PDF-1.4"))


def test_real_pictures(media, processor, shared_data):
    path = shared_data / "images" / "multiple_items.png"
    (prepared,) = media.prepare(request(path.read_bytes(), max_pixels=28 * 28 * 64))
    wanted = processor.image_processor([path], max_pixels=28 * 28 * 64, return_tensors="pt")["pixel_values"]
    assert torch.equal(prepared.media[0].patches_PC, wanted)
