"""Opening pictures and PDF pages: sources, modes, EXIF, transparency, limits and broken input."""

import base64
import io
import struct
import threading
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.errors import (
    InputError,
    InputTypeError,
    MediaDecodeError,
    MediaFetchError,
    MediaNotFoundError,
    MediaTooLargeError,
)
from qvl.processing.media.opening import MediaLimits, load_image, load_pdf_pages
from qvl.processing.media.rgb import to_rgb


def picture(mode="RGB", size=(6, 4)):
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3) * 3
    return Image.fromarray(values).convert(mode)


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def serve():
    servers = []

    def start(handler):
        server = HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def same(image, wanted):
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.asarray(wanted))


# Sources


def test_every_source_gives_the_same_picture(tmp_path, monkeypatch):
    image = picture()
    data = encoded(image)
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = base64.b64encode(data).decode()
    sources = [path, str(path), "~/a b.png", path.as_uri(), f"data:image/png;base64,{text}", text]
    sources += [data, bytearray(data), memoryview(data), io.BytesIO(data)]
    sources += [np.asarray(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)]
    for source in sources:
        same(load_image(source), image)
    with path.open("rb") as file:
        same(load_image(file), image)
        assert not file.closed


def test_base64_with_line_breaks_as_transformers_reads_it():
    same(load_image(base64.encodebytes(encoded(picture())).decode()), picture())


def test_a_stream_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.left = io.BytesIO(data)

        def seekable(self):
            return False

        def read(self, size=-1):
            return self.left.read(size)

    same(load_image(Pipe(encoded(picture()))), picture())
    with pytest.raises(MediaTooLargeError):
        load_image(Pipe(encoded(picture())), limits=MediaLimits(bytes=10))


def test_a_data_uri_need_not_be_base64():
    data = encoded(picture())
    same(load_image("data:image/png," + "".join(f"%{byte:02x}" for byte in data)), picture())


def test_a_pil_image_is_left_alone():
    image = picture("RGBA")
    assert load_image(image) is image


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((1, 2, 3), 65535, np.uint16), 255),
        (np.full((2, 3, 3), 0.5), 128),
        (np.full((2, 3, 3), 77.0), 77),
        (np.ones((2, 3), bool), 255),
        (torch.full((3, 2, 3), 0.5, dtype=torch.bfloat16), 128),
        (np.dstack([np.zeros((2, 3, 3), np.uint8), np.full((2, 3), 128, np.uint8)]), 127),
    ],
)
def test_arrays(array, wanted):
    image = load_image(array)
    assert image.size == (3, 2)
    assert set(np.asarray(image).ravel().tolist()) == {wanted}


@pytest.mark.parametrize(
    "array", [np.full((2, 3, 3), -1.0), np.zeros((0, 3, 3)), np.zeros((5, 6, 7)), np.zeros(4)]
)
def test_arrays_that_are_no_picture(array):
    with pytest.raises(InputError):
        load_image(array)


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK"])
def test_opaque_modes_convert_as_pillow_does(mode):
    image = picture(mode)
    same(load_image(encoded(image, "TIFF")), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA"])
def test_every_mode_with_alpha_becomes_white_where_it_is_clear(mode):
    base = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}.get(mode, mode)
    image = picture().convert(base)
    image.putalpha(0)
    image = image.convert(mode) if mode != "PA" else image.convert("P").convert("PA")
    assert np.asarray(to_rgb(image)).min() == 255


def test_ycbcr_and_palette():
    image = picture("YCbCr")
    same(load_image(encoded(image, "TIFF")), image.convert("RGB"))
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE)
    same(load_image(encoded(image)), image.convert("RGB"))


def test_lab():
    image = Image.new("LAB", (3, 2), (255, 128, 128))  # L = 100, a = b = 0: white
    assert np.asarray(load_image(encoded(image, "TIFF"))).min() >= 250


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = picture("RGB").convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 128, 255, 0, 128, 255]] * 4, np.uint8)))
    loaded = np.asarray(load_image(encoded(image))).astype(int)
    colours = np.asarray(image.convert("RGB")).astype(int)
    assert (loaded[:, 0] == 255).all()
    np.testing.assert_array_equal(loaded[:, 2], colours[:, 2])
    np.testing.assert_allclose(loaded[:, 1], colours[:, 1] * 128 / 255 + 255 * 127 / 255, atol=1)


