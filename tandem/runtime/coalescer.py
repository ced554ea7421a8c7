"""Callers that come while a call is in flight gather, and leave together with the next one: no timer, no thread.

A caller that finds nobody before it does its work itself, at once. Else one of those who waited carries the next batch
for all of them, and each waits for its own answer, as long as it itself wants to.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Generic, TypeVar

from tandem.runtime.errors import Reason, TandemError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _State(Enum):
    WAITING = auto()
    CARRIED = auto()
    LEADING = auto()
    ANSWERED = auto()
    GONE = auto()


class _Entry(Generic[Item, Answer]):
    """One caller's item. `latch` is let go when its state has become LEADING or ANSWERED."""

    __slots__ = ("answer", "item", "latch", "raised", "state", "until")

    def __init__(self, item: Item, until: float) -> None:
        self.item = item
        self.until = until
        self.state = _State.WAITING
        self.answer: Answer | None = None
        self.raised: Exception | None = None
        self.latch = threading.Lock()
        self.latch.acquire()

    def result(self) -> Answer:
        if self.raised is not None:
            raise self.raised
        return self.answer  # type: ignore[return-value]  # it was answered


def _never(_: object) -> bool:
    return False


class Coalescer(Generic[Item, Answer]):
    """Turns many callers' single items into batches for `work`.

    work(items, until): an answer an item, in order; `until`, on time.monotonic(), is the carrier's. Where it raises
    over a batch it is asked item by item, so that nobody pays for a neighbour.
    late(answer): it says no more than that `until` was over; an item whose caller has more time left goes again.
    at_once: batches in flight at the same time. max_waiting: callers that wait; a further one is OVERLOADED (R16).
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item], float], Sequence[Answer]],
        *,
        late: Callable[[Answer], bool] = _never,
        max_batch: int = 500,
        max_waiting: int = 2_000,
        at_once: int = 1,
    ) -> None:
        self._work = work
        self._late = late
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._free = at_once
        self._lock = threading.Lock()
        self._waiting: deque[_Entry[Item, Answer]] = deque()

    def __call__(self, item: Item, *, until: float) -> Answer:
        """The answer to one item. until, on time.monotonic(): how long its caller waits.

        Raises TandemError DEADLINE_PASSED, OVERLOADED, or what `work` raises over this item.
        """
        entry: _Entry[Item, Answer] = _Entry(item, until)
        with self._lock:
            lone = self._free > 0 and not self._waiting
            if lone:
                self._free -= 1
                entry.state = _State.LEADING
            elif len(self._waiting) >= self._max_waiting:
                raise TandemError("too many calls at once", reason=Reason.OVERLOADED, retry_after_s=1)
            else:
                self._waiting.append(entry)
        if not lone:
            try:
                entry.latch.acquire(timeout=max(0.0, until - time.monotonic()))
            except BaseException:  # an interruption is this caller's alone
                with contextlib.suppress(TandemError):
                    if self._leave(entry):
                        self._hand_on(())
                raise
            if entry.state is not _State.LEADING and not self._leave(entry):
                return entry.result()
        return self._lead(entry)

    def _leave(self, entry: _Entry[Item, Answer]) -> bool:
        """Takes back an item whose caller waits no longer. True: it is to lead now; False: it is answered."""
        with self._lock:
            state = entry.state
            if state in (_State.WAITING, _State.CARRIED):
                entry.state = _State.GONE
                if state is _State.WAITING:
                    self._waiting.remove(entry)
        if state in (_State.WAITING, _State.CARRIED):
            raise TandemError("not answered in time", reason=Reason.DEADLINE_PASSED)
        return state is _State.LEADING

    def _lead(self, own: _Entry[Item, Answer]) -> Answer:
        """Carries its own item and all that wait, and hands the lead on."""
        batch = [own]
        with self._lock:
            while self._waiting and len(batch) < self._max_batch:
                other = self._waiting.popleft()
                other.state = _State.CARRIED
                batch.append(other)
        again = batch[1:]
        try:
            again = self._carry(batch)
        finally:
            self._hand_on(again)
        return own.result()

    def _carry(self, batch: Sequence[_Entry[Item, Answer]]) -> list[_Entry[Item, Answer]]:
        """Answers the batch; returns those that have to go again."""
        own = batch[0]
        again = []
        for entry, answer in zip(batch, self._answers([entry.item for entry in batch], own.until), strict=True):
            if isinstance(answer, _Raised):
                entry.raised = answer.error
            elif entry.until > own.until and self._late(answer):
                again.append(entry)
                continue
            else:
                entry.answer = answer
            with self._lock:
                if entry.state is _State.CARRIED:
                    entry.state = _State.ANSWERED
                    entry.latch.release()
        return again

    def _answers(self, items: Sequence[Item], until: float) -> Sequence[Answer | _Raised]:
        try:
            return self._work(items, until)
        except Exception as error:
            if len(items) == 1:
                return [_Raised(error)]
        return [answer for item in items for answer in self._answers([item], until)]

    def _hand_on(self, again: Sequence[_Entry[Item, Answer]]) -> None:
        """The next of those who wait leads; if nobody waits, whoever comes."""
        with self._lock:
            for entry in reversed(again):
                if entry.state is _State.CARRIED:
                    entry.state = _State.WAITING
                    self._waiting.appendleft(entry)
            if not self._waiting:
                self._free += 1
                return
            leader = self._waiting.popleft()
            leader.state = _State.LEADING
        leader.latch.release()


class _Raised:
    """What `work` raised over one item."""

    def __init__(self, error: Exception) -> None:
        self.error = error
