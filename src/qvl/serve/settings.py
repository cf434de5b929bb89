"""Every setting of a server, with its default: what `qvl serve` has an option for, and nothing else.

Sizes are bytes unless a name says tokens, pixels or frames; times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MEBI, GIBI = 2**20, 2**30


@dataclass(frozen=True)
class Limits:
    """What one request may cost. All of it is checked before anything is decoded."""

    body: int = 64 * MEBI  # of a whole request
    messages: int = 1024
    media: int = 64  # pictures, videos and pages in one request
    medium: int = 32 * MEBI  # of one file, however it arrives
    image_pixels: int = 50_000_000  # width x height as the file declares them
    video_pixels: int = 4096 * 4096  # of one frame
    video_frames: int = 100_000  # that a file holds
    sampled_frames: int = 768
    pdf_pages: int = 32
    prompt_tokens: int | None = None  # with the answer; None: what the model was made for
    output_tokens: int = 16_384
    choices: int = 16  # `n`
    stops: int = 16
    top_logprobs: int = 20
    schema_bytes: int = 65_536
    schema_depth: int = 32
    tools: int = 128
    request_seconds: float = 600.0  # from its arrival to its last token
    fetch_seconds: float = 20.0  # for one download
    decode_seconds: float = 60.0  # for one medium, in the worker
    decode_memory: int = 4 * GIBI  # of one worker, above what it needs to start
    redirects: int = 3
    waiting: int = 256  # requests in the queue, beyond which new ones get 429
    waiting_memory: int = 4 * GIBI  # media of all requests under way, and as much for their bodies; then 429
    body_seconds: float = 60.0  # for a request's body to arrive


@dataclass(frozen=True)
class Access:
    """Who may ask, and from where."""

    api_keys: tuple[str, ...] = ()  # empty: everybody
    allowed_origins: tuple[str, ...] = ()  # CORS; empty: closed
    allowed_hosts: tuple[str, ...] = ()  # names in the Host header beyond loopback and the bound address
    fetch_hosts: tuple[str, ...] = ()  # hosts that media may come from though their addresses are private
    fetch: bool = True  # whether http(s) media are fetched at all
    media_root: str | None = None  # the folder that file: URLs may name files in


@dataclass(frozen=True)
class ServeSettings:
    """All settings of one server."""

    model: str = "qvl/tiny"
    served_name: str | None = None  # what `/v1/models` says; None: ``model``
    host: str = "127.0.0.1"
    port: int = 8000
    max_sequences: int = 32
    step_seconds: float = 0.5  # of a step that others wait for: chunks of prompts are sized to it
    kv_memory: int | None = None  # None: half of the memory that is free after loading
    vision_memory: int = 512 * MEBI  # embeddings of pictures that were encoded
    prefix_reuse: bool = True
    client_share: float = 0.5  # of the running sequences, while others wait
    max_tokens: int = 1024  # of an answer, where a request does not say
    repetition_tokens: int = 512  # length of a loop that ends an answer; 0: never
    media_workers: int = 2  # one slow video then holds nobody's picture up
    drain_seconds: float = 30.0  # that requests have to finish after the first SIGTERM
    log_requests: bool = True
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.served_name or self.model
