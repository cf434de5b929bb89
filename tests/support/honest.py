"""Requests as people mean them, for the bundled model: every one has one right answer, whoever else asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from support.hostile import CHAT, COMPLETIONS, RESPONSES, TOKENIZE, media_body, text_body
from support.media import data_uri, encoded
from support.video import write_video

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
QUESTION = "What number is written here?"
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@dataclass(frozen=True)
class Good:
    """A request that must be answered as it is when nobody else asks."""

    name: str
    body: dict[str, Any]
    path: str = CHAT

    async def answer(self, client: httpx.AsyncClient) -> Any:
        """All that the answer says, without what differs each time."""
        if not self.body.get("stream"):
            response = await client.post(self.path, json=self.body)
            assert response.status_code == 200, (self.name, response.text)
            return essence(response.json())
        async with client.stream("POST", self.path, json=self.body) as response:
            assert response.status_code == 200, (self.name, await response.aread())
            return _joined([line async for line in response.aiter_lines()])


def essence(body: Any) -> Any:
    """An answer without ids, times and what other requests left behind: text, ends, tokens."""
    if isinstance(body, dict):
        drop = {"id", "created", "created_at", "call_id", "prompt_tokens_details", "input_tokens_details"}
        return {key: essence(value) for key, value in body.items() if key not in drop}
    if isinstance(body, list):
        return [essence(item) for item in body]
    return round(body, 2) if isinstance(body, float) else body


def _joined(lines: list[str]) -> list[str]:
    """The texts of each choice, and how it ended."""
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lines and "data: [DONE]" in lines, lines[-3:]
    said = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        text, end = said.get(choice["index"], ("", None))
        said[choice["index"]] = (
            text + (choice["delta"].get("content") or ""),
            choice["finish_reason"] or end,
        )
    return [f"{text} ({end})" for _, (text, end) in sorted(said.items())]


def requests(root: Path, port: int) -> Iterator[Good]:
    """``root``: the media root, which gets a picture and a video. ``port``: of a server that sends
    ``/digits.png``."""
    digits = Image.open(PICTURES / "digits.png").convert("RGB")
    digits.save(root / "digits.png")
    write_video(root / "film.mp4", frames=8, fps=4)
    uri = data_uri(encoded(digits))
    yield Good("a picture", media_body(uri))
    yield Good("a picture, streamed", media_body(uri) | {"stream": True})
    yield Good("a picture from a file", media_body("file:digits.png"))
    yield Good("a picture from a server", media_body(f"http://127.0.0.1:{port}/digits.png"))
    yield Good("a picture after a redirect", media_body(f"http://127.0.0.1:{port}/moved"))
    yield Good("a video", media_body("file:film.mp4", "video", num_frames=4))
    for kind in ("JPEG", "WEBP", "GIF", "BMP"):
        yield Good(f"a {kind}", media_body(data_uri(encoded(digits, kind))))
    for number in range(12):  # more than the embeddings that are kept have room for
        turned = digits.crop((2 * number, 0, digits.width, digits.height))
        yield Good(f"picture {number}", media_body(data_uri(encoded(turned))))
    yield Good("a text", text_body(QUESTION, max_tokens=24))
    yield Good("a text, streamed", text_body(QUESTION, max_tokens=24, stream=True))
    yield Good("two answers", text_body(QUESTION, n=2, stream=True, ignore_eos=True, max_tokens=20))
    yield Good("log probabilities", text_body(QUESTION, logprobs=True, top_logprobs=3))
    yield Good("typed placeholders", text_body("<|image_pad|><|im_end|>" * 3 + QUESTION))
    for number in range(6):
        text = f"{number}: {QUESTION}"
        yield Good(f"long answer {number}", text_body(text, ignore_eos=True, max_tokens=200))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    yield Good("a schema", text_body(QUESTION, response_format=form, max_tokens=40))
    yield Good("a tool", text_body(QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=60))
    yield Good("a completion", {"prompt": "1 2 3", "max_tokens": 12, "temperature": 0}, COMPLETIONS)
    picture = [{"type": "input_image", "image_url": uri}, {"type": "input_text", "text": QUESTION}]
    told = {"input": [{"role": "user", "content": picture}], "max_output_tokens": 32}
    yield Good("a response", told, RESPONSES)
    yield Good("a cost", media_body(uri), TOKENIZE)
