"""What an operator's Prometheus reads from a server: one registry for each application.

Counters only grow; what the engine counts itself is read from it when somebody asks. Knows nothing of what a
request says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from qvl.errors import missing_dependency
from qvl.serve.jobs import JobEnd, Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Fields of the engine's statistics, and what Prometheus calls them.
GAUGES = {
    "running": ("qvl_running", "Sequences in the running batch."),
    "waiting": ("qvl_waiting", "Sequences that wait for room in the batch or for memory."),
    "kv_bytes": ("qvl_kv_bytes", "Bytes of keys and values, kept prefixes included."),
    "kept_bytes": ("qvl_kept_prefix_bytes", "Bytes of keys and values that are kept for later prompts."),
    "kept_prefixes": ("qvl_kept_prefixes", "Prompts whose keys and values are kept."),
    "vision_bytes": ("qvl_vision_cache_bytes", "Bytes of embeddings of pictures and videos that are kept."),
    "encoding": ("qvl_media_encoding", "Pictures and videos on their way through the vision tower."),
}
COUNTERS = {
    "steps": ("qvl_steps", "Steps of the engine."),
    "prompt_tokens": ("qvl_prompt_tokens_computed", "Prompt tokens that were computed."),
    "output_tokens": ("qvl_output_tokens", "Tokens drawn, of answers that went on or not."),
    "prefix_tokens": ("qvl_prefix_tokens", "Prompt tokens taken from kept prefixes."),
    "preempted": ("qvl_preemptions", "Times that a sequence gave its memory back to others for a while."),
    "recomputed_tokens": ("qvl_recomputed_tokens", "Tokens computed again after that."),
    "media_encoded": ("qvl_media_encoded", "Pictures and videos that went through the vision tower."),
    "media_reused": ("qvl_media_reused", "Pictures and videos whose embeddings were there already."),
    "failed": ("qvl_sequences_failed", "Sequences that ended with an error."),
}


class Metrics:
    """The metrics of one server; safe to use from several threads.

    Raises MissingDependencyError without prometheus-client.
    """

    def __init__(self) -> None:
        try:
            import prometheus_client
            from prometheus_client import Counter, Histogram
        except ImportError:
            raise missing_dependency("prometheus-client", "serve", "qvl serve") from None
        self._format = prometheus_client
        self.registry = here = prometheus_client.CollectorRegistry()
        self._requests = Counter("qvl_requests", "Requests.", ["route", "status"], registry=here)
        self._request_seconds = Histogram(
            "qvl_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            registry=here,
            buckets=_SECONDS,
        )
        self._answers = Counter("qvl_answers", "Generated answers, by their end.", ["end"], registry=here)
        self._tokens = Counter(
            "qvl_tokens", "Tokens: of prompts, of those cached, of answers.", ["kind"], registry=here
        )
        timed = {
            "queue": ("qvl_queue_seconds", "From a job's arrival to its place in the batch.", _SECONDS),
            "first_token": ("qvl_first_token_seconds", "From a job's arrival to its first token.", _SECONDS),
            "prompt": ("qvl_prompt_seconds", "From a place in the batch to the first token.", _SECONDS),
            "token": ("qvl_token_seconds", "Mean time of a token behind the first.", _STEP_SECONDS),
            "step": ("qvl_step_seconds", "One step of the engine.", _STEP_SECONDS),
        }
        self._times = {
            name: Histogram(title, text, registry=here, buckets=buckets)
            for name, (title, text, buckets) in timed.items()
        }
        self._media = Counter(
            "qvl_media_requested",
            "Media of requests, by what became of them.",
            ["kind", "outcome"],
            registry=here,
        )
        self._errors = Counter("qvl_engine_errors", "Steps of the engine that failed.", registry=here)

    def watch(self, stats: Callable[[], Any]) -> None:
        """Report the engine's own statistics from now on: read by ``stats`` at each scrape."""
        self.registry.register(_EngineStats(stats))

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def answer(self, end: JobEnd, usage: Usage) -> None:
        self._answers.labels(end).inc()
        self._tokens.labels("prompt").inc(usage.prompt_tokens)
        self._tokens.labels("cached").inc(usage.cached_tokens)
        self._tokens.labels("answer").inc(usage.completion_tokens)

    def time(self, what: str, seconds: float) -> None:
        """``what``: "queue", "first_token", "prompt", "token" or "step"."""
        self._times[what].observe(seconds)

    def medium(self, kind: str, outcome: str) -> None:
        """``outcome``: "ok", "refused" (the client's fault, or no room) or "failed"."""
        self._media.labels(kind, outcome).inc()

    def engine_error(self) -> None:
        self._errors.inc()

    def describe(self, **facts: str) -> None:
        """What is served, as the labels of ``qvl_info``."""
        from prometheus_client import Info

        Info("qvl", "What is served.", registry=self.registry).info(facts)

    def text(self) -> tuple[bytes, str]:
        """The exposition text and its content type."""
        return self._format.generate_latest(self.registry), self._format.CONTENT_TYPE_LATEST


class _EngineStats:
    """Reads the engine's statistics when Prometheus asks for them."""

    def __init__(self, stats: Callable[[], Any]) -> None:
        self._stats = stats

    def describe(self) -> list[Any]:  # so that registering does not read the engine
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._stats()
        for family, fields in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (title, text) in fields.items():
                value = getattr(stats, name, None)
                if value is not None:
                    yield family(title, text, value=float(value))
