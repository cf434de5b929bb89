"""Frames out of video files: equal to a full decode, without decoding the whole."""

import base64
import io
import tempfile
import threading
from fractions import Fraction
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import av
import numpy as np
import pytest

from qvl.errors import InputError, MediaDecodeError, MediaFetchError, MediaNotFoundError, MediaTooLargeError
from qvl.processing.media.opening import MediaLimits, open_video


def write_video(
    path, *, frames=40, size=(64, 48), rate=25, codec="mpeg4", gop=12, pts=None, rotation=0, **options
):
    """Frames of slowly changing colours with a block whose place tells the frame's number."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={str(k): str(v) for k, v in options.items()})
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        if pts is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            picture = np.zeros((height, width, 3), np.uint8)
            picture[..., 0] = number * 3 % 256
            picture[:, : number % width] = 200
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


CODECS = {
    "mpeg4 in mp4": ("a.mp4", {"codec": "mpeg4"}),
    "mpeg4 in avi": ("a.avi", {"codec": "mpeg4"}),
    "b frames in mp4": ("a.mp4", {"codec": "mpeg4", "bf": 2}),
    "b frames in avi": ("a.avi", {"codec": "mpeg4", "bf": 2}),
    "h264": ("a.mp4", {"codec": "libx264"}),
    "h264, open gop": (
        "a.mp4",
        {"codec": "libx264", "x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"},
    ),
    "h264, short gop": ("a.mp4", {"codec": "libx264", "gop": 2}),
    "mpeg2 in ts": ("a.ts", {"codec": "mpeg2video", "bf": 2}),
    "h264 in ts": ("a.ts", {"codec": "libx264"}),
    "vp9 in webm": ("a.webm", {"codec": "libvpx-vp9", "cpu-used": 8, "deadline": "realtime"}),
    "mjpeg in mkv": ("a.mkv", {"codec": "mjpeg"}),
    "gif": ("a.gif", {"codec": "gif"}),
}


@pytest.mark.parametrize("kind", CODECS)
def test_frames_equal_a_full_decode(tmp_path, kind):
    name, options = CODECS[kind]
    codec = options["codec"]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = tmp_path / name
    if codec == "gif":
        from PIL import Image

        pictures = [Image.new("RGB", (64, 48), (number * 6, 0, 255 - number * 6)) for number in range(40)]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    else:
        write_video(path, **options)
    wanted = decode_all(path)
    assert len(wanted) == 40
    with open_video(path) as video:
        assert (video.total_frames, video.width, video.height, video.rotation) == (40, 64, 48, 0)
        assert video.constant_rate
        for numbers in (
            [0],
            [39],
            [0, 39],
            [5, 6, 7, 30],
            [13, 13, 25],
            list(range(40)),
            [24],
            [3],
            [11, 12, 23, 24],
        ):
            for number, picture in zip(numbers, video.frames(numbers), strict=True):
                np.testing.assert_array_equal(picture, wanted[number], err_msg=f"frame {number} of {numbers}")


def test_metadata_and_sources(tmp_path):
    path = write_video(tmp_path / "a.mp4", rate=20)
    data = path.read_bytes()
    uri = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    with tempfile.TemporaryFile() as writable:
        writable.write(data)
        with open_video(writable) as video:
            assert video.total_frames == 40
    for source in (path, str(path), data, memoryview(data), io.BytesIO(data), path.as_uri(), uri):
        with open_video(source) as video:
            assert (video.total_frames, video.fps, video.duration) == (40, 20.0, 2.0)
            assert next(iter(video.frames([20])))[0, 0].tolist() is not None
            np.testing.assert_allclose(video.timestamps_T, np.arange(40) / 20)


def test_a_long_video_is_never_decoded_whole(tmp_path):
    path = write_video(tmp_path / "long.mp4", frames=3000, size=(32, 32), gop=30)
    wanted = [0, 375, 750, 1125, 1500, 1875, 2250, 2999]
    with open_video(path) as video:
        assert video.total_frames == 3000
        assert len(list(video.frames(wanted))) == 8
        assert video.decoded_frames <= 1 + len(wanted) * 30
    with open_video(path) as video:  # frames close together are not sought one by one
        list(video.frames(range(100)))
        assert video.decoded_frames <= 110


def test_url(tmp_path):
    write_video(tmp_path / "a.mp4")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = HTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with open_video(f"http://127.0.0.1:{server.server_port}/a.mp4") as video:
            wanted = decode_all(tmp_path / "a.mp4")
            np.testing.assert_array_equal(next(video.frames([30])), wanted[30])
        with pytest.raises(MediaFetchError, match="404"):
            open_video(f"http://127.0.0.1:{server.server_port}/no.mp4")
    finally:
        server.shutdown()
        server.server_close()


def test_two_frames_of_an_hour(tmp_path):
    """The hour is one clip's packets over and over, written without encoding them again."""
    clip = write_video(tmp_path / "clip.mp4", frames=250, size=(32, 32), gop=25)
    with av.open(str(clip)) as source, av.open(str(tmp_path / "hour.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in source.demux(video=0) if p.size
        ]
        for number in range(360):
            for data, pts, dts, duration, key in packets:
                packet = av.Packet(data)
                shift = number * 250 * duration
                packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
                packet.is_keyframe, packet.stream = key, stream
                packet.time_base = source.streams.video[0].time_base
                target.mux(packet)
    with open_video(tmp_path / "hour.mp4") as video:
        assert (video.total_frames, video.duration) == (90_000, 3600.0)
        found = [*video.frames([45_010, 89_999])]
        assert video.decoded_frames <= 1 + 2 * 25
    wanted = decode_all(clip)
    np.testing.assert_array_equal(found[0], wanted[45_010 % 250])
    np.testing.assert_array_equal(found[1], wanted[249])


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_display_rotation(tmp_path, rotation):
    path = write_video(tmp_path / "a.mp4", frames=3, rotation=rotation)
    stored = decode_all(path)[1]
    with open_video(path) as video:
        picture = next(iter(video.frames([1])))
        assert picture.shape[:2] == (video.height, video.width)
        assert (video.width, video.height) == ((64, 48) if rotation == 180 else (48, 64))
        assert video.rotation == rotation % 360
        np.testing.assert_array_equal(picture, np.rot90(stored, rotation // 90 % 4))


def test_variable_rate(tmp_path):
    pts = [0, 40, 80, 1000, 1040, 1500, 3000, 3040]
    path = write_video(tmp_path / "a.mkv", frames=8, pts=pts)
    with open_video(path) as video:
        assert not video.constant_rate
        np.testing.assert_allclose(video.timestamps_T, np.array(pts) / 1000, atol=1e-3)
        assert video.fps == pytest.approx(8 / video.duration)
        assert 3.04 < video.duration < 4
        wanted = decode_all(path)
        np.testing.assert_array_equal(next(iter(video.frames([6]))), wanted[6])


def test_frame_numbers_are_checked(tmp_path):
    with open_video(write_video(tmp_path / "a.mp4")) as video:
        for numbers in ([40], [-1], [5, 4]):
            with pytest.raises(InputError, match="numbered 0 to 39"):
                list(video.frames(numbers))


# Bad input


def test_missing(tmp_path):
    with pytest.raises(MediaNotFoundError):
        open_video(tmp_path / "no.mp4")


@pytest.mark.parametrize("data", [b"", b"not a video", b"\0" * 5000, b"\0\0\0\x20ftypisom" + b"\7" * 400])
def test_no_video(tmp_path, data):
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    with pytest.raises(MediaDecodeError, match=r"a\.mp4"):
        open_video(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.mkv", "not a video that can be decoded"), ("a.mp4", "no video stream"), ("a.avi", "has no frames")],
)
def test_zero_frames(tmp_path, name, said):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(MediaDecodeError, match=said):
        open_video(path)


def test_sound_only(tmp_path):
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(MediaDecodeError, match="no video stream"):
        open_video(path)


def test_truncated(tmp_path):
    path = write_video(tmp_path / "a.mp4", movflags="faststart")
    with av.open(str(path), "r", options={}) as container:
        assert container.streams.video[0].frames == 40
    data = path.read_bytes()
    for length in (len(data) // 2, len(data) // 4, 100):
        path.write_bytes(data[:length])
        with pytest.raises(MediaDecodeError):
            open_video(path)


def test_garbage_in_the_middle(tmp_path):
    path = write_video(
        tmp_path / "a.mp4", codec="mjpeg" if "libx264" not in av.codecs_available else "libx264"
    )
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = b"\x5a" * 3000
    with pytest.raises(MediaDecodeError), open_video(bytes(data)) as video:
        list(video.frames(range(40)))


DAMAGED = {
    "mpeg2 in ts": ("a.ts", "mpeg2video"),
    "mpeg4 in mkv": ("a.mkv", "mpeg4"),
    "h264 in mkv": ("a.mkv", "libx264"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_inside_frames_is_not_painted_over(tmp_path, kind):
    """Decoders invent what is missing, and only mark the frame."""
    name, codec = DAMAGED[kind]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = write_video(tmp_path / name, codec=codec, size=(128, 96))
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    position, size = packets[12]
    data[position + int(size * 0.7)] ^= 0xA5  # one byte: no decoder gives up over that
    with pytest.raises(MediaDecodeError), open_video(bytes(data)) as video:
        list(video.frames(range(video.total_frames)))


def test_a_stream_without_a_decoder(tmp_path):
    data = write_video(tmp_path / "a.avi", codec="mpeg4").read_bytes()
    assert b"FMP4" in data
    with pytest.raises(MediaDecodeError, match="codec"):
        open_video(data.replace(b"FMP4", b"QQQQ"))


def test_limits(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(MediaTooLargeError, match="64 x 48 = 3,072 pixels"):
        open_video(path, limits=MediaLimits(video_pixels=3000))
    with pytest.raises(MediaTooLargeError, match="more than 30 frames"):
        open_video(path, limits=MediaLimits(video_frames=30))
    with open_video(path, limits=MediaLimits(sampled_frames=4)) as video, pytest.raises(MediaTooLargeError):
        list(video.frames(range(5)))


def test_a_playlist_opens_no_other_file(tmp_path):
    write_video(tmp_path / "a.ts", codec="mpeg2video")
    lists = {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{ts}\n#EXT-X-ENDLIST\n",
        "a.ffconcat": "ffconcat version 1.0\nfile '{ts}'\n",
    }
    for name, text in lists.items():
        path = tmp_path / name
        path.write_text(text.format(ts=tmp_path / "a.ts"))
        with pytest.raises(MediaDecodeError):
            open_video(path)


def test_real_videos(shared_data):
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        path = shared_data / "videos" / name
        wanted = decode_all(path)
        with open_video(path) as video:
            assert video.total_frames == len(wanted)
            numbers = [0, 1, len(wanted) // 3, len(wanted) // 2, len(wanted) - 1]
            for number, picture in zip(numbers, video.frames(numbers), strict=True):
                np.testing.assert_array_equal(picture, wanted[number])
