"""Data URIs by the letter, formats by content, and local files that never lead out of their folder."""

import base64
import os
import struct
import threading
import zipfile

import pytest

from qvl.errors import InputError, InputTypeError, MediaDecodeError, MediaNotFoundError, MediaTooLargeError
from qvl.serve.errors import QueueFullError, RefusedError
from qvl.serve.media.datauri import PIECE_LETTERS, read_data_uri
from qvl.serve.media.files import MediaFolder
from qvl.serve.media.formats import recognised
from qvl.serve.media.held import Allowance, HeldFile
from qvl.serve.media.options import checked_options, plain_options
from qvl.serve.media.service import MediaRequest
from qvl.serve.settings import Access
from support.media import encoded, gif_of, pdf_of, photo, running_media
from support.video import write_video


def read(work, *arguments, most=10_000, allowance=10**9):
    """What ``work`` writes into a file."""
    with HeldFile(most, Allowance(allowance)) as file:
        work(*arguments, file)
        return os.pread(file.fileno, file.size, 0)


# Data URIs


@pytest.mark.parametrize(
    "size", [1, 2, 3, 4, 5, PIECE_LETTERS // 4 * 3 - 1, PIECE_LETTERS // 4 * 3, 2_000_000]
)
def test_data_uris_of_every_length(size):
    data = os.urandom(size)
    for start in ("data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,", "data:;base64,"):
        assert read(read_data_uri, start + base64.b64encode(data).decode(), most=size) == data


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,abcd",
        "data:image/png;base64,abc",
        "data:image/png;base64,abcd=",
        "data:image/png;base64,ab=d",
        "data:image/png;base64,a===",
        "data:image/png;base64,====",
        "data:image/png;base64,ab\ncdabc",
        "data:image/png;base64, abcabcd",
        "data:image/png;base64,ab-_",
        "data:image/png;base64,abc%3D",
        "data:image/png;base64,abcд",
        "data:image/png;base64,abcd\0\0\0\0",
        "data:" + "x" * 300 + ";base64,abcd",
        "data:image/png;base64," + "A" * (PIECE_LETTERS - 2) + "==AAAA",
    ],
    ids=range(17),
)
def test_data_uris_that_are_not_by_the_letter(uri):
    with pytest.raises(MediaDecodeError, match="data URI"):
        read(read_data_uri, uri, most=10**6)


def test_a_data_uri_is_measured_before_it_is_decoded():
    for size in (2998, 2999, 3000):
        text = "data:;base64," + base64.b64encode(bytes(size)).decode()
        assert len(read(read_data_uri, text, most=size)) == size
        with pytest.raises(MediaTooLargeError, match=f"more than the {size - 1:,} bytes"):
            read(read_data_uri, text, most=size - 1)
    with pytest.raises(MediaTooLargeError, match="bytes"):
        read(read_data_uri, "data:;base64," + "!" * 40_000)  # not base64, but that is not even looked at
    with pytest.raises(QueueFullError):
        read(read_data_uri, "data:;base64," + "A" * 4_000_000, most=10**7, allowance=3_000_000 - 1)


def test_what_is_held_is_given_back():
    allowance = Allowance(100)
    with HeldFile(1000, allowance) as file:
        file.write(bytes(60))
        with pytest.raises(QueueFullError), HeldFile(1000, allowance) as other:
            other.write(bytes(20))
            other.write(bytes(21))
        assert allowance.used == 60
        file.close()
    assert allowance.used == 0


def test_what_is_kept_for_convenience_goes_before_anything_is_refused():
    allowance = Allowance(100, lambda: allowance.give_back(60))
    allowance.take(60)
    allowance.take(90)
    assert allowance.used == 90
    assert plain_options({"fps": 1, "nframes": None}) == {"fps": 1}
    with pytest.raises(InputError, match="may have 4,096 characters, these have"):
        plain_options({"pages": list(range(2000))})
    with pytest.raises(InputTypeError, match="sensible size"):
        checked_options({"min_pixels": 1e300}, ("min_pixels",))


