"""Guessing the next tokens by looking up where the last few stood before (prompt lookup decoding).

Answers about documents quote them: when the last n tokens occurred earlier, what followed there often
follows again. A guess costs almost nothing and is always checked by the model, so it never changes the
result. The idea is from https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Iterable


class PromptLookup:
    """An index of all n-grams (1 <= n <= ``max_ngram``) of a growing token list.

    Adding a token and making a guess take time that does not depend on the list's length.
    """

    def __init__(self, token_ids: Iterable[int], max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation starts
        for token in token_ids:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token; the n-grams that it continues can now be found."""
        end = len(self._ids)
        for size in range(1, min(self.max_ngram, end) + 1):
            self._after[tuple(self._ids[end - size :])] = end
        self._ids.append(token)

    def draft(self, count: int) -> tuple[int, ...]:
        """At most ``count`` tokens that followed the longest n-gram seen before; () if there is none.

        A continuation that reaches the end of the list runs on into its own copy, so that a loop of
        tokens is guessed as a loop.
        """
        if count <= 0:
            return ()
        end = len(self._ids)
        for size in range(min(self.max_ngram, end), 0, -1):
            start = self._after.get(tuple(self._ids[end - size :]))
            if start is not None:
                period = end - start
                return tuple(self._ids[start + i % period] for i in range(count))
        return ()
