"""Work shared out among threads: for what releases Python's lock, such as Pillow, NumPy and FFmpeg.

It knows nothing of pictures. The threads live as long as one call, so nothing is left behind in a process
that forks or ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST = 8  # media decoded at the same time: each of them needs memory


def threads() -> int:
    """How many threads to use: as many as torch, which follows OMP_NUM_THREADS, up to ``MOST``."""
    return min(torch.get_num_threads(), MOST)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``work`` of each item, in order; the first error that an item raises is raised here."""
    count = min(threads(), len(items))
    if count <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(count, thread_name_prefix="qvl") as pool:
        return list(pool.map(work, items))


def as_they_come(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``work`` of each item, in order, while the next items are still being made.

    At most one item for each thread waits, so memory does not grow with their number.
    """
    if threads() == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads(), thread_name_prefix="qvl") as pool:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > threads():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
