"""Guessing the next tokens by looking up where the last few stood before (prompt lookup decoding).

Answers about documents quote them: when the last n tokens occurred earlier, what followed there often
follows again. A guess costs almost nothing and is always checked by the model, so it never changes the
result. The idea is from https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

INDEXED_NGRAM = 3  # what a measured lookup indexes; longer agreement is counted by walking back
LONGEST_MATCH = 8  # agreement beyond this says nothing more
FORGET = 0.95  # an observation's weight after the next of its kind: answers quote for a while, then stop
HOPELESS = 0.05  # a guess less likely than this is not worth a row anywhere


class PromptLookup:
    """An index of all n-grams (1 <= n <= ``max_ngram``) of a growing token list.

    Adding a token and making a guess take time that does not depend on the list's length.
    """

    def __init__(self, token_ids: Iterable[int], max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation starts
        for token in token_ids:
            self._index(token)

    def append(self, token: int) -> None:
        """Add a token; the n-grams that it continues can now be found."""
        self._index(token)

    def draft(self, count: int) -> tuple[int, ...]:
        """At most ``count`` tokens that followed the longest n-gram seen before; () if there is none.

        A continuation that reaches the end of the list runs on into its own copy, so that a loop of
        tokens is guessed as a loop.
        """
        start = self._continuation() if count > 0 else None
        if start is None:
            return ()
        period = len(self._ids) - start
        return tuple(self._ids[start + i % period] for i in range(count))

    def _index(self, token: int) -> None:
        end = len(self._ids)
        for size in range(1, min(self.max_ngram, end) + 1):
            self._after[tuple(self._ids[end - size :])] = end
        self._ids.append(token)

    def _continuation(self) -> int | None:
        """Where the tokens lie that followed the longest n-gram at the end."""
        end = len(self._ids)
        for size in range(min(self.max_ngram, end), 0, -1):
            start = self._after.get(tuple(self._ids[end - size :]))
            if start is not None:
                return start
        return None


class MeasuredLookup(PromptLookup):
    """A lookup that knows how likely its guesses are to hold.

    Every token that comes is compared with what would have been guessed, run or not, so that measuring
    costs no row of a step. How often a guess held is kept by the number of tokens that agreed before it.
    """

    def __init__(self, token_ids: Iterable[int]) -> None:
        super().__init__((), INDEXED_NGRAM)
        self._prompt: Iterable[int] | None = token_ids  # indexed behind the first token, which nobody guesses
        # A longer agreement promises more; this much is believed before anything is seen, as of two guesses.
        self._tried = [2.0] * (LONGEST_MATCH + 1)
        self._held = [2.0 * n / (n + 2) for n in range(LONGEST_MATCH + 1)]
        # Where the guess lies, and how many tokens agree before it.
        self._match: tuple[int, int] | None = None

    def append(self, token: int) -> None:
        if self._prompt is not None:
            for known in self._prompt:
                self._index(known)
            self._prompt = None
        if self._match is not None:
            start, size = self._match
            self._tried[size] = 1 + FORGET * self._tried[size]
            self._held[size] = (self._ids[start] == token) + FORGET * self._held[size]
        self._index(token)
        start_now = self._continuation()
        self._match = None if start_now is None else (start_now, self._agreeing(start_now))

    def outlook(self, most: int) -> list[float]:
        """How likely it is that the first, the first two, ... of at most ``most`` guesses hold; falling."""
        if self._match is None:
            return []
        size, likely, chain = self._match[1], 1.0, []
        for i in range(most):
            n = min(size + i, LONGEST_MATCH)
            likely *= self._held[n] / self._tried[n]
            if likely < HOPELESS:
                break
            chain.append(likely)
        return chain

    def _agreeing(self, start: int) -> int:
        """Tokens before ``start`` that equal those at the end of the list, one by one backwards."""
        ids, end = self._ids, len(self._ids)
        size = 0
        while size < min(start, LONGEST_MATCH) and ids[start - 1 - size] == ids[end - 1 - size]:
            size += 1
        return size
