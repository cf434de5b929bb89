"""One evaluation from rows to a report: what is asked, answered greedily, scored and counted.

It puts the parts together, and knows neither files nor terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from time import perf_counter
from typing import Any

from qvl.engine.engine import Engine
from qvl.engine.settings import EngineSettings
from qvl.errors import InputError, InputTypeError, QvlError, UnknownNameError
from qvl.evaluate.asking import Asker, Said
from qvl.evaluate.metrics import Answer
from qvl.evaluate.preparing import Preparer, shared_sources
from qvl.evaluate.questions import Asking, Question, question_of
from qvl.evaluate.report import Prediction, Report
from qvl.types import SamplingParams

MiB, GiB = 2**20, 2**30


@dataclass(frozen=True)
class Settings:
    """How answers are made. They are greedy: always the likeliest token.

    ``max_new_tokens``: of an answer. ``max_sequences``: questions that are answered at the same time.
    ``repetition_penalty``: 1 for none; what the checkpoint's generation_config.json says is not read, as
    published figures come from plain greedy answers. ``kv_bytes``: of keys and values, ``media_bytes``: of
    patches that wait. ``options``: for the processor (``fps``, ``max_pixels`` ...).
    """

    max_new_tokens: int = 128
    max_sequences: int = 64
    repetition_penalty: float = 1.0
    kv_bytes: int = 4 * GiB
    media_bytes: int = 2 * GiB
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_sequences", "kv_bytes", "media_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")


@dataclass(frozen=True)
class Unasked:
    """A row that cannot be asked, and why."""

    name: str
    error: Exception
    task: str = ""
    metric: str = ""


def evaluate(
    model: Any,
    processor: Any,
    rows: Iterable[Any],
    *,
    metric: str | Mapping[str, Any] | None = None,
    metrics: Mapping[str, str | Mapping[str, Any]] | None = None,
    settings: Settings | None = None,
    limit: int | None = None,
    strict: bool = False,
    known: Mapping[str, Prediction] | None = None,
    setup: str = "",
    progress: Callable[[int, int], None] | None = None,
    on_answer: Callable[[Prediction], None] | None = None,
) -> Report:
    """Asks ``model`` every row and scores what it says.

    ``rows``: mappings (or rows of `qvl.processing.rows`) with ``messages`` in the documented chat format, and
    what is right as the last turn of the assistant or under ``expected``, ``answers``, ``answer`` or
    ``target``; beside them ``task``, ``metric`` and its settings (``tolerance`` ...), as `question_of` reads
    them. Media may be paths, URLs or objects in memory. Of rows without a length (a generator) only as many
    are drawn as are asked at the same time. ``metric``: of rows that name none, ``metrics``: the same by
    task. ``limit``: only so many rows.

    ``known``: rows that are answered already, by their ``id``, which depends on ``setup``, a text that says
    all else the answers depend on. ``progress``: called with (done, total), total 0 where it is not known;
    ``on_answer``: with every row as it is done, in the order of the answers.

    A row that cannot be asked (a broken picture) counts as wrong, with its ``error``; with ``strict`` it is
    raised. Raises UnknownNameError for an unknown metric.
    """
    settings = settings or Settings()
    asking = Asking(metric, metrics or {})
    given: list[Question | Unasked] | Iterator[Question | Unasked]
    given = islice(read_questions(rows, asking), limit)
    if isinstance(rows, Sized):
        given = list(given)
    return ask_questions(
        model,
        processor,
        given,
        settings=settings,
        strict=strict,
        known=known,
        setup=setup,
        progress=progress,
        on_answer=on_answer,
    )


def read_questions(rows: Iterable[Any], asking: Asking, source: str = "") -> Iterator[Question | Unasked]:
    """Every row as a question, or as what is wrong with it. ``source``: the file's name, for messages.

    A row that is a `Question` already, or an exception in a row's place, is taken as it is.
    """
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Question):
            yield row
            continue
        line = getattr(row, "line", number)
        name = f"{source}:{line}" if source else f"row {line}"
        if isinstance(row, Exception):
            yield Unasked(name, row, asking.task)
            continue
        try:
            yield question_of(row, name, asking)
        except (InputError, InputTypeError, UnknownNameError) as error:
            task = row.get("task") if isinstance(row, Mapping) else getattr(row, "extras", {}).get("task")
            yield Unasked(name, error, str(task or asking.task))


def ask_questions(
    model: Any,
    processor: Any,
    questions: Iterable[Question | Unasked],
    *,
    settings: Settings,
    strict: bool = False,
    known: Mapping[str, Prediction] | None = None,
    setup: str = "",
    total: int = 0,
    progress: Callable[[int, int], None] | None = None,
    on_answer: Callable[[Prediction], None] | None = None,
) -> Report:
    """As `evaluate`, of questions that are read already. ``total``: of questions without a length, if known.

    Questions of a list that are about the same picture share what is computed of it.
    """
    run = _Run(processor, settings, strict, known or {}, setup, progress, on_answer)
    whole: Sequence[Question | Unasked] = questions if isinstance(questions, Sequence) else ()
    run.total = len(whole) or total
    run.eos_ids = tuple(model.generation_config.eos_token_ids)
    shared = shared_sources(question for question in whole if isinstance(question, Question))
    prepare = Preparer(processor, model.config, dict(settings.options), shared)
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        eos_token_ids=run.eos_ids,
        prompt_lookup_num_tokens=None,
    )
    engine = Engine(model, _engine_settings(settings, bool(shared)))
    asker = Asker(engine, prepare, params, settings.max_sequences, settings.media_bytes)
    started = perf_counter()
    for said in asker.ask(run.left(questions)):
        run.take(said)
    return Report(tuple(run.done[i] for i in sorted(run.done)), perf_counter() - started)


def _engine_settings(settings: Settings, shared: bool) -> EngineSettings:
    """``shared``: where pictures come again, what was computed of them is kept for the next question."""
    return EngineSettings(
        max_sequences=settings.max_sequences,
        kv_bytes=settings.kv_bytes,
        keep_prefixes=shared,
        vision_bytes=256 * MiB if shared else 0,
    )


class _Run:
    """The books of one evaluation: which rows there are, and what became of them."""

    def __init__(
        self,
        processor: Any,
        settings: Settings,
        strict: bool,
        known: Mapping[str, Prediction],
        setup: str,
        progress: Callable[[int, int], None] | None,
        on_answer: Callable[[Prediction], None] | None,
    ) -> None:
        self.tokenizer, self.strict, self.known = processor.tokenizer, strict, known
        self.eos_ids: tuple[int, ...] = ()
        said = (settings.max_new_tokens, settings.repetition_penalty, settings.options)
        self.setup = f"{setup} {said}"  # how many are asked at the same time changes no answer
        self.progress, self.on_answer = progress, on_answer
        self.total = 0
        self.done: dict[int, Prediction] = {}
        self._places: dict[Question, int] = {}

    def left(self, questions: Iterable[Question | Unasked]) -> Iterator[Question]:
        """The questions that are to be asked; the others are noted as they come by."""
        for place, question in enumerate(questions):
            if isinstance(question, Unasked):
                if self.strict:
                    raise _at(question.name, question.error)
                self._note(place, _unasked(question))
            elif (known := self.known.get(identity(question, self.setup))) is not None:
                self._note(place, known, new=False)
            else:
                self._places[question] = place
                yield question

    def take(self, said: Said) -> None:
        question = said.question
        place = self._places.pop(question)
        try:
            if said.error is not None:
                raise said.error
            prediction = self._scored(said)
        except QvlError as error:
            if self.strict:
                raise _at(question.name, error) from error
            told = Unasked(question.name, error, question.task, question.scoring.name)
            prediction = _unasked(told, question.references, identity(question, self.setup))
        self._note(place, prediction)

    def _scored(self, said: Said) -> Prediction:
        question = said.question
        ended = said.token_ids[-1:] and said.token_ids[-1] in self.eos_ids
        ids = said.token_ids[:-1] if ended else said.token_ids
        text, raw = (self.tokenizer.decode(list(ids), skip_special_tokens=skip) for skip in (True, False))
        picture = None if said.prepared is None else said.prepared.picture
        score = question.scoring.score(Answer(text.strip(), raw, picture), question.references)
        return Prediction(
            row=question.name,
            id=identity(question, self.setup),
            task=question.task,
            metric=question.scoring.name,
            answer=text.strip(),
            references=question.references,
            score=score.value,
            details=score.details,
            tokens=len(said.token_ids),
            seconds=round(said.seconds, 4),
            finish=said.finish,
            key=question.key,
        )

    def _note(self, place: int, prediction: Prediction, new: bool = True) -> None:
        self.done[place] = prediction
        if new and self.on_answer is not None:
            self.on_answer(prediction)
        if self.progress is not None:
            self.progress(len(self.done), self.total)


def identity(question: Question, setup: str) -> str:
    """The same for the same row asked under the same settings."""
    told = f"{question.name}\n{question.digest}\n{setup}"
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _unasked(row: Unasked, references: Sequence[Any] = (), id: str = "") -> Prediction:
    return Prediction(
        row.name,
        id=id,
        task=row.task,
        metric=row.metric,
        references=references,
        finish="error",
        error=f"{type(row.error).__name__}: {getattr(row.error, 'reason', row.error)}",
    )


def _at(name: str, error: Exception) -> Exception:
    """The error with its row named, of the same kind where that kind is made of a message alone."""
    try:
        return type(error)(f"{name}: {error}")
    except TypeError:
        return error
