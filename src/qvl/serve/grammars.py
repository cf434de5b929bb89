"""Answers that cannot but follow a JSON schema, a regular expression or a grammar: llguidance, with limits.

What a client sends is bounded before it is compiled (bytes, depth), while it is compiled and at every token
(llguidance's own limits), so that a schema can neither hold the engine up nor fill its memory.

Legend: V vocabulary.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qvl.errors import missing_dependency
from qvl.serve.errors import RequestError
from qvl.serve.settings import Limits

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
except ImportError:
    raise missing_dependency("llguidance", "serve", "qvl serve") from None

# Between the parts of a JSON text: a space, or a new line with its indentation. Small models, free to write
# any space, never stop.
WHITESPACE = r"(\x20|\x0A[\x20\x09]{0,24})"
# A lexer's states take some 2 kB each, and a step's work some 10 ms at most.
COMPILER_LIMITS = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
CODE = "invalid_grammar"
_PLACE = re.compile(r"(at \d+\(\d+\): )?(failed to compile JSON schema: )?")


class Grammars:
    """Compiles grammars for one tokenizer; safe to use from several threads.

    ``eos_token_ids``: allowed exactly where a grammar may end.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: tuple[int, ...], limits: Limits) -> None:
        self._source = tokenizer
        self._eos = list(eos_token_ids) or [tokenizer.eos_token_id]
        self._limits = limits
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: str, param: str | None = None) -> Grammar:
        """Takes milliseconds (half a second for the first one), so not for an event loop.

        ``grammar``: of this module's functions. Raises RequestError where it makes no sense, can never be
        met, or is more complex than the limits allow.
        """
        matcher = LLMatcher(self._vocabulary(), grammar, log_level=0, limits=COMPILER_LIMITS)
        _check(matcher, param)
        probe = matcher.deep_copy()
        allowed = probe.compute_logit_bias()  # the first mask shows what compiling put off
        _check(probe, param)
        if not any(allowed):
            raise RequestError("The grammar allows no answer at all.", param, CODE)
        return Grammar(matcher, param)

    def schema(self, schema: Any, *, strict: bool = True, param: str | None = None) -> dict[str, Any]:
        """A client's JSON schema as llguidance reads it. ``strict``: what it cannot check is an error,
        instead of being left out. Raises RequestError for one beyond the limits."""
        if isinstance(schema, str):
            self.bounded(schema, param)
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                raise RequestError("The schema is not valid JSON.", param, CODE) from None
        if not isinstance(schema, Mapping):
            raise RequestError("A JSON schema must be an object.", param, CODE)
        check_depth(schema, self._limits.schema_depth, param)
        self.bounded(json.dumps(schema), param)
        options = {"whitespace_pattern": WHITESPACE, "lenient": not strict}
        return {**schema, "x-guidance": options}

    def bounded(self, text: str, param: str | None = None) -> str:
        """``text``, if it is not longer than a schema may be."""
        if len(text.encode()) > self._limits.schema_bytes:
            raise RequestError(
                f"A schema or grammar may have {self._limits.schema_bytes:,} bytes here.", param, "too_large"
            )
        return text

    def token(self, tag: str) -> str:
        """``tag`` in Lark's form: as one token where the vocabulary has it, as the model was trained to write
        it, else as text."""
        number = self._source.added_tokens_encoder.get(tag)
        return literal(tag) if number is None else f"<[{number}]>"

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(self._source.backend_tokenizer.to_str(), eos_token=self._eos)
            return self._tokenizer


class Grammar:
    """A compiled grammar: any number of answers can be held to it."""

    def __init__(self, matcher: LLMatcher, param: str | None) -> None:
        self._matcher = matcher
        self._param = param

    def constraint(self) -> GrammarConstraint:
        """A `Constraint` for one answer, at its beginning."""
        return GrammarConstraint(self._matcher.deep_copy(), self._param)


class GrammarConstraint:
    """What a grammar does to one answer; a `Constraint`. Raises RequestError where the grammar turns out to
    be too complex on the way."""

    def __init__(self, matcher: LLMatcher, param: str | None = None) -> None:
        self._matcher = matcher
        self._param = param

    def mask(self, scores_1V: Tensor) -> Tensor:
        """``scores_1V`` with -inf for every token that the grammar forbids here; written into. A model may
        have more rows than its tokenizer has tokens: those are never allowed."""
        bits = self._matcher.compute_logit_bias()
        _check(self._matcher, self._param)
        allowed_V = torch.frombuffer(bytearray(bits), dtype=torch.uint8).to(scores_1V.device)
        scores_1V[:, len(allowed_V) :] = -torch.inf
        known = min(len(allowed_V), scores_1V.shape[1])
        scores_1V[:, :known].masked_fill_(allowed_V[:known] == 0, -torch.inf)
        return scores_1V

    def accept(self, token: int) -> bool:
        """Take ``token``; whether the answer is complete and nothing may follow."""
        self._matcher.consume_token(token)
        _check(self._matcher, self._param)
        return bool(self._matcher.is_stopped())


def from_schema(schema: Mapping[str, Any]) -> str:
    """The grammar of a schema that `Grammars.schema` returned."""
    return f"start: {json_rule(schema)}\n"


def json_rule(schema: Mapping[str, Any]) -> str:
    """The same as a part of a larger grammar in Lark's form."""
    return f"%json {json.dumps(schema)}"


def from_regex(regex: str) -> str:
    return str(LLMatcher.grammar_from_regex(regex))


def from_choice(choices: list[str], param: str | None = None) -> str:
    """One of several texts."""
    if not choices or not all(choices):
        raise RequestError("A choice needs at least one text, and none of them empty.", param, CODE)
    return "start: " + " | ".join(map(literal, choices)) + "\n"


def literal(text: str) -> str:
    """A text in Lark's form."""
    return json.dumps(text)


def check_depth(value: Any, most: int, param: str | None = None) -> None:
    """RequestError for objects and lists more than ``most`` deep inside each other. Does not recurse."""
    todo = [(value, 1)]
    while todo:
        item, depth = todo.pop()
        if depth > most:
            raise RequestError(f"A schema may be {most} levels deep here.", param, "too_deep")
        inner = item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
        todo.extend((part, depth + 1) for part in inner if isinstance(part, Mapping | list))


def _check(matcher: LLMatcher, param: str | None) -> None:
    if not matcher.is_error():
        return
    reason = str(matcher.get_error()).strip().split("\n", 1)[0]
    reason = reason.removeprefix(_PLACE.match(reason)[0])[:200].rstrip(".:")  # type: ignore[index]
    if reason.startswith("NoExtension"):
        reason = "no answer can meet it"
    raise RequestError(f"The schema or grammar cannot be used: {reason}.", param, CODE)
