"""``qvl chat``: a conversation in the terminal, with pictures and videos brought in on the way.

``Conversation`` holds what was said, with its keys and values, and knows no terminal; ``chat`` reads lines.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.common import (
    STOPPED_BY_USER,
    Answer,
    Assistant,
    Loading,
    generate,
    generation_settings,
    load_assistant,
    load_processor,
    say,
    tokenized,
)
from qvl.cli.options import (
    Attention,
    AttentionOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    FpsOption,
    MaxNewTokensOption,
    MaxPixelsOption,
    MinPixelsOption,
    ModelOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
)
from qvl.errors import QvlError

if TYPE_CHECKING:
    from qvl.cli.media import MediaFile

HELP = """\
/image PATH   bring a picture (or PDF pages) into the next question; a URL works too
/video PATH   bring a video into the next question
/reset        forget everything said so far
/help         this list
/quit         leave (so does Ctrl-D)
Ctrl-C stops an answer; the conversation goes on."""

FirstMedia = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MEDIA]...", help="Pictures and videos for the first question.", show_default=False
    ),
]


def chat(
    media: FirstMedia = None,
    model: ModelOption = None,
    system: SystemOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    dtype: DtypeOption = Dtype.auto,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    debug: DebugOption = False,
) -> None:
    """Talk with the model; /image PATH and /video PATH bring in new media, /help lists the rest."""
    from qvl.cli.media import open_media

    settings = generation_settings(max_new_tokens, temperature, seed)
    first = open_media(media or [])
    loading = Loading(model, dtype.value, device, attention.value, min_pixels, max_pixels)
    loading.announce()
    assistant = load_assistant(loading, load_processor(loading))
    conversation = Conversation(assistant, settings, system=system, fps=fps)
    conversation.bring(first)
    if sys.stdin.isatty():
        say("Ask something. /help lists the commands, /quit leaves.")
    for line in _lines():
        if not _obey(line, conversation):
            return


def _obey(line: str, conversation: Conversation) -> bool:
    """Does what one line says; False to leave. An error is told and the conversation goes on."""
    command, _, rest = line.partition(" ")
    try:
        if command == "/quit":
            return False
        if command == "/help":
            say(HELP)
        elif command == "/reset":
            conversation.reset()
            say("Everything said so far is forgotten.")
        elif command in ("/image", "/video"):
            _bring(command.removeprefix("/"), rest.strip(), conversation)
        elif command.startswith("/"):
            say(f"qvl: there is no command {command}; /help lists them")
        else:
            _answer(line, conversation)
    except QvlError as error:
        say(f"qvl: {' '.join(str(error).split())}")
    return True


def _bring(kind: str, source: str, conversation: Conversation) -> None:
    from qvl.cli.media import open_media

    if not source:
        say(f"qvl: /{kind} needs a path or URL")
        return
    media = open_media([source])
    conversation.bring(media)
    for medium in media:
        say(f"{medium.source}: {medium.kind}, goes with your next question")


def _answer(question: str, conversation: Conversation) -> None:
    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        stopped = conversation.ask(question, show).finish_reason == STOPPED_BY_USER
    except KeyboardInterrupt:  # a second Ctrl-C, while the prompt is still being read
        stopped = True
    print(flush=True)
    if stopped:
        say("(stopped)")


def _lines() -> Iterator[str]:
    """Lines that say something, until the input ends. Ctrl-C while typing only discards the line."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        import readline  # noqa: F401  # input() gets line editing and history by its import
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("\n(/quit or Ctrl-D leaves)")
            continue
        if not line and not interactive:
            return
        if line.strip():
            yield line.strip()


@dataclass
class Conversation:
    """What was said, and the keys and values computed for it, so that a turn only reads what is new."""

    assistant: Assistant
    settings: dict[str, Any]
    system: str | None = None
    fps: float | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    _waiting: list[dict[str, Any]] = field(default_factory=list)
    _cache: Any = None
    _cached_ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self._waiting, self._cache, self._cached_ids = [], None, []

    def bring(self, media: list[MediaFile]) -> None:
        """These media go before the next question."""
        self._waiting += [medium.entry for medium in media]

    def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """One turn. Of a turn that fails nothing is kept; the next one starts from what was said before."""
        content = [*self._waiting, {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        inputs = tokenized(self.assistant.processor, messages, self.fps)
        try:
            with _stop_on_interrupt() as stopped:
                answer = generate(
                    self.assistant,
                    inputs,
                    self.settings,
                    show,
                    past_key_values=self._reusable(inputs["input_ids"][0].tolist()),
                    stopping_criteria=[stopped],
                )
        except BaseException:
            self._cache, self._cached_ids = None, []
            raise
        if stopped.wanted:
            answer.finish_reason = STOPPED_BY_USER
        self._cache = answer.output.past_key_values
        self._cached_ids = answer.output.sequences[0].tolist()
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._waiting = []
        return answer

    def _reusable(self, prompt_ids: list[int]) -> Any:
        """The cache, cut back to what it shares with the new prompt: text may come back as other tokens."""
        if self._cache is None:
            return None
        pairs = list(zip(self._cached_ids, prompt_ids[:-1], strict=False))  # at least one token must be run
        same = next((i for i, (old, new) in enumerate(pairs) if old != new), len(pairs))
        self._cache.crop(min(same, self._cache.get_seq_length()))
        return self._cache


@contextmanager
def _stop_on_interrupt() -> Iterator[Any]:
    """The first Ctrl-C ends the answer after the token at work, the second one as usual."""
    from qvl.generation.stopping import StoppingCriteria

    class Stopped(StoppingCriteria):
        wanted = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> bool:
            return self.wanted

    stopped = Stopped()

    def stop(number: int, frame: Any) -> None:
        stopped.wanted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
