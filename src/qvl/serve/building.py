"""From a loaded model to a `Backend`: the one place that knows every part of a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

import qvl
from qvl.engine.engine import Engine
from qvl.engine.settings import EngineSettings
from qvl.generation.config import GenerationConfig
from qvl.serve.counted import CountedMedia
from qvl.serve.engine_thread import EngineThread
from qvl.serve.jobs import Backend
from qvl.serve.media.service import MediaService
from qvl.serve.memory import kv_budget
from qvl.serve.metrics import Metrics
from qvl.serve.settings import ServeSettings


def build_backend(
    settings: ServeSettings,
    model: Any,
    processor: Any,
    folder: str,
    *,
    draft: Any = None,
    kv_dtype: torch.dtype | None = None,
) -> Backend:
    """A backend that is not started yet. ``folder``: of the checkpoint, for the media workers, which load its
    processor for themselves. ``draft``: a smaller model with the same tokenizer that guesses ahead. The
    backend's settings say how much memory there is for keys and values.

    Raises MissingDependencyError where the extra is not installed.
    """
    if settings.kv_memory is None:  # measured now, with the weights in memory
        settings = replace(settings, kv_memory=kv_budget(model.device))
    metrics = Metrics()
    metrics.describe(version=qvl.__version__, model=settings.name, torch=torch.__version__)
    engine = Engine(cast(Any, model), engine_settings(settings, kv_dtype), draft=draft)
    return Backend(
        settings=settings,
        processor=processor,
        config=model.config,
        generation=getattr(model, "generation_config", None) or GenerationConfig(),
        service=EngineThread(engine, processor.tokenizer, settings, metrics),
        media=CountedMedia(MediaService(settings, folder), metrics),
        metrics=metrics,
    )


def engine_settings(settings: ServeSettings, kv_dtype: torch.dtype | None = None) -> EngineSettings:
    """The engine's part of a server's settings."""
    return EngineSettings(
        max_sequences=settings.max_sequences,
        kv_dtype=kv_dtype,
        kv_bytes=settings.kv_memory,
        keep_prefixes=settings.prefix_reuse,
        vision_bytes=settings.vision_memory,
        client_share=settings.client_share,
        step_seconds=settings.step_seconds,
    )