# Formats


VIDEOS = {
    "mp4": "mpeg4",
    "mov": "mpeg4",
    "mkv": "mpeg4",
    "avi": "mpeg4",
    "webm": "libvpx",
    "flv": "flv",
    "wmv": "wmv2",
    "ts": "mpeg2video",
    "m2ts": "mpeg2video",
    "mpg": "mpeg2video",
    "m1v": "mpeg1video",
}


def accepted(tmp_path):
    for suffix, codec in VIDEOS.items():
        path = write_video(tmp_path / f"a.{suffix}", frames=30, fps=25, codec=codec)
        yield suffix, "video", path.read_bytes()
    for name in ("JPEG", "PNG", "WEBP", "BMP"):
        yield name, "image", encoded(photo(), name)
    yield "GIF", "image", gif_of(1)
    yield "GIF", "video", gif_of(2)
    yield "PDF", "file", pdf_of([(100, 100)])


def test_formats_are_known_by_content_and_can_be_decoded(tmp_path):
    with running_media() as media:
        for name, kind, data in accepted(tmp_path):
            uri = (
                "data:text/html;base64," + base64.b64encode(data).decode()
            )  # what it claims counts for nothing
            (prepared,) = media.prepare(MediaRequest("here", kind, uri))
            assert prepared.costs[0].frames == (0 if kind != "video" else 2 if name == "GIF" else 4)


