"""What the routes hand to the engine's thread and what comes back: plain data, no wire format, no torch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qvl.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

JobEnd = Literal["stop", "length", "abort", "repetition", "error", "timeout"]


class Constraint(Protocol):
    """What a grammar does to one answer: made anew for each of them, used from the engine's thread only."""

    def mask(self, scores_1V: Tensor) -> Tensor:
        """Scores (1, V) with what the grammar forbids at -inf; may write into them."""
        ...

    def accept(self, token: int) -> bool:
        """Take the token that was drawn; True where the grammar can only end here."""
        ...


@dataclass(frozen=True)
class Job:
    """One answer to be generated.

    ``stops``: texts that end the answer and are not part of it. ``logprobs``: None, or how many likeliest
    alternatives to report beside each token. ``client``: whose share of the engine it takes.
    ``deadline``: on `time.monotonic`'s clock. ``special``: whether special tokens show in the text.
    """

    prompt: Prompt
    params: SamplingParams
    client: str = ""
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    repetition_tokens: int = 0
    deadline: float | None = None
    special: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its text as bytes, its log probability, and the likeliest tokens at its place."""

    token_id: int
    data: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt, of those the ones that were not computed again, and of the answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer. The last one has an ``end``, and with "error" the ``error``.

    ``text``: whole characters only, and never the beginning of what may become a stop text.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    end: JobEnd | None = None
    usage: Usage = field(default_factory=Usage)
    stop: str | None = None  # the stop text that ended the answer
    error: Exception | None = None


class Service(Protocol):
    """The engine as the routes see it."""

    def submit(self, job: Job) -> AsyncIterator[Piece]:
        """The pieces of the answer. Leaving the iterator early cancels the job and frees its memory.

        Raises QueueFullError or DrainingError at once, and the engine's InputErrors (PromptTooLongError ...)
        at the first piece.
        """
        ...

    @property
    def alive(self) -> bool:
        """Whether answers can be expected; False calls for a new start of the server."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the server is about to stop: no new requests, those under way go on."""
        ...

    @property
    def jobs(self) -> int:
        """Answers that are under way or wait."""
        ...

    @property
    def capacity(self) -> int | None:
        """Tokens, of a prompt and its answer together, that there is memory for; None: no limit."""
        ...

    def start(self) -> None:
        """Begin to work; called when the application starts."""
        ...

    def drain(self) -> None:
        """Begin to stop: `draining` from here on."""
        ...

    def abort_all(self) -> None:
        """End every answer ("abort")."""
        ...

    async def close(self) -> None:
        """End every answer, and the work."""
        ...


@dataclass(frozen=True, eq=False)
class Backend:
    """All that routes need; ``app.state.backend`` of the application. ``media``: a `MediaService`;
    ``metrics``: a `Metrics`; ``requests``: the requests under way, as `RequestRecord`s."""

    settings: Any
    processor: Any
    config: Any
    generation: Any  # the checkpoint's GenerationConfig
    service: Service
    media: Any
    metrics: Any
    requests: set[Any] = field(default_factory=set)
