"""One step through the network: packs what the scheduler chose, and hands back rows of logits.

Owns the network and makes the tensors; decides nothing. A prompt in one piece or in chunks, alone or beside
others, goes through the same few lines.

Legend: T packed tokens of a step, D width, N rows that tokens are drawn from, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qvl.engine.attends import cached_attends
from qvl.engine.encoder import MediaEncoder
from qvl.engine.kv import SequenceKV
from qvl.engine.scheduler import Step, Work
from qvl.engine.sequence import Sequence
from qvl.engine.vision import check_media, forget_media, vision_rows
from qvl.errors import CacheError, NonFiniteError, PromptError, PromptTooLongError
from qvl.network.finite import non_finite_cause
from qvl.ops.attention import get_backend
from qvl.types import Prompt

if TYPE_CHECKING:
    from qvl.network.vlm import CausalLM

FIRST_ROOM = 256  # new tokens that a cache has room for from the start; more are made as they come


class Runner:
    """Runs steps on one network. Everything that lasts beyond a step is on the sequences, or in ``media``.

    ``kv_dtype``: what new caches keep keys and values in; None: as the network computes. ``vision_bytes``: of
    embeddings that are kept.
    """

    def __init__(self, network: CausalLM, kv_dtype: torch.dtype | None = None, vision_bytes: int = 0) -> None:
        self.network = network
        self.kv_dtype = kv_dtype
        self.decoder = network.model.language_model
        self.backend = get_backend(self.decoder.attention_backend)
        self.windows = self.decoder.windows
        self.media = MediaEncoder(network.model, vision_bytes)
        self.token_bytes = self._new_kv(0).token_bytes

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits are read. Offloaded weights are placed by whoever offloads them."""
        device = self.decoder.embed_tokens.weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def vocab_size(self) -> int:
        return self.decoder.config.vocab_size

    @property
    def can_guess(self) -> bool:
        """Whether several tokens of a sequence may be run at once without changing any of them.

        Not where the rotary frequencies follow the length: each token then has its own.
        """
        return not self.decoder.rotary.follows_length

    @property
    def can_share(self) -> bool:
        """Whether keys and values of one request may serve others: where each depends on nothing but what
        stands before it, and all lie on one device."""
        devices = {parameter.device for _, parameter in self.network.named_parameters()}
        return not self.decoder.rotary.follows_length and len(devices) == 1

    @property
    def guesses_cannot_show(self) -> bool:
        """Whether rows come out the same, but for float32's last bits, however many share a pass.

        In half precision they differ so much that a near-tie falls another way every few hundred tokens.
        """
        exact = torch.get_float32_matmul_precision() == "highest"
        exact = exact and self.kv_dtype in (None, torch.float32)
        return self.can_guess and exact and self.decoder.embed_tokens.weight.dtype == torch.float32

    def admit(self, sequence: Sequence, kv: SequenceKV | None) -> None:
        """Check a new sequence, and the cache it may bring, against the network.

        Raises PromptError, PromptTooLongError, PlaceholderMismatchError or CacheError.
        """
        self._check_prompt(sequence.prompt, sequence.prompt_length)
        if kv is not None:
            self._check_kv(kv, sequence.prompt_length, sequence.final_length)
            sequence.kv = kv
            sequence.num_computed = kv.length
            sequence.pinned = kv.length > 0
        sequence.token_bytes = self.token_bytes if kv is None else kv.token_bytes

    def prepare(self, sequence: Sequence) -> None:
        """Make the cache of a sequence that is about to run, or make it as large as memory is set aside."""
        if sequence.kv is None:
            first = min(sequence.final_length, sequence.prompt_length + FIRST_ROOM)
            sequence.kv = self._new_kv(sequence.reserved or first)
        elif sequence.kv.capacity < sequence.reserved:
            sequence.kv.resize(sequence.reserved)

    def run(self, step: Step) -> Tensor:
        """`rows` of a step whose sequences all have their caches; encodes what media they need.

        Raises NonFiniteError before any of the rows is used.
        """
        for error in self.media.encode(step).values():
            raise error
        logits_NV = self.rows(step)
        for error in self.broken(logits_NV).values():
            raise error
        return logits_NV

    def rows(self, step: Step) -> Tensor:
        """Advance every sequence of the step; logits (N, V), float32, N = the sum of ``work.samples``.

        Rows come in the order of ``step.work``. Caches and embeddings must be there.
        """
        rows_NV = self._forward(step)
        # Copied outside inference mode: hooks and callers get ordinary tensors that they may write into.
        return rows_NV.to(device=self.device, dtype=torch.float32, copy=True)

    def broken(self, logits_NV: Tensor) -> dict[int, NonFiniteError]:
        """An error for each row that is not finite."""
        if bool(torch.isfinite(logits_NV.sum())):
            return {}
        cause = non_finite_cause(self.network)
        bad = (~torch.isfinite(logits_NV).all(dim=-1)).nonzero().flatten().tolist()
        message = f"The text decoder output is not finite (NaN or infinity in the logits); {cause}."
        return {row: NonFiniteError(message) for row in bad}

    @torch.inference_mode()
    def _forward(self, step: Step) -> Tensor:
        work = step.work
        lengths = [w.count for w in work]
        kvs = [w.sequence.kv for w in work]
        samples = [w.samples for w in work]
        rows_N = None if samples == lengths else _sampled_rows(lengths, samples).to(self.device)
        hidden_ND = self.decoder.packed(
            self._embeddings(step),
            self._positions(step),
            cached_attends(self.backend, kvs, lengths, self.windows, None if rows_N is None else samples),
            lengths=tuple(lengths),
            extents=[_extent(w.sequence, w.start + w.count) for w in work],
            rows_N=rows_N,
        )
        for w in work:
            w.sequence.kv.advance(w.count)
            w.sequence.num_computed += w.count
            forget_media(w)
        return self.network.logits(hidden_ND)

    def _embeddings(self, step: Step) -> Tensor:
        ids = [token for w in step.work for token in w.sequence.ids(w.start, w.count)]
        vision = vision_rows(step, len(ids))
        ids_T = torch.tensor(ids, device=self.device)
        if vision is None:
            x_TD = self.network.model.embed(ids_T)
        else:
            vision_ND, mask_T = vision
            x_TD = self.network.model.embed(ids_T, vision_ND, mask_T.to(self.device))
        return self._with_given(x_TD, step, None if vision is None else vision[1])

    def _with_given(self, x_TD: Tensor, step: Step, vision_mask_T: Tensor | None) -> Tensor:
        """Where a prompt brings embeddings of its own, they stand in for those of its ids."""
        offset = sum(w.count for w in step.decodes)
        for w in step.chunks:
            given_TD = w.sequence.prompt.embeds_TD
            here = slice(offset, offset + w.count)
            offset += w.count
            if given_TD is None:
                continue
            here = slice(here.start, here.start + max(0, min(w.count, len(given_TD) - w.start)))
            rows_TD = given_TD[w.start : w.start + w.count].to(x_TD)
            if vision_mask_T is not None:
                keep_T1 = vision_mask_T[here, None].to(x_TD.device)
                rows_TD = torch.where(keep_T1, x_TD[here], rows_TD)
            x_TD[here] = rows_TD
        return x_TD

    def _positions(self, step: Step) -> Tensor:
        """(3, T). A decoded token stands at the same place on all three axes."""
        decoded = [w.start + i + w.sequence.prompt.rope_delta for w in step.decodes for i in range(w.count)]
        positions_3T = torch.tensor(decoded, dtype=torch.long).expand(3, -1)
        if step.chunks:
            pieces = [piece for w in step.chunks for piece in _positions(w)]
            positions_3T = torch.cat([positions_3T, *pieces], dim=1)
        return positions_3T.to(self.device)

    def _new_kv(self, capacity: int) -> SequenceKV:
        config = self.decoder.config
        return SequenceKV(
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            dtype=self.decoder.embed_tokens.weight.dtype,
            device=self.device,
            capacity=capacity,
            stored=self.kv_dtype,
        )

    def _check_prompt(self, prompt: Prompt, length: int) -> None:
        ids, given = prompt.token_ids, prompt.embeds_TD
        if not length:
            raise PromptError("The prompt is empty: give at least one token to continue.")
        if len(ids) != length and (given is None or len(ids)):
            raise PromptError(f"The prompt has {len(ids)} token ids, but positions for {length} tokens.")
        if given is not None and given.shape[0] != length:
            raise PromptError(
                f"The prompt has {given.shape[0]} embeddings, but positions for {length} tokens."
            )
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise PromptError(
                f"Token id {wrong} is not in the vocabulary of {self.vocab_size}: tokenizer and model do not "
                "belong together."
            )
        positions, most = length + prompt.rope_delta, self.decoder.config.most_positions
        if positions > most:
            raise PromptTooLongError(
                f"The prompt takes {positions} positions, but the model was made for {most} "
                "(max_position_embeddings); shorten the text, or use fewer or smaller pictures."
            )
        check_media(prompt, self.network.model.visual.spatial_merge_size)

    def _check_kv(self, kv: SequenceKV, prompt_length: int, needed: int) -> None:
        config = self.decoder.config
        ours = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        theirs = (kv.num_layers, kv.num_kv_heads, kv.head_dim)
        if theirs != ours:
            raise CacheError(
                f"The cache was made for another model: (layers, key/value heads, head width) are {theirs} "
                f"there and {ours} here."
            )
        if kv.length >= prompt_length:
            raise CacheError(
                f"The cache already holds {kv.length} tokens, but the prompt has only {prompt_length}: give "
                "the whole conversation so far and at least one token more."
            )
        if kv.max_capacity is not None and needed > kv.max_capacity:
            raise CacheError(
                f"The cache holds at most {kv.max_capacity} tokens, but prompt and answer may need {needed}; "
                "make the cache longer or max_new_tokens smaller."
            )


def _positions(work: Work) -> Iterator[Tensor]:
    """Of a piece of a prompt, and of what is computed again behind it."""
    sequence, end = work.sequence, work.start + work.count
    yield sequence.prompt.positions_3T[:, work.start : end].to("cpu")
    first = max(work.start, sequence.prompt_length)
    if first < end:
        delta = sequence.prompt.rope_delta
        yield torch.arange(first + delta, end + delta).expand(3, -1)


def _extent(sequence: Sequence, end: int) -> int:
    """Largest position + 1 that decides length-dependent frequencies: a prompt counts as a whole."""
    return max(end, sequence.prompt_length) + sequence.prompt.rope_delta


def _sampled_rows(lengths: SequenceOf[int], samples: SequenceOf[int]) -> Tensor:
    """Of packed pieces, the rows that tokens are drawn from: the last ``samples`` of each."""
    ends = accumulate(lengths)
    return torch.tensor(
        [row for end, count in zip(ends, samples, strict=True) for row in range(end - count, end)],
        dtype=torch.long,
    )
