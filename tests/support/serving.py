"""Servers for tests: one that says what it was told to, in milliseconds, and one with the bundled model."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from qvl.auto import AutoProcessor
from qvl.config import Qwen2_5_VLConfig
from qvl.engine.fake import FakeEngine
from qvl.engine.sequence import Sequence
from qvl.generation.config import GenerationConfig
from qvl.generation.inputs import ModelInputs
from qvl.generation.prompts import build_prompts
from qvl.processing.positions import multimodal_positions
from qvl.serve.counted import CountedMedia
from qvl.serve.engine_thread import EngineThread
from qvl.serve.jobs import Backend, Job, Piece
from qvl.serve.media.service import MediaService
from qvl.serve.metrics import Metrics
from qvl.serve.settings import Access, Limits, ServeSettings
from qvl.types import Prompt, SamplingParams

MODEL = "qvl/tiny"
VOCAB = 1152
Script = str | SequenceOf[int] | Callable[[Prompt], "str | SequenceOf[int]"]


@lru_cache(maxsize=1)
def bundled_processor() -> Any:
    """The processor of the bundled model; shared, so not to be changed."""
    return AutoProcessor.from_pretrained(MODEL)


@lru_cache(maxsize=1)
def bundled_config() -> Any:
    return Qwen2_5_VLConfig.from_pretrained(MODEL)


@lru_cache(maxsize=1)
def bundled_generation() -> Any:
    return GenerationConfig.from_pretrained(MODEL)


def text_prompt(text: str) -> Prompt:
    """A prompt of text alone, without a template."""
    ids = bundled_processor().tokenizer.encode(text)
    positions_3T, delta = multimodal_positions(len(ids), [], [], [], merge_size=2, tokens_per_second=2)
    return Prompt(tuple(ids), positions_3T, delta)


def chat_prompt(text: str, *pictures: Any) -> Prompt:
    """A question with pictures (PIL images) before it, as the bundled model expects it."""
    content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
    inputs = bundled_processor().apply_chat_template(
        [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    given = ModelInputs(**{name: inputs[name] for name in ModelInputs.names() if name in inputs})
    (prompt,) = build_prompts(given, inputs["attention_mask"].bool(), bundled_config())
    media = [replace(m, digest=hashlib.sha256(m.patches_PC.numpy()).digest()) for m in prompt.media]
    return replace(prompt, media=tuple(media))


def job(text: str = "Hello", *, max_new_tokens: int = 64, **fields: Any) -> Job:
    """A greedy job that ends where the model says so. ``prompt`` stands in for ``text``."""
    params = fields.pop("params", None) or SamplingParams(
        max_new_tokens=max_new_tokens, eos_token_ids=bundled_generation().eos_token_ids
    )
    return Job(fields.pop("prompt", None) or text_prompt(text), params, **fields)


class ScriptedEngine(FakeEngine):
    """A `FakeEngine` whose answers may be text, with handles for tests.

    ``pause``: seconds that a step takes. ``per_step``: tokens of each sequence in a step, as a speculating
    engine has several. ``added``: every prompt with its parameters and client, in order. ``before_step``:
    called before each step; may raise, as a step may.
    """

    def __init__(self, script: Script, *, pause: float = 0.0, per_step: int = 1) -> None:
        super().__init__(lambda prompt: self._ids(script, prompt), VOCAB)
        self.added: list[tuple[Prompt, SamplingParams, str]] = []
        self.before_step: Callable[[], None] = lambda: None
        self.pause = pause
        self.per_step = per_step

    @staticmethod
    def _ids(script: Script, prompt: Prompt) -> list[int]:
        said = script(prompt) if callable(script) else script
        if not isinstance(said, str):
            return list(said)
        tokenizer = bundled_processor().tokenizer
        return [*tokenizer.encode(said), tokenizer.eos_token_id]

    def add(self, prompt: Prompt, params: SamplingParams, *, client: str = "", **more: Any) -> int:
        number = super().add(prompt, params, client=client, **more)
        self.added.append((prompt, params, client))
        return number

    def step(self) -> list[Any]:
        self.before_step()
        if self.pause:
            time.sleep(self.pause)
        return super().step()

    def _extend(self, sequence: Sequence) -> None:
        for _ in range(self.per_step):
            if sequence.status != "finished":
                super()._extend(sequence)


def serve_settings(**settings: Any) -> ServeSettings:
    """Settings by name, of `Limits` and `Access` too: ``serve_settings(waiting=2, api_keys=("k",))``."""
    limits = {k: settings.pop(k) for k in list(settings) if k in Limits.__dataclass_fields__}
    access = {k: settings.pop(k) for k in list(settings) if k in Access.__dataclass_fields__}
    return ServeSettings(limits=Limits(**limits), access=Access(**access), **settings)


def fake_backend(
    script: Script = "Hello there", *, engine: Any = None, media: bool = True, **settings: Any
) -> Backend:
    """A backend whose every answer is ``script``: a text, token ids, or a function from the prompt to them.

    ``settings``: those of `ServeSettings`, `Limits` and `Access`, by name. Real: engine thread, tokenizer,
    metrics and (``media``) the media service, whose workers start with the first medium.
    ``backend.service._engine`` is the `ScriptedEngine`.
    """
    made = serve_settings(**settings)
    metrics = Metrics()
    processor = bundled_processor()
    service = EngineThread(engine or ScriptedEngine(script), processor.tokenizer, made, metrics)
    return Backend(
        settings=made,
        processor=processor,
        config=bundled_config(),
        generation=bundled_generation(),
        service=service,
        media=_media(made, metrics) if media else None,
        metrics=metrics,
    )


class LazyMedia:
    """A media service whose workers start with the first medium: most tests have none."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self._started = False
        self._starting = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    @property
    def alive(self) -> bool:
        return not self._started or self._service.alive

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        await self._service.close()

    async def prepare(self, requests: Any, **more: Any) -> Any:
        await self._begin()
        return await self._service.prepare(requests, **more)

    async def measure(self, requests: Any) -> Any:
        await self._begin()
        return await self._service.measure(requests)

    async def _begin(self) -> None:
        async with self._starting:
            if not self._started:
                await self._service.start()
                self._started = True


