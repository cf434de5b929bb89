"""Plain data that travels between the floors: no torch, no files, no behaviour beyond arithmetic.

Legend: T tokens, D width, P patches, C values in one patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Modality = Literal["image", "video"]
FinishReason = Literal["stop", "length", "abort", "repetition", "error"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The size of a picture or video in patches: ``t`` temporal steps of ``h`` x ``w`` patches."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        return self.t * self.h * self.w

    def tokens(self, merge_size: int) -> int:
        """Tokens after ``merge_size`` x ``merge_size`` neighbours become one."""
        return self.patches // merge_size**2


@dataclass(frozen=True, slots=True)
class Span:
    """Where one medium stands in a token list: ``token_ids[start : start + length]``."""

    kind: Modality
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, eq=False)
class Medium:
    """One picture or video, ready for the vision tower.

    ``patches_PC``: float tensor, P = grid.patches rows in merge order. ``seconds_per_grid``: seconds that
    one temporal step covers (videos; 0 for pictures). ``digest``: a cryptographic digest of all that the
    embeddings and the keys depend on (pixels, size, processing settings, sampled times). Media with the same
    one are encoded once for many requests; without one a medium is never reused.
    """

    kind: Modality
    grid: Grid
    patches_PC: torch.Tensor
    seconds_per_grid: float = 0.0
    digest: bytes | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """What an engine is asked to continue.

    ``token_ids``: T ids, every medium already expanded to its placeholder run. ``spans`` and ``media``
    go together, in order. ``positions_3T``: int64 tensor of rotary positions (time, height, width).
    ``rope_delta``: 1 + largest position - T; the token after the prompt stands at T + rope_delta.
    ``embeds_TD``: embeddings to use instead of looking ids up (then ids only serve the penalties).
    """

    token_ids: Sequence[int]
    positions_3T: torch.Tensor
    rope_delta: int = 0
    spans: tuple[Span, ...] = ()
    media: tuple[Medium, ...] = ()
    embeds_TD: torch.Tensor | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence is continued. The neutral value of every field does nothing.

    ``temperature`` 0 means greedy. ``seed`` None draws from torch's default generator, so that
    ``torch.manual_seed`` decides, as in transformers.

    The fields are those of transformers' ``GenerationConfig``; ``sequence_bias`` holds (token ids, bias)
    pairs and ``exponential_decay_length_penalty`` is (start, factor). ``presence_penalty`` and
    ``frequency_penalty`` are those of OpenAI's API.

    ``prompt_lookup_num_tokens`` None guesses where that measures faster. The three settings of assistants are
    read where the engine has a draft model: ``num_assistant_tokens`` None follows what is measured, 0 leaves
    the draft model out.
    """

    max_new_tokens: int = 20
    min_new_tokens: int = 0
    min_length: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    eos_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    prompt_lookup_num_tokens: int | None = 0
    max_matching_ngram_size: int = 2
    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: Literal["constant", "heuristic", "heuristic_transient"] = "constant"
    assistant_confidence_threshold: float = 0.4

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True)
class Delta:
    """What one engine step added to one sequence."""

    sequence_id: int
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    extras: dict[str, Any] = field(default_factory=dict)
