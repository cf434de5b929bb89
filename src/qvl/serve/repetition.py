"""Finds an answer that has fallen into a loop: its end is one block of tokens, over and over.

Knows token ids only. A block has at most LONGEST_BLOCK tokens and must have come FEWEST_REPEATS times or
more, filling a given number of tokens without a single exception, so a table of equal cells is safe until it
fills that many tokens, and so is anything that counts.

Legend: P block lengths.
"""

from __future__ import annotations

import numpy as np

LONGEST_BLOCK = 128  # tokens
FEWEST_REPEATS = 4
_PERIODS_P = np.arange(1, LONGEST_BLOCK + 1)
_NO_TOKEN = -1


class RepetitionDetector:
    """Follows one answer, token by token. A token costs a few operations on P numbers, however long it is.

    ``tokens``: how many tokens the repeated block must fill (longer for blocks that would not be there
    FEWEST_REPEATS times by then).
    """

    def __init__(self, tokens: int) -> None:
        # For every block length, how many of the last tokens equal the one a block earlier.
        self._equal_P = np.zeros(LONGEST_BLOCK, dtype=np.int64)
        self._needed_P = np.maximum(tokens, FEWEST_REPEATS * _PERIODS_P) - _PERIODS_P
        # The last tokens, newest first; the window slides down and is moved back up rarely.
        self._cells = np.full(4 * LONGEST_BLOCK, _NO_TOKEN, dtype=np.int64)
        self._newest = len(self._cells) - LONGEST_BLOCK

    def append(self, token: int) -> bool:
        """Take the next token; whether the answer now ends in a loop."""
        recent_P = self._cells[self._newest : self._newest + LONGEST_BLOCK]
        self._equal_P = np.where(recent_P == token, self._equal_P + 1, 0)
        self._push(token)
        return bool((self._equal_P >= self._needed_P).any())

    def _push(self, token: int) -> None:
        if not self._newest:
            kept = len(self._cells) - LONGEST_BLOCK
            self._cells[kept:] = self._cells[:LONGEST_BLOCK].copy()
            self._newest = kept
        self._newest -= 1
        self._cells[self._newest] = token
