"""``qvl chat``: a conversation in the terminal, with pictures and videos brought in on the way.

``Conversation`` holds what was said, with its keys and values, and knows no terminal; ``chat`` reads lines.
"""

from __future__ import annotations

import os
import re
import shlex
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
    check_text,
    generate,
    generation_settings,
    load_assistant,
    load_processor,
    tokenized,
)
from qvl.cli.failures import explained, ran_out_of_memory
from qvl.cli.options import (
    Attention,
    AttentionOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    Dtype,
    DtypeOption,
    FpsOption,
    KvDtypeOption,
    MaxNewTokensOption,
    MaxPixelsOption,
    MinPixelsOption,
    ModelOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    WeightsOption,
)
from qvl.cli.streams import say, write
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

COMMAND = re.compile(r"/[a-z]+")

FirstMedia = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MEDIA]...", help="Pictures and videos for the first question.", show_default=False
    ),
]


def chat(
    media: FirstMedia = None,
    model: ModelOption = None,
    draft: DraftOption = None,
    system: SystemOption = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    temperature: TemperatureOption = None,
    seed: SeedOption = None,
    dtype: DtypeOption = Dtype.auto,
    kv_dtype: KvDtypeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = Attention.sdpa,
    debug: DebugOption = False,
) -> None:
    """Talk with the model; /image PATH and /video PATH bring in new media, /help lists the rest."""
    from qvl.cli.media import open_media

    check_text("--system", system or "")
    settings = generation_settings(max_new_tokens, temperature, seed, kv_dtype)
    first = open_media(media or [])
    bits = None if weights is None else weights.value
    loading = Loading(model, dtype.value, device, attention.value, min_pixels, max_pixels, draft, bits)
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
    if not COMMAND.fullmatch(command):  # "/usr/bin is what?" is a question
        command = ""
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
        elif command:
            say(f"qvl: there is no command {command}; /help lists them")
        else:
            _answer(line, conversation)
    except Exception as error:
        if not isinstance(error, QvlError) and not ran_out_of_memory(error):
            raise
        say(f"qvl: {' '.join(explained(error)[0].split())}")
    return True


def _bring(kind: str, source: str, conversation: Conversation) -> None:
    from qvl.cli.media import open_media

    if not source:
        say(f"qvl: /{kind} needs a path or URL")
        return
    media = open_media([_as_typed(source)])
    conversation.bring(media)
    for medium in media:
        say(f"{medium.source}: {medium.kind}, goes with your next question")


def _as_typed(source: str) -> str:
    """What a shell would make of ``source``: terminals quote the paths of files dropped into them."""
    if os.path.exists(source) or os.name == "nt":
        return source
    try:
        words = shlex.split(source)
    except ValueError:  # a quotation mark without its partner
        return source
    return os.path.expanduser(words[0] if len(words) == 1 else source)


def _answer(question: str, conversation: Conversation) -> None:
    waiting = conversation.waiting
    try:
        stopped = conversation.ask(question, write).finish_reason == STOPPED_BY_USER
    except KeyboardInterrupt:  # while the prompt is still being read, or a second one
        stopped = True
    except Exception:
        if waiting:
            say("qvl: the media of this question are put away; bring them again to ask about them")
        raise
    print(flush=True)
    if stopped:
        say("(stopped)")


def _lines() -> Iterator[str]:
    """Lines that say something, until the input ends. Ctrl-C while typing only discards the line."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        _edit_lines()
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            print(flush=True)  # the shell's prompt begins a line of its own
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


def _edit_lines() -> None:
    """Gives input() line editing and history; several lines pasted at once are then one question."""
    try:
        import readline
    except ImportError:  # Windows: its console edits lines itself
        return
    readline.parse_and_bind("set enable-bracketed-paste on")


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
        self.messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        self._waiting, self._cache, self._cached_ids = [], None, []

    @property
    def waiting(self) -> bool:
        """Whether media wait for the next question."""
        return bool(self._waiting)

    def bring(self, media: list[MediaFile]) -> None:
        """These media go before the next question."""
        self._waiting += [medium.entry for medium in media]

    def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """One turn. Of a turn that fails nothing is kept; the next one starts from what was said before.

        Media that waited go with it, or every later question would fail as this one. Interrupted while the
        prompt is being read, it raises KeyboardInterrupt and they wait on.
        """
        try:
            return self._ask(question, show)
        except Exception:
            self._waiting = []
            raise

    def _ask(self, question: str, show: Callable[[str], None]) -> Answer:
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
    """Ctrl-C ends the answer after the token at work; before the first token, or a second time, as usual."""
    from qvl.generation.stopping import StoppingCriteria

    class Stopped(StoppingCriteria):
        wanted = begun = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> bool:
            self.begun = True
            return self.wanted

    stopped = Stopped()

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        if not stopped.begun:
            raise KeyboardInterrupt
        stopped.wanted = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
