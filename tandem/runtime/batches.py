"""How a batch that meets trouble is redone, so that one bad item never fails its neighbours (R7)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from math import isqrt
from typing import TypeVar

import psycopg2
import sqlalchemy as sa

from tandem.runtime.database import LOCK_NOT_AVAILABLE, explained, is_serialization_failure, sqlstate
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.batches")

Item = TypeVar("Item")
Answer = TypeVar("Answer")

SINGLY = 8
"""So few are redone one by one."""

WHOLE_ATTEMPTS = 3
"""How often a batch is sent whole when it deadlocks with another."""

DATABASE_ERRORS = (sa.exc.SQLAlchemyError, psycopg2.Error, TandemError)


def redo(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Answer]],
    *,
    impatient: Callable[[Sequence[Item]], Sequence[Answer]] | None = None,
    budget_s: float = 5.0,
) -> list[Answer | TandemError]:
    """`work(items)`, an answer an item; each item whose answer can't be had gets the error instead.

    work: one local transaction; it either commits all its answers or raises and changes nothing.
    A deadlock or serialization failure redoes the batch whole, then in pieces, the last of them single items; any other
    error that a single item can cause goes to the pieces at once. A database that is away fails all of them without
    trying each.
    impatient: the same with a short lock timeout, for what is tried after a lock that did not come free: a few locked
    rows must not use up everybody's time.
    budget_s: no item is tried again after this many seconds; those left are IN_PROGRESS. Where the batch as a whole has
    used it up, half as long is left for the pieces, so that each call gets something done.
    """
    until = time.monotonic() + budget_s
    error: Exception | None = None
    for _ in range(WHOLE_ATTEMPTS):
        try:
            return list(work(items))
        except Exception as caught:  # what one item made a plug or a driver raise must not fail its neighbours
            error = caught
            if not is_serialization_failure(caught) or time.monotonic() > until:
                break
    assert error is not None
    if len(items) <= 1 or _is_away(error):
        return [_told(error) for _ in items]
    until = max(until, time.monotonic() + budget_s / 2)
    return _in_pieces(items, work, impatient or work, until, after=error)


def _in_pieces(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Answer]],
    impatient: Callable[[Sequence[Item]], Sequence[Answer]],
    until: float,
    *,
    after: Exception,
) -> list[Answer | TandemError]:
    """Root-of-n pieces of what has failed as one (`after`): most of them hold nothing that is in anybody's way."""
    if sqlstate(after) == LOCK_NOT_AVAILABLE:
        work = impatient
    size = isqrt(len(items)) if len(items) > SINGLY else 1
    pieces = [range(first, min(first + size, len(items))) for first in range(0, len(items), size)]
    answers: list[Answer | TandemError] = [_not_reached() for _ in items]
    # In any order: where the time is not enough for all, it is not always the same ones that are left.
    for piece in random.sample(pieces, len(pieces)):
        if time.monotonic() > until:
            break
        some = [items[i] for i in piece]
        try:
            answered: Sequence[Answer | TandemError] = _twice(some, work)
        except Exception as error:  # as above
            if len(some) == 1 or _is_away(error):
                answered = [_told(error) for _ in some]
            else:
                answered = _in_pieces(some, work, impatient, until, after=error)
        for i, answer in zip(piece, answered, strict=True):
            answers[i] = answer
    return answers


def _twice(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Answer]]) -> Sequence[Answer]:
    try:
        return work(items)
    except Exception as error:
        if not is_serialization_failure(error):
            raise
        return work(items)


def _not_reached() -> TandemError:
    return TandemError("not reached in time: ask again", reason=Reason.IN_PROGRESS, retry_after_s=1)


def rounds(keys: Sequence[Hashable]) -> Iterator[list[int]]:
    """Positions in groups in which no key is twice: what is said twice of one thing is said one after the other."""
    left = list(range(len(keys)))
    while left:
        first: dict[Hashable, int] = {}
        for i in left:
            first.setdefault(keys[i], i)
        now = set(first.values())
        yield sorted(now)
        left = [i for i in left if i not in now]


def _told(error: Exception) -> TandemError:
    """The error as an item's answer; one that nobody foresaw is logged, since nothing else will know where it arose."""
    told = explained(error)
    if told.reason is Reason.INTERNAL:
        log.error("an item failed", exception=frames(error))
    return told


def _is_away(error: Exception) -> bool:
    """Whether the whole database is the trouble, not an item: a lock or a statement's timeout may be one item's."""
    one_item = {LOCK_NOT_AVAILABLE, "57014"}
    return explained(error).reason is Reason.DATABASE_UNAVAILABLE and sqlstate(error) not in one_item