def _media(settings: ServeSettings, metrics: Metrics) -> Any:
    return CountedMedia(LazyMedia(MediaService(settings, MODEL)), metrics)


@contextmanager
def client(backend: Backend, *routers: Any, **headers: str) -> Iterator[Any]:
    """An httpx client of the application in this process, started and ended with the block.

    ``routers``: routes of the test's own. Answers arrive whole: for a client that leaves in the middle of a
    stream take `live_server`.
    """
    from starlette.testclient import TestClient

    with TestClient(_app(backend, routers), base_url="http://localhost", headers=headers) as testing:
        yield testing


def _app(backend: Backend, routers: SequenceOf[Any]) -> Any:
    from qvl.serve.app import create_app

    app = create_app(backend)
    for router in routers:
        app.include_router(router)
    return app


@dataclass(frozen=True)
class LiveServer:
    """A server that listens: ``url`` without a slash at its end."""

    url: str
    backend: Backend


@contextmanager
def live_server(backend: Backend | None = None, *routers: Any, **settings: Any) -> Iterator[LiveServer]:
    """A server on a free port of this machine, in a thread: by default with the bundled model, real engine
    and media service, and ``settings`` as in `fake_backend`.
    """
    import uvicorn

    backend = backend or model_backend(**settings)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        _app(backend, routers), log_config=None, access_log=False, timeout_graceful_shutdown=5, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        _wait_until(lambda: server.started or not thread.is_alive(), 30.0)
        assert server.started, "the server did not start"
        yield LiveServer(f"http://127.0.0.1:{listener.getsockname()[1]}", backend)
    finally:
        server.should_exit = True
        thread.join(20.0)
        listener.close()


def model_backend(**settings: Any) -> Backend:
    """The bundled model behind the real engine and the real media service."""
    from qvl.serve.building import build_backend

    made = serve_settings(**settings)
    return build_backend(made, bundled_model(), bundled_processor(), MODEL)


@lru_cache(maxsize=1)
def bundled_model() -> Any:
    from qvl.auto import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(MODEL, dtype="float32")


async def collect(service: Any, one: Job) -> list[Piece]:
    """All pieces of a job."""
    return [piece async for piece in service.submit(one)]


def run_jobs(backend: Backend, *jobs: Job) -> list[list[Piece]]:
    """The pieces of jobs that run side by side, on a service started for them and closed after them."""

    async def together() -> list[list[Piece]]:
        backend.service.start()
        try:
            return list(await asyncio.gather(*(collect(backend.service, one) for one in jobs)))
        finally:
            await backend.service.close()

    return asyncio.run(together())


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
