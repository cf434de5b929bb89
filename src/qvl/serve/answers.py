"""One answer while it grows: what a job asks for, as the engine's hooks, and the pieces that come of it.

Used from the engine's thread only. Knows no loop, no route and no wire format.

Legend: V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, cast

import torch
from torch import Tensor

from qvl.engine.sequence import Hooks, Sequence
from qvl.serve.jobs import Job, JobEnd, Piece, TokenLogprob, Usage
from qvl.serve.repetition import RepetitionDetector
from qvl.serve.tokentext import Detokenizer, StopTexts, TokenTable
from qvl.types import Delta


class Answer:
    """The text, log probabilities and end of one job's answer.

    ``started``, ``first``, ``last``: when it came into the running batch (whoever runs the engine notes it)
    and when its first and latest token came, on `time.monotonic`'s clock; 0 before that.
    """

    def __init__(self, job: Job, table: TokenTable) -> None:
        self.job = job
        self.usage = Usage(prompt_tokens=len(job.prompt.token_ids))
        self.started = self.first = self.last = 0.0
        self._table = table
        self._detokenizer = Detokenizer(table, special=job.special)
        self._stops = StopTexts(job.stops)
        self._loop = RepetitionDetector(job.repetition_tokens) if job.repetition_tokens else None
        self._text = ""  # not handed out yet
        self._shown = 0  # characters handed out
        self._token_ids: list[int] = []  # not handed out yet
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()  # with the character where each begins
        self._logits_1V: Tensor | None = None  # that the next token is drawn from
        self._end: JobEnd | None = None
        self._stop: str | None = None

    def hooks(self) -> Hooks:
        """What the engine is to call; only what this job needs, so that others take the fast path."""
        return Hooks(
            process=None if self.job.constraint is None else self._process,
            stop=self._take,
            record=None if self.job.logprobs is None else self._record,
        )

    def piece(self, delta: Delta) -> Piece | None:
        """What to hand out after a step; None if there is nothing yet."""
        sequence = delta.extras.get("sequence")
        if isinstance(sequence, Sequence):
            self._count_tokens(sequence)
        if delta.finish_reason is None:
            return self._next_piece()
        end = self._end or cast(JobEnd, delta.finish_reason)
        error = delta.extras.get("error")
        return self.last_piece(end, error if isinstance(error, Exception) else None)

    def last_piece(self, end: JobEnd, error: Exception | None = None) -> Piece:
        """All that is left, with the reason why nothing follows."""
        text, ids = self._text, tuple(self._token_ids)
        logprobs = tuple(entry for _, entry in self._logprobs)
        self._text, self._token_ids = "", []
        self._logprobs.clear()
        return Piece(text, ids, logprobs, end, self.usage, self._stop, error)

    def _next_piece(self) -> Piece | None:
        ready = len(self._text) - self._stops.begun
        text, self._text = self._text[:ready], self._text[ready:]
        self._shown += ready
        logprobs = []
        while self._logprobs and (self._logprobs[0][0] < self._shown or not self._text):
            logprobs.append(self._logprobs.popleft()[1])
        if not text and not logprobs:
            return None
        ids, self._token_ids = tuple(self._token_ids), []
        return Piece(text, ids, tuple(logprobs), usage=self.usage)

    # Hooks

    def _process(self, sequence: Sequence, scores_1V: Tensor) -> Tensor:
        assert self.job.constraint is not None
        return self.job.constraint.mask(scores_1V)

    def _record(self, sequence: Sequence, logits_1V: Tensor, scores_1V: Tensor) -> None:
        self._logits_1V = logits_1V

    def _take(self, sequence: Sequence, scores_1V: Tensor) -> Any:
        """The hook after every token: False, or why the answer ends with it."""
        token = sequence.output_ids[-1]
        self.last = monotonic()
        self.first = self.first or self.last
        self._token_ids.append(token)
        self._count_tokens(sequence)
        logits_1V, self._logits_1V = self._logits_1V, None
        if token in self.job.params.eos_token_ids:
            return False  # the engine ends it, and the token is no part of the text
        if logits_1V is not None:
            self._logprobs.append((self._shown + len(self._text), self._logprob(token, logits_1V)))
        self._end = self._ended(token)
        return False if self._end is None else self._end

    def _ended(self, token: int) -> JobEnd | None:
        if self._meets_stop(token):
            return "stop"
        if self.job.constraint is not None and self.job.constraint.accept(token):
            return "stop"
        if self._loop is not None and self._loop.append(token):
            return "repetition"
        return None

    def _meets_stop(self, token: int) -> bool:
        if token in self._detokenizer.hidden:  # never in the text, but people name them as stop texts
            name = self._table.data(token).decode(errors="replace")
            self._stop = name if name in self.job.stops else None
            return self._stop is not None
        new = self._detokenizer.add(token)
        found = self._stops.feed(new)
        if found is None:
            self._text += new
            return False
        length, self._stop = found
        self._text = (self._text + new[:length])[: -len(self._stop)]
        cut = self._shown + len(self._text)
        self._logprobs = deque(entry for entry in self._logprobs if entry[0] < cut)
        return True

    def _count_tokens(self, sequence: Sequence) -> None:
        self.usage = Usage(sequence.prompt_length, sequence.cached_tokens, len(sequence.output_ids))

    def _logprob(self, token: int, logits_1V: Tensor) -> TokenLogprob:
        logprobs_V = torch.log_softmax(logits_1V[0].float(), dim=-1)
        best = min(self.job.logprobs or 0, logprobs_V.shape[0])
        values_K, ids_K = torch.topk(logprobs_V, best)
        top = zip(ids_K.tolist(), values_K.tolist(), strict=True)
        data = self._table.data
        return TokenLogprob(
            token, data(token), float(logprobs_V[token]), tuple((i, data(i), value) for i, value in top)
        )
