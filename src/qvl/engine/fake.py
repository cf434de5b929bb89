"""An engine that says what it was told to: for tests of whatever talks to an `Engine`.

No network, so a test of a streamer or of a server runs in milliseconds. It keeps the engine's promises about
ids, deltas, lengths, ends, errors, abort and hooks. The scores that hooks see are made up: the scripted token
is the likeliest, all others are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any

from qvl.engine.sequence import Hooks, Sequence
from qvl.engine.settings import Counters, EngineStats
from qvl.errors import GenerationError
from qvl.types import Delta, FinishReason, Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

LIKELIEST = 10.0  # the score of the scripted token; others have 0

Script = SequenceOf[int | Exception]


class FakeEngine:
    """``script``: the tokens of every answer, or a function from a prompt to them. An exception in it ends
    the answer there, with reason "error"; a function that raises makes `add` raise.

    Each step gives one token to every sequence under way; a sequence whose script is over ends with "stop".
    A ``process`` hook that puts another token above the scripted one gets that other token.

    ``vocab_size``: V of the scores that hooks see; None: up to the largest id of the script and its prompt.
    """

    def __init__(self, script: Script | Callable[[Prompt], Script], vocab_size: int | None = None) -> None:
        self._script = script
        self._vocab_size = vocab_size
        self._next_id = 0
        self._sequences: dict[int, Sequence] = {}
        self._tokens: dict[int, list[int | Exception]] = {}
        self._aborted: list[Delta] = []
        self._to_abort: list[int] = []
        self._stepping = False
        self._count = Counters()

    @property
    def capacity(self) -> int | None:
        return None

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._aborted)

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        kv: Any = None,
        hooks: Hooks | None = None,
        keep_kv: bool = False,
        client: str = "",
    ) -> int:
        """As `Engine.add`; the caches are ignored, and everybody runs at once."""
        if params.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, not {params.max_new_tokens}.")
        sequence = Sequence(
            self._next_id, prompt, params, hooks or Hooks(), keep_kv, client, status="running"
        )
        script = self._script(prompt) if callable(self._script) else self._script
        self._tokens[sequence.id] = list(script)
        self._sequences[sequence.id] = sequence
        self._next_id += 1
        return sequence.id

    def sequence(self, sequence_id: int) -> Sequence:
        return self._sequences[sequence_id]

    def abort(self, sequence_id: int) -> bool:
        if sequence_id not in self._sequences:
            return False
        if self._stepping:
            self._to_abort.append(sequence_id)
        else:
            self._aborted.append(self._close(self._sequences[sequence_id], (), "abort"))
        return True

    def run(self) -> Iterator[Delta]:
        while self.has_work:
            yield from self.step()

    def step(self) -> list[Delta]:
        deltas, self._aborted = self._aborted, []
        self._stepping = True
        self._count.steps += bool(self._sequences)
        try:
            return deltas + [self._advance(sequence) for sequence in list(self._sequences.values())]
        finally:
            self._stepping = False
            while self._to_abort:
                self.abort(self._to_abort.pop(0))

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._sequences), **vars(self._count))

    def _advance(self, sequence: Sequence) -> Delta:
        before = len(sequence.output_ids)
        try:
            self._extend(sequence)
        except Exception as error:
            sequence.error = error
            new = tuple(sequence.output_ids[before:])
            return self._close(sequence, new, "error")
        new = tuple(sequence.output_ids[before:])
        if sequence.status == "finished":
            return self._close(sequence, new, sequence.finish_reason)
        return Delta(sequence.id, new)

    def _extend(self, sequence: Sequence) -> None:
        script, done, hooks = self._tokens[sequence.id], len(sequence.output_ids), sequence.hooks
        if not done:
            self._count.prompt_tokens += sequence.prompt_length
            if hooks.progress is not None:
                hooks.progress(sequence.prompt_length, sequence.prompt_length)
        for token in script[done : done + 1]:
            if isinstance(token, Exception):
                raise token
            self._say(sequence, token)
        if sequence.status != "finished" and done + 1 >= len(script):
            sequence.finish("stop")
        if script and hooks.on_tokens is not None:
            hooks.on_tokens(sequence, sequence.output_ids[done:])

    def _say(self, sequence: Sequence, token: int) -> None:
        hooks = sequence.hooks
        if not (hooks.process or hooks.record or hooks.stop):
            sequence.append(token)
        else:
            logits_1V = self._scores(sequence, token)
            scores_1V = logits_1V
            if hooks.process is not None:
                scores_1V = hooks.process(sequence, logits_1V.clone())
                token = int(scores_1V.argmax())
            if hooks.record is not None:
                hooks.record(sequence, logits_1V, scores_1V)
            sequence.append(token)
            why = hooks.stop(sequence, scores_1V) if hooks.stop is not None else False
            if why and sequence.status != "finished":
                sequence.finish(why if isinstance(why, str) else "stop")
        self._count.output_tokens += 1

    def _scores(self, sequence: Sequence, token: int) -> Tensor:
        import torch  # only where hooks want scores

        said = [t for t in self._tokens[sequence.id] if isinstance(t, int)]
        size = self._vocab_size or 1 + max((*said, *sequence.prompt.token_ids))
        scores_1V = torch.zeros(1, size)
        scores_1V[0, token] = LIKELIEST
        return scores_1V

    def _close(self, sequence: Sequence, new: tuple[int, ...], reason: FinishReason | None) -> Delta:
        sequence.status, sequence.finish_reason = "finished", reason
        del self._sequences[sequence.id], self._tokens[sequence.id]
        self._count.finished += 1
        self._count.failed += reason == "error"
        extras: dict[str, object] = {"sequence": sequence}
        if reason == "error":
            extras["error"] = sequence.error
        return Delta(sequence.id, new, reason, extras)