def test_transparent_palette_and_colour_key():
    palette = picture().quantize(4)
    loaded = np.asarray(load_image(encoded(palette, transparency=1)))
    places = np.asarray(palette)
    assert (loaded[places == 1] == 255).all()
    np.testing.assert_array_equal(loaded[places != 1], np.asarray(palette.convert("RGB"))[places != 1])
    key = Image.new("RGB", (2, 1), (9, 8, 7))
    key.putpixel((1, 0), (1, 2, 3))
    loaded = np.asarray(load_image(encoded(key, transparency=(1, 2, 3))))
    assert loaded.tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        loaded = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
        assert loaded[:, :, 0].tolist() == [[0, 1, 128, 255]]
    header = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()  # opens as mode I
    assert np.asarray(load_image(header))[:, :, 1].tolist() == [[0, 1, 128, 255]]
    big_endian = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert np.asarray(load_image(encoded(big_endian, "TIFF")))[:, :, 2].tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 51.0, 255.0], [0, 51, 255]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
    ],
)
def test_float_pictures(values, wanted):
    image = Image.fromarray(np.array([values], np.float32))
    assert np.asarray(load_image(encoded(image, "TIFF")))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(orientation):
    upright = picture(size=(5, 3))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    same(load_image(encoded(stored, exif=exif)), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_counts_as_none():
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x12" * 9)
    assert load_image(data).size == (6, 4)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(load_image(data))[0, 0].tolist() == [255, 0, 0]


# Bad input


def test_missing_files_and_folders(tmp_path):
    for source in (
        tmp_path / "no.jpg",
        str(tmp_path / "no.jpg"),
        "no such file",
        "photo123",
        tmp_path,
        "x" * 9999,
    ):
        with pytest.raises(MediaNotFoundError):
            load_image(source)
    with pytest.raises(FileNotFoundError, match=r"There is no file .*no\.jpg"):
        load_image(tmp_path / "no.jpg")


def test_a_text_named_jpg(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture")
    with pytest.raises(MediaDecodeError, match=r"notes\.jpg is not a picture"):
        load_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated(tmp_path, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaDecodeError, match="broken or truncated"):
        load_image(path)


def test_truncated_pil_image():
    data = encoded(picture(size=(64, 64)), "JPEG")
    lazy = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(MediaDecodeError, match="broken or truncated"):
        load_image(lazy)


def test_no_other_program_is_started_for_a_picture():
    postscript = encoded(picture(size=(64, 64)), "EPS")
    with pytest.raises(MediaDecodeError, match="not a picture in a format"):
        load_image(postscript)


def test_zero_bytes(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    for source in (path, b""):
        with pytest.raises(MediaDecodeError, match="is empty"):
            load_image(source)


def png_declaring(width, height):
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_too_many_declared_pixels():
    with pytest.raises(MediaTooLargeError):
        load_image(png_declaring(40_000, 25_000))
    with pytest.raises(MediaTooLargeError, match="6 x 4 = 24 pixels, more than the 20 allowed"):
        load_image(encoded(picture()), limits=MediaLimits(image_pixels=20))


def test_other_types():
    for source in (3, None, ["a.png"]):
        with pytest.raises(InputTypeError):
            load_image(source)
    with pytest.raises(InputTypeError, match="binary"):
        load_image(io.StringIO("text"))


@pytest.mark.parametrize(
    "uri", ["data:image/png;base64", "data:image/png;base64,###", "data:image/png;base64,AAAA"]
)
def test_bad_data_uris(uri):
    with pytest.raises(MediaDecodeError):
        load_image(uri)


def test_too_many_bytes():
    with pytest.raises(MediaTooLargeError, match=r"MediaLimits\.bytes"):
        load_image("data:image/png;base64," + "A" * 400, limits=MediaLimits(bytes=100))


# URLs


def quiet(handler):
    return type("Quiet", (handler,), {"log_message": lambda *_: None})


def test_url(tmp_path, serve):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    url = serve(partial(quiet(SimpleHTTPRequestHandler), directory=str(tmp_path)))
    same(load_image(f"{url}/a.png"), picture())
    with pytest.raises(MediaFetchError, match=r"no\.png answered 404"):
        load_image(f"{url}/no.png")
    with pytest.raises(MediaTooLargeError):
        load_image(f"{url}/a.png", limits=MediaLimits(bytes=10))


def test_url_that_redirects_for_ever_and_the_check_of_addresses(serve):
    class Loop(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", "/again")
            self.end_headers()

    url = serve(quiet(Loop))
    with pytest.raises(MediaFetchError, match="redirects more than 3 times"):
        load_image(url, limits=MediaLimits(redirects=3))

    def refuse(address):
        if address.endswith("/again"):
            raise MediaFetchError(f"{address} is not allowed")

    with pytest.raises(MediaFetchError, match="/again is not allowed"):
        load_image(url, limits=MediaLimits(check_url=refuse))


def test_url_that_does_not_answer(serve):
    gate = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self):
            gate.wait(10)

    url = serve(quiet(Silent))
    with pytest.raises(MediaFetchError, match="did not answer within"):
        load_image(url, limits=MediaLimits(timeout=0.2))
    gate.set()
    with pytest.raises(MediaFetchError, match="could not be read"):
        load_image("http://127.0.0.1:9/x.png")


# PDF


def pdf(sizes):
    pages = [
        Image.new("RGB", size, colour) for size, colour in zip(sizes, ("red", "blue", "green"), strict=False)
    ]
    return encoded(pages[0], "PDF", save_all=True, append_images=pages[1:])


def test_pdf_pages():
    pytest.importorskip("pypdfium2")
    data = pdf([(72, 144), (144, 72)])
    pages = load_pdf_pages(data, dpi=144)
    assert [page.size for page in pages] == [(144, 288), (288, 144)]
    assert np.asarray(pages[1])[50, 50, 2] > 250
    assert [page.size for page in load_pdf_pages(data, [1], dpi=72)] == [(144, 72)]
    with pytest.raises(InputError, match="there is no page 2"):
        load_pdf_pages(data, [2])
    with pytest.raises(MediaTooLargeError):
        load_pdf_pages(data, dpi=144, limits=MediaLimits(image_pixels=100))
    with pytest.raises(MediaDecodeError, match="not a PDF"):
        load_pdf_pages(b"no pdf at all")
    with pytest.raises(InputError, match="dpi"):
        load_pdf_pages(data, dpi=0)


def test_real_pictures(shared_data):
    for path in sorted((shared_data / "images").iterdir()):
        image = load_image(path)
        assert image.mode == "RGB"
        assert min(image.size) > 100