def zipped(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", encoded(photo()))
    return (tmp_path / "a.zip").read_bytes()


def test_other_formats_are_refused_and_told_what_is_accepted(tmp_path):
    others = {
        "zip": zipped(tmp_path),
        "svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
        "eps": encoded(photo(), "EPS"),
        "tiff": encoded(photo(), "TIFF"),
        "ppm": encoded(photo(), "PPM"),
        "ico": encoded(photo(), "ICO"),
        "icns": encoded(photo(128, 128), "ICNS"),
        "tga": encoded(photo(), "TGA"),
        "jpeg 2000": encoded(photo(), "JPEG2000"),
        "avif": b"\0\0\0\x1cftypavif" + bytes(100),
        "heic": b"\0\0\0\x1cftypheic" + bytes(100),
        "riff": b"RIFF" + struct.pack("<I", 100) + b"WAVE" + bytes(100),
        "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "html": b"<!doctype html>",
        "pickle": b"\x80\x04\x95",
        "wav": b"RIFF\0\0\0\0WAVEfmt ",
    }
    for name, data in others.items():
        for kind, words in (("image", "JPEG, PNG, WebP"), ("video", "MP4, MOV"), ("file", "PDF")):
            with pytest.raises(
                MediaDecodeError, match=f"must be {words}.*by its content; this is none of them"
            ):
                recognised(kind, data[:1024])
                pytest.fail(name)


def test_a_file_in_the_wrong_part_is_told_the_right_one():
    with pytest.raises(MediaDecodeError, match="this is MP4, which goes into a part for a video"):
        recognised("image", b"\0\0\0\x18ftypisom")
    with pytest.raises(MediaDecodeError, match="this is PNG, which goes into a part for a picture"):
        recognised("video", encoded(photo())[:1024])
    with pytest.raises(MediaDecodeError, match="this is PDF, which goes into a part for a file"):
        recognised("image", b"%PDF-1.7")
    with pytest.raises(MediaDecodeError, match="this is empty"):
        recognised("image", b"")


# Local files


@pytest.fixture
def root(tmp_path):
    """A folder of media with traps in it, and a secret beside it."""
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    (folder / "a b.png").write_bytes(b"picture")
    (folder / "inner" / "b.png").write_bytes(b"inner")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "c.png").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "inside").symlink_to("a b.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "round").symlink_to("inner")
    os.mkfifo(folder / "fifo")
    return folder


@pytest.fixture
def folder(root):
    opened = MediaFolder(str(root))
    yield opened
    opened.close()


def test_files_below_the_root(folder, root):
    for url in (
        f"file://{root}/a%20b.png",
        f"file://localhost{root}/a%20b.png",
        f"FILE://{root}//./a%20b.png",
        f"file:{root}/a%20b.png",
        "file:a%20b.png",
    ):
        assert read(folder.read, url) == b"picture"
    assert read(folder.read, f"file://{root}/inner/b.png") == b"inner"


LED_ASTRAY = """
    file://{root}/../secret file:../secret file:inner/../../secret file:inner/../a%20b.png file:%2e%2e/secret
    file:..%2fsecret file:link file:inside file:out/secret file:round/b.png file:fifo file:inner file:. file:
    file:/// file:///etc/passwd file:////etc/passwd file:/etc/passwd file:///dev/zero file:///dev/stdin
    file:///proc/self/environ file://{root} file://{root}2/c.png file://{root}/../media2/c.png
    file:nothing.png file:a%20b.png%00 file:a%20b.png?x file:a%20b.png#x file://other{root}/a%20b.png
    file:a%2520b.png file:a%20b.png/x file:a%20b.png/ file:~/x file:%ff file://[/x
"""


@pytest.mark.parametrize("url", LED_ASTRAY.split())
def test_everything_else_is_the_same_error(folder, root, url):
    with pytest.raises(MediaNotFoundError, match=r"^there is no such file that this server may read$"):
        read(folder.read, url.format(root=root))


def test_a_fifo_keeps_nobody_waiting(folder):
    done = threading.Event()

    def work():
        with pytest.raises(MediaNotFoundError):
            read(folder.read, "file:fifo")
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(5)


def test_devices_are_not_files(tmp_path):
    folder = MediaFolder("/dev")
    with pytest.raises(MediaNotFoundError):
        read(folder.read, "file:///dev/zero")
    folder.close()


def test_files_that_are_too_large_and_paths_that_are_too_deep(folder, root):
    with (root / "large").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(MediaTooLargeError, match="more than the 10,000 bytes"):
        read(folder.read, "file:large")
    for url in ("file:" + "inner/" * 1000, "file:" + "x" * 10_000, "file:" + "/" * 100_000 + "x"):
        with pytest.raises(MediaNotFoundError):
            read(folder.read, url)


def test_a_folder_that_is_swapped_for_a_link_while_it_is_open(folder, root, tmp_path):
    root.rename(tmp_path / "moved")
    root.symlink_to(tmp_path / "media2")
    assert read(folder.read, "file:inner/b.png") == b"inner"
    with pytest.raises(MediaNotFoundError):
        read(folder.read, f"file://{root}/c.png")


def test_a_root_that_is_a_link_or_nothing(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    folder = MediaFolder(str(tmp_path / "alias"))
    for name in (root, tmp_path / "alias"):
        assert read(folder.read, f"file://{name}/a%20b.png") == b"picture"
    folder.close()
    with pytest.raises(InputError, match=r"media root .* is not a folder"):
        MediaFolder(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="is not a folder"):
        MediaFolder(str(tmp_path / "secret"))
    with pytest.raises(RefusedError, match="reads no local files"):
        MediaFolder(None).read("file:///etc/passwd", None)


def test_a_picture_under_the_root_through_the_service(root):
    (root / "photo.png").write_bytes(encoded(photo()))
    with running_media(access=Access(media_root=str(root))) as media:
        (prepared,) = media.prepare(MediaRequest("messages[0]", "image", f"file://{root}/photo.png"))
        assert prepared.costs[0].width == 90
        with pytest.raises(
            MediaNotFoundError, match=r"^messages\[1\]: there is no such file that this server may"
        ):
            media.prepare(MediaRequest("messages[1]", "image", f"file://{root}/../secret"))
