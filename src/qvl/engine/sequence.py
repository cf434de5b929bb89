"""One request on its way through the engine: everything that belongs to it, and to it alone.

Plain bookkeeping without torch, so that the scheduler can be read and tested without tensors. The fields
``kv``, ``sampler`` and ``vision`` belong to the runner and the sampler; nothing here looks inside them.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from qvl.engine.lookup import PromptLookup
from qvl.types import FinishReason, Prompt, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["waiting", "running", "finished"]


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to see or to decide while a sequence grows. Every hook may be absent.

    Inside a hook ``sequence.output_ids`` holds the new tokens so far. Score tensors have shape (1, V),
    float32, V the vocabulary; a hook that changes them in place changes what follows. A hook that raises an
    Exception ends its own request, with reason "error".
    """

    # Changes the scores after the built-in penalties and before temperature, top-k and the like.
    process: Callable[[Sequence, Tensor], Tensor] | None = None
    # Asked after every new token with the scores it was drawn from: True ends the sequence ("stop"), and so
    # does a FinishReason, which is then the reason.
    stop: Callable[[Sequence, Tensor], bool | FinishReason] | None = None
    # Sees the raw logits and the processed scores of every new token (before the token is appended).
    record: Callable[[Sequence, Tensor, Tensor], None] | None = None
    # Gets the tokens that one engine step added, in order.
    on_tokens: Callable[[Sequence, SequenceOf[int]], None] | None = None
    # Gets (done, total) tokens of the prompt after every chunk of it.
    progress: Callable[[int, int], None] | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and the tokens that follow it.

    Tokens are counted from the first of the prompt. ``num_computed`` of them have keys and values;
    ``draft_ids`` are guesses behind the last token, checked in the next step. ``cached_tokens`` of the prompt
    came from another request's keys and values.
    """

    id: int
    prompt: Prompt
    params: SamplingParams
    hooks: Hooks = field(default_factory=Hooks)
    keep_kv: bool = False
    client: str = ""
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    # After it lost its keys: how many tokens, of prompt and answer, are computed again without drawing any.
    recompute: int = 0
    reserved: int = 0  # tokens that memory is set aside for; 0 where nobody counts
    token_bytes: int = 0  # of keys and values in all layers
    cached_tokens: int = 0
    started: bool = False  # whether it may run: not while it waits for another that computes the same
    pinned: bool = False  # whether it brought keys that nobody could compute again (their pictures are gone)
    shares: bool = False  # whether its beginning may come from others, and serve others
    status: Status = "waiting"
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    draft_ids: tuple[int, ...] = ()
    lookup: PromptLookup | None = None
    draft: Any = None  # what a draft model keeps of this sequence
    draft_probs: tuple[Any, ...] = ()  # what each draft was drawn from; () where the guesser does not draw
    guessed: int = 0  # drafts checked so far, and how many of them were right
    accepted: int = 0
    group: Any = None  # the beam search that this sequence is a beam of
    kv: Any = None
    sampler: Any = None
    beginning: Any = None  # its blocks of tokens and their keys; see `qvl.engine.prefixes`
    vision: dict[int, Any] = field(default_factory=dict)  # index of a medium -> its embeddings
    # Tokens of the prompt, from its positions: a prompt of embeddings may come without ids.
    prompt_length: int = field(init=False)

    width = 1  # sequences that one scheduled request can bring into a step

    def __post_init__(self) -> None:
        self.prompt_length = int(self.prompt.positions_3T.shape[1])

    @property
    def lanes(self) -> tuple[Sequence, ...]:
        """What the scheduler runs together: here, the sequence itself."""
        return (self,)

    @property
    def length(self) -> int:
        return self.prompt_length + len(self.output_ids)

    @property
    def prefill_end(self) -> int:
        """Tokens that must have keys before the next one is drawn, or before decoding goes on."""
        return max(self.prompt_length, self.recompute)

    @property
    def prefilling(self) -> bool:
        return self.num_computed < self.prefill_end

    @property
    def final_length(self) -> int:
        """The most tokens that it will ever have keys of: the last one of the answer needs none."""
        return self.prompt_length + self.params.max_new_tokens - 1

    @property
    def most_guesses(self) -> int:
        """Guesses that the next step may check: never at the last token, and none beyond its memory."""
        return min(self.room - 1, self.reserved - self.length) if self.reserved else self.room - 1

    @property
    def room(self) -> int:
        """New tokens that may still come."""
        return self.params.max_new_tokens - len(self.output_ids)

    def ids(self, start: int, count: int) -> list[int]:
        """``count`` tokens from ``start`` on: of the prompt, the output and the drafts."""
        inside = min(count, max(0, self.prompt_length - start))
        if not inside:
            start -= self.prompt_length
            tail = self.output_ids[start : start + count]
            return tail + list(self.draft_ids[: count - len(tail)])
        # Embeddings without ids: nothing is looked up.
        given = self.prompt.token_ids
        head = list(given[start : start + inside]) if given else [0] * inside
        return head + self.output_ids[: count - inside]

    def propose(self, limit: int) -> None:
        """Look up at most ``limit`` tokens to come."""
        self.draft_ids, self.draft_probs = (), ()
        if self.lookup is not None:
            most = self.params.prompt_lookup_num_tokens
            self.draft_ids = self.lookup.draft(min(limit if most is None else most, self.most_guesses, limit))

    def append(self, token: int) -> None:
        """Take one new token and see whether an end-of-sequence id or the length ends here."""
        self.output_ids.append(token)
        if self.lookup is not None:
            self.lookup.append(token)
        if token in self.params.eos_token_ids:
            self.finish("stop")
        elif self.room <= 0:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        self.status = "finished"
        self.finish_reason = reason

    def forget(self) -> None:
        """Let go of keys and values; all tokens so far are to be computed again."""
        self.kv, self.num_computed, self.reserved = None, 0, 0
        self.recompute = self.length - 1
        self.started = False
        self.draft_ids, self.draft_probs = (), ()
        self.status = "waiting"

    def fork(self, spare: Any = None) -> Sequence:
        """A twin with its own tokens, keys and values: from here on the two may differ.

        ``spare``: a cache that nobody needs any more and that holds the same prompt; the twin takes it over.
        """
        if spare is None:
            spare = self.kv.copy()
        else:
            spare.follow(self.kv, self.prompt_length)
        return replace(
            self,
            output_ids=list(self.output_ids),
            kv=spare,
            sampler=self.sampler.fork(),
            vision={},
        )
