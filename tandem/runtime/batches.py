"""How a batch that meets trouble is redone, so that one bad item never fails its neighbours (R7)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg2
import sqlalchemy as sa

from tandem.runtime.database import LOCK_NOT_AVAILABLE, explained, is_serialization_failure, sqlstate
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.batches")

Item = TypeVar("Item")
Answer = TypeVar("Answer")

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
    A deadlock or serialization failure redoes the batch whole, then one by one; any other error that a single
    item can cause goes to one by one at once. A database that is away fails all of them without trying each.
    impatient: the same with a short lock timeout, for one by one after a lock that did not come free: a few locked
    rows must not use up everybody's time.
    budget_s: no item is tried again after this many seconds; those left are IN_PROGRESS. Where the batch as a whole has
    used it up, half as long is left for one by one, so that each call gets something done.
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
    alone = impatient if impatient is not None and sqlstate(error) == LOCK_NOT_AVAILABLE else work
    until = max(until, time.monotonic() + budget_s / 2)
    answers: list[Answer | TandemError] = [
        TandemError("not reached in time: ask again", reason=Reason.IN_PROGRESS, retry_after_s=1) for _ in items
    ]
    # In any order: where the time is not enough for all, it is not always the same ones that are left.
    for i in random.sample(range(len(items)), len(items)):
        if time.monotonic() > until:
            break
        (answers[i],) = _alone(items[i], alone)
    return answers


def _alone(item: Item, work: Callable[[Sequence[Item]], Sequence[Answer]]) -> Sequence[Answer] | Sequence[TandemError]:
    for last in (False, True):
        try:
            return work([item])
        except Exception as error:  # as above
            if last or not is_serialization_failure(error):
                return [_told(error)]
    raise AssertionError("unreachable")


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
