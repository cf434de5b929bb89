"""transformers behind HTTP, in two ways, each on a checkpoint of Qwen2.5-VL in fp32.

    python -m benchmarks.peers.serving_transformers serve --model FOLDER --port N
    python -m benchmarks.peers.serving_transformers batched --model FOLDER --port N

``serve`` is transformers' own command with its defaults: `generate` on a thread for each request.
``batched`` is what a careful user would write around `generate`: requests that arrive together, or that have
waited for the batch before them, are padded into one batch, and every row is streamed. Both take a
``generation_config`` (JSON) in a request to ``/v1/chat/completions``, as ``transformers serve`` does.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import queue
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

UNAVAILABLE = 69
TOGETHER = 0.02  # seconds within which requests arrive together
MOST = 32  # rows of a batch: as many as qvl serve runs by default
NEEDED = {"transformers": "test", "fastapi": "serve", "uvicorn": "serve", "openai": "test"}


def processor_of(folder: str) -> Any:
    """transformers' processor. Where torchvision is missing, which only videos need, put together without."""
    import transformers

    if find_spec("torchvision"):
        return transformers.AutoProcessor.from_pretrained(folder)
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    made: Any = transformers.Qwen2_5_VLProcessor.__new__(transformers.Qwen2_5_VLProcessor)
    tokenizer = transformers.Qwen2TokenizerFast.from_pretrained(folder)
    made.image_processor = Qwen2VLImageProcessor.from_pretrained(folder)
    made.tokenizer, made.video_processor = tokenizer, None
    made.chat_template = (Path(folder) / "chat_template.jinja").read_text(encoding="utf-8")
    made.image_token, made.video_token = "<|image_pad|>", "<|video_pad|>"
    made.image_token_id = tokenizer.convert_tokens_to_ids(made.image_token)
    made.video_token_id = tokenizer.convert_tokens_to_ids(made.video_token)
    return made


def serve(folder: str, port: int) -> None:
    """transformers' own server; it loads the model when it is first asked."""
    from transformers.commands import serving

    class Processors:
        from_pretrained = staticmethod(lambda folder, **_: processor_of(folder))

    serving.AutoProcessor = Processors  # type: ignore[misc, assignment]
    arguments = serving.ServeArguments(
        force_model=folder, host="127.0.0.1", port=port, dtype="float32", device="cpu", model_timeout=3600
    )
    serving.ServeCommand(arguments).run()


@dataclass(eq=False)
class Request:
    """One conversation, and where its pieces go."""

    messages: list[dict[str, Any]]
    settings: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)

    def put(self, piece: str | None) -> None:
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Rows:
    """A streamer for `generate`: every row's new token goes to its own request."""

    def __init__(self, tokenizer: Any, requests: list[Request]) -> None:
        self.tokenizer = tokenizer
        self.requests = requests
        self.prompts = True

    def put(self, value: Any) -> None:
        if self.prompts:  # the first call brings them
            self.prompts = False
            return
        for request, token in zip(self.requests, value.tolist(), strict=True):
            request.put(self.tokenizer.decode([token], skip_special_tokens=True))

    def end(self) -> None:
        for request in self.requests:
            request.put(None)


class Batches:
    """A thread that answers whatever waits, batch after batch."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.processor = processor_of(folder)
        self.model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.waiting: queue.SimpleQueue[Request] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < MOST:
                try:
                    batch.append(self.waiting.get(timeout=TOGETHER))
                except queue.Empty:
                    break
            try:
                self._answer(batch)
            except Exception as error:
                print(f"a batch failed: {type(error).__name__}: {error}", flush=True)
                Rows(None, batch).end()

    def _answer(self, batch: list[Request]) -> None:
        import torch

        parsed = [conversation(request.messages) for request in batch]
        texts = [
            self.processor.apply_chat_template(messages, add_generation_prompt=True) for messages, _ in parsed
        ]
        pictures = [picture for _, found in parsed for picture in found]
        inputs = self.processor(
            text=texts, images=pictures or None, padding=True, padding_side="left", return_tensors="pt"
        )
        settings = batch[0].settings
        settings["max_new_tokens"] = max(request.settings["max_new_tokens"] for request in batch)
        with torch.inference_mode():
            self.model.generate(**inputs, **settings, streamer=Rows(self.processor.tokenizer, batch))


def conversation(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """OpenAI's messages as the template takes them, and their pictures."""
    from PIL import Image

    found, pictures = [], []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        content = []
        for part in parts:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                pictures.append(Image.open(io.BytesIO(data)))
                content.append({"type": "image"})
            else:
                content.append(part)
        found.append({"role": message["role"], "content": content})
    return found, pictures


def batched(folder: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app, batches = FastAPI(), Batches(folder)

    async def events(request: Request, most: int) -> AsyncIterator[str]:
        for _ in range(most):
            piece = await request.pieces.get()
            if piece is None:
                break
            yield event({"content": piece})
        yield event({}, "length")

    @app.post("/v1/chat/completions")
    async def complete(body: dict[str, Any]) -> StreamingResponse:
        settings = json.loads(body["generation_config"])
        request = Request(body["messages"], settings, asyncio.get_running_loop())
        batches.waiting.put(request)
        most = settings["max_new_tokens"]
        return StreamingResponse(events(request, most), media_type="text/event-stream")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def event(delta: dict[str, Any], finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["serve", "batched"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    for package, extra in NEEDED.items():
        if find_spec(package) is None:
            print(f"{package} is not installed: pip install 'qvl[{extra}]'", flush=True)
            sys.exit(UNAVAILABLE)
    (serve if options.kind == "serve" else batched)(options.model, options.port)


if __name__ == "__main__":
    main()
