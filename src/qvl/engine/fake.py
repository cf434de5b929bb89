"""An engine that says what it was told to: for tests of whatever talks to an `Engine`.

No network and no tensors, so a test of a streamer runs in milliseconds. It keeps the engine's
promises about ids, deltas, lengths, end-of-sequence ids, abort and ``on_tokens``; hooks about scores are
refused, as there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any

from qvl.engine.sequence import Hooks, Sequence
from qvl.errors import GenerationError, UnsupportedError
from qvl.types import Delta, FinishReason, Prompt, SamplingParams


class FakeEngine:
    """``script``: the tokens of every answer, or a function from a prompt to them.

    Each step gives one token to every sequence under way; a sequence whose script is over ends with "stop".
    """

    def __init__(self, script: SequenceOf[int] | Callable[[Prompt], SequenceOf[int]]) -> None:
        self._script = script
        self._next_id = 0
        self._sequences: dict[int, Sequence] = {}
        self._tokens: dict[int, list[int]] = {}
        self._aborted: list[Delta] = []

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
    ) -> int:
        """As `Engine.add`; the caches are ignored."""
        hooks = hooks or Hooks()
        if hooks.process or hooks.stop or hooks.record:
            raise UnsupportedError("FakeEngine has no scores, so it takes only on_tokens and progress hooks.")
        if params.max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens must be at least 1, not {params.max_new_tokens}.")
        sequence = Sequence(self._next_id, prompt, params, hooks, keep_kv, status="running")
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
        self._aborted.append(self._close(self._sequences[sequence_id], (), "abort"))
        return True

    def run(self) -> Iterator[Delta]:
        while self.has_work:
            yield from self.step()

    def step(self) -> list[Delta]:
        deltas, self._aborted = self._aborted, []
        return deltas + [self._advance(sequence) for sequence in list(self._sequences.values())]

    def _advance(self, sequence: Sequence) -> Delta:
        script = self._tokens[sequence.id]
        done = len(sequence.output_ids)
        if not done and sequence.hooks.progress is not None:
            sequence.hooks.progress(sequence.prompt_length, sequence.prompt_length)
        new = tuple(script[done : done + 1])
        for token in new:
            sequence.append(token)
        if new and sequence.hooks.on_tokens is not None:
            sequence.hooks.on_tokens(sequence, new)
        if sequence.status != "finished" and done + 1 >= len(script):
            sequence.finish("stop")
        if sequence.status == "finished":
            return self._close(sequence, new, sequence.finish_reason)
        return Delta(sequence.id, new)

    def _close(self, sequence: Sequence, new: tuple[int, ...], reason: FinishReason | None) -> Delta:
        sequence.status, sequence.finish_reason = "finished", reason
        del self._sequences[sequence.id], self._tokens[sequence.id]
        return Delta(sequence.id, new, reason, {"sequence": sequence})
