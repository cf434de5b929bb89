"""What a server must refuse: media, requests and addresses as somebody sends them who wants to do harm."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from support.media import data_uri, encoded, gif_of, photo, png_bomb

CHAT, COMPLETIONS, RESPONSES, TOKENIZE = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/tokenize",
)
JSON = {"Content-Type": "application/json"}
BOTH = ["rebind.test", "both.test", "inside.test", "metadata.test"]


@dataclass(frozen=True)
class Bad:
    """A request that must be answered with ``status`` (0: 400 or 403), and with ``says`` in its message.
    ``harmless``: it may also be answered, since what it asks for costs no more than others.
    """

    name: str
    content: bytes
    path: str = CHAT
    status: int = 400
    says: str = ""
    harmless: bool = False
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))


def text_body(text: Any = "Hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8} | more


def media_body(url: Any, kind: str = "image", **options: Any) -> dict[str, Any]:
    """A question about one picture or video."""
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url, **options}}
    return text_body([part, {"type": "text", "text": "What number is written here?"}])


def file_body(data: bytes, **more: Any) -> dict[str, Any]:
    return text_body([{"type": "file", "file": {"file_data": data_uri(data), **more}}])


def dumped(body: Any) -> bytes:
    return json.dumps(body).encode()


def malformed() -> Iterator[Bad]:
    """Bodies that are no request."""
    raw = {
        "half an object": b'{"messages": [',
        "null": b"null",
        "a list": b"[1, 2]",
        "no UTF-8": b"\xff\xfe\x00",
        "not a number": b'{"messages": NaN}',
        "infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        "lists without end": b"[" * 100_000,
        "objects without end": b'{"a":' * 100_000,
        "a number of 100,000 digits": b'{"messages": [], "seed": ' + b"9" * 100_000 + b"}",
        "half a surrogate pair": dumped(text_body("\ud800")),
        "NUL bytes": b"\0" * 100,
        "empty": b"",
    }
    for name, content in raw.items():
        yield Bad(name, content)
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    wrong: dict[str, Any] = {
        "messages of text": {"messages": "Hello"},
        "no messages": {"messages": []},
        "content of a number": text_body(5),
        "content nested deeply": text_body(deep),
        "a role nobody has": {"messages": [{"role": "robot", "content": "x"}]},
        "a part nobody knows": text_body([{"type": "hologram"}]),
        "a hot temperature": text_body(temperature="hot"),
        "a cold temperature": text_body(temperature=-1),
        "top_p of 2": text_body(top_p=2),
        "no tokens": text_body(max_tokens=0),
        "a billion tokens": text_body(max_tokens=10**9),
        "a thousand answers": text_body(n=1000),
        "a thousand stop texts": text_body(stop=["x"] * 1000),
        "a bias of words": text_body(logit_bias={"word": 1}),
        "a bias of a far token": text_body(logit_bias={"99999": 1}),
        "a slip of the pen": text_body(temprature=1),
        "a stream of yes": text_body(stream="yes"),
        "a tool without a name": text_body(tools=[{"type": "function", "function": {}}]),
        "a choice without tools": text_body(tool_choice="required"),
        "a thousand tools": text_body(
            tools=[{"type": "function", "function": {"name": f"t{i}"}} for i in range(1000)]
        ),
        "speech": text_body([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]),
        "1,100 messages": {"messages": [{"role": "user", "content": "x"}] * 1100},
        "a text beyond the context": text_body("Hello " * 40_000),
        "a text beyond the memory": text_body("Hello " * 2000),
        "a template of its own": text_body(chat_template="{{ 7 * 7 }}"),
        "a model of another server": text_body() | {"model": "gpt-4o"},
        "options for a stream without one": text_body(stream_options={"include_usage": True}),
    }
    for name, body in wrong.items():
        yield Bad(name, dumped(body), status=404 if "model" in name else 400)
    yield Bad("streamed nonsense", dumped(text_body(top_p=7, stream=True)))
    yield Bad("a token beyond the vocabulary", dumped({"prompt": [99_999]}), COMPLETIONS)
    yield Bad("a placeholder in a raw prompt", dumped({"prompt": "<|image_pad|>" * 9}), COMPLETIONS)
    yield Bad("a prompt and messages", dumped({**text_body(), "prompt": "x"}), TOKENIZE)
    yield Bad("an answer of before", dumped({"input": "x", "previous_response_id": "resp_1"}), RESPONSES)
    yield Bad("a file of before", dumped({"input": [{"role": "user", "content": [FILE_ID]}]}), RESPONSES)


FILE_ID = {"type": "input_image", "file_id": "file-1"}


def misdirected() -> Iterator[Bad]:
    """Requests that go to the wrong place, in the wrong way, or are too large."""
    form, text = {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "text/plain"}
    body = dumped(text_body())
    yield Bad("a form", b"messages=x", status=415, headers=form)
    yield Bad("plain text", body, status=415, headers=text)
    yield Bad("no content type", body, status=415, headers={})
    yield Bad("another server's name", body, status=421, headers={**JSON, "Host": "evil.test"})
    yield Bad("a path that is not there", body, "/v1/embeddings", status=404)
    yield Bad("a path out of the server", b"", "/../../etc/passwd", 404, method="GET")
    yield Bad("another method", b"", CHAT, 405, method="GET")
    yield Bad("a body too large", b"[" + b" " * (7 * 2**20) + b"]", status=413)


REGEX = "(x{1,9999}){1,9999}"
# What these describe is never written out: states are made as an answer comes to them.
LAZY = ("a pattern of a million letters", "a schema of a billion items")


def schemas() -> Iterator[Bad]:
    """Schemas and grammars that explode, or that nothing can meet."""
    wide: Any = {"type": "string"}
    for _ in range(12):
        wide = {"anyOf": [wide, {"type": "array", "items": wide}]}
    deep: Any = {"type": "string"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"x": deep}, "required": ["x"]}
    found: dict[str, Any] = {
        "a schema that doubles twelve times": wide,
        "a schema of 200 levels": deep,
        "a schema that nothing meets": {"type": "string", "minLength": 5, "maxLength": 1},
        "a schema of a billion items": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
        "a schema of products": {
            "allOf": [{"anyOf": [{"pattern": f"a{i}.*b{j}"} for j in range(20)]} for i in range(20)]
        },
        "a pattern of a million letters": {"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"},
        "a reference to nowhere": {"$ref": "#/$defs/nothing"},
        "a reference to the internet": {"$ref": "http://127.0.0.1:1/schema.json"},
    }
    for name, schema in found.items():
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        yield Bad(name, dumped(text_body(response_format=form)), harmless=name in LAZY)
    yield Bad("a regex that explodes", dumped(text_body(structured_outputs={"regex": REGEX})), harmless=True)
    yield Bad("a grammar that is none", dumped(text_body(structured_outputs={"grammar": "start: start"})))


def media() -> Iterator[Bad]:
    """Pictures, videos and files that are none, are broken, or are far larger than they look."""
    png, jpeg = encoded(photo()), encoded(photo(), "JPEG")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", png)
    pictures = {
        "a zip archive": archive.getvalue(),
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "a TIFF": encoded(photo(), "TIFF"),
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (w) file\n",
        "a page of HTML": b"<html><script>alert(1)</script></html>",
        "a PDF as a picture": b"%PDF-1.7\n",
        "an ICO": encoded(photo(16, 16), "ICO"),
        "a PNG cut off": png[: len(png) // 2],
        "a PNG's first bytes": png[:20],
        "a PNG with a wrong sum": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "a JPEG cut off": jpeg[:200],
        "a JPEG's first bytes": jpeg[:4],
        "a PNG of 10,000 x 10,000": png_bomb(10_000),
        "a PNG that says 2 billion": png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:],
        "a picture that is too slim": encoded(Image.new("RGB", (4000, 2))),
        "a WebP of nothing": b"RIFF\x04\0\0\0WEBP",
        "noise": bytes(range(256)) * 40,
    }
    for name, data in pictures.items():
        yield Bad(name, dumped(media_body(data_uri(data, "image/png"))))
    videos = {
        "a GIF of 100,000 frames": gif_of(100_000),
        "an MP4 of a header": struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2" + b"\0" * 500,
        "an MP4 with a box without end": struct.pack(">I", 24) + b"ftypisom\0\0\2\0isomiso2\0\0\0\1moov" * 9,
        "a playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "a concatenation": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "a HEIC": struct.pack(">I", 24) + b"ftypheic" + b"\0" * 100,
    }
    for name, data in videos.items():
        yield Bad(name, dumped(media_body(data_uri(data, "video/mp4"), "video")))
    yield Bad("a file that is no PDF", dumped(file_body(png)))
    yield Bad("a PDF of a line", dumped(file_body(b"%PDF-1.7\ntrailer<</Root 1 0 R>>\n%%EOF")))
    small = data_uri(encoded(photo(28, 28)))
    yield Bad("70 pictures", dumped(text_body(media_body(small)["messages"][0]["content"] * 70)))
    yield Bad("a picture of 3 MiB", dumped(media_body(data_uri(b"\x89PNG\r\n\x1a\n" + b"\0" * 3 * 2**20))))


def media_options() -> Iterator[Bad]:
    png = data_uri(encoded(photo()))
    options: dict[str, Any] = {
        "fewer than no pixels": {"min_pixels": -1},
        "pixels of text": {"max_pixels": "many"},
        "a height of a billion": {"resized_height": 10**9, "resized_width": 10**9},
        "more pixels than memory": {"min_pixels": 10**12, "max_pixels": 10**12},
    }
    for name, given in options.items():
        yield Bad(name, dumped(media_body(png, **given)), harmless="height" in name)  # max_pixels holds


def encodings() -> Iterator[Bad]:
    """Data URIs that are none."""
    uris = {
        "no comma": "data:image/png;base64",
        "not base64": "data:image/png;base64,!!!!",
        "base64 cut off": "data:image/png;base64,iVBORw0KGg",
        "base64 with spaces": "data:image/png;base64,iVBO Rw0K Ggo=",
        "percent letters": "data:image/png,%89PNG",
        "nothing in it": "data:image/png;base64,",
        "padding in the middle": "data:image/png;base64,iV==Rw0K",
        "letters of another alphabet": "data:image/png;base64,\u0456VBO",
    }
    for name, uri in uris.items():
        yield Bad(name, dumped(media_body(uri)))


def addresses(port: int, canary: int) -> Iterator[Bad]:
    """Addresses that must not be fetched from. ``port``: of the server that may be asked, on 127.0.0.1.
    ``canary``: of one that must never be."""
    inside = (
        f"http://127.0.0.1:{canary}/",
        f"http://localhost:{canary}/",
        f"http://[::1]:{canary}/",
        f"http://[::ffff:127.0.0.1]:{canary}/",
        f"http://2130706433:{canary}/",
        f"http://0x7f000001:{canary}/",
        f"http://0177.0.0.1:{canary}/",
        f"http://127.1:{canary}/",
        f"http://0.0.0.0:{canary}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.5:8080/",
        *(f"http://{name}:{canary}/" for name in BOTH),
        "http://no-such-host.invalid/",
    )
    for url in inside:
        yield Bad(url.replace(str(canary), "PORT"), dumped(media_body(url)))
    refused = (
        "http://127.0.0.1:22/",
        "http://user:secret@public.test/a.png",
        "ftp://public.test/a.png",
        "gopher://public.test/",
        "javascript:alert(1)",
        "http:///etc/passwd",
        "//public.test/a.png",
        "a.png",
        "",
    )
    for url in refused:
        yield Bad(url or "no address", dumped(media_body(url)), status=0)
    for path in ("/to-loopback", "/to-metadata", "/to-file", "/to-itself", "/to-rebind"):
        yield Bad(f"redirect {path[1:]}", dumped(media_body(f"http://127.0.0.1:{port}{path}")), status=0)
    for path in ("/missing", "/html", "/drips", "/compressed", "/lies"):
        yield Bad(f"a server that {path[1:]}", dumped(media_body(f"http://127.0.0.1:{port}{path}")))
    endless = media_body(f"http://127.0.0.1:{port}/endless.mp4", "video")
    yield Bad("an MP4 that never ends", dumped(endless), says="more than the 2,097,152 bytes")


def paths(root: str) -> Iterator[Bad]:
    """Files that are not there or not to be read, for a media root that `tricky_folder` made."""
    names = (
        "../secret.png",
        "link.png",
        "linked/secret.png",
        "%2e%2e/secret.png",
        "a%00b.png",
        "folder",
        "pipe",
        "missing.png",
    )
    for name in names:
        yield Bad(f"file {name}", dumped(media_body(f"file:{name}")))
        yield Bad(f"file /{name}", dumped(media_body(f"file://{root}/{name}")))
    for url in ("file:///etc/passwd", "file://evil.test/x.png", "file:", "file:////etc/passwd"):
        yield Bad(url, dumped(media_body(url)))
