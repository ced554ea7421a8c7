"""Callers that come while a call is in flight gather, and leave together with the next one: no timer, no thread.

A caller that finds nobody before it does its work itself, at once. Else one of those who waited carries the next batch
for all of them, and each waits for its own answer, as long as it itself wants to.
"""

from __future__ import annotations

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
    """One caller's item. `latch` is let go when its state has become LEADING or ANSWERED.

    carried: of one that leads, those that go with it.
    """

    __slots__ = ("answer", "carried", "item", "latch", "raised", "state", "until")

    def __init__(self, item: Item, until: float) -> None:
        self.item = item
        self.until = until
        self.state = _State.WAITING
        self.answer: Answer | None = None
        self.raised: Exception | None = None
        self.carried: Sequence[_Entry[Item, Answer]] = ()
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
        self._at_once = at_once
        self._free = at_once
        self._lock = threading.Lock()
        self._waiting: deque[_Entry[Item, Answer]] = deque()

    def __call__(self, item: Item, *, until: float) -> Answer:
        """The answer to one item. until, on time.monotonic(): how long its caller waits.

        Raises TandemError DEADLINE_PASSED, OVERLOADED, or what `work` raises over this item.
        """
        entry: _Entry[Item, Answer] = _Entry(item, until)
        try:
            self._enter(entry)
            if entry.state is _State.WAITING:
                entry.latch.acquire(timeout=max(0.0, until - time.monotonic()))
            if entry.state is _State.LEADING:
                self._lead(entry)
            elif entry.state is not _State.ANSWERED:
                raise TandemError("not answered in time", reason=Reason.DEADLINE_PASSED)
            return entry.result()
        finally:
            # However it ends, an interruption anywhere included: nobody may wait for a lead that is gone.
            try:
                self._leave(entry)
            except BaseException:
                self._leave(entry)
                raise

    def _enter(self, entry: _Entry[Item, Answer]) -> None:
        """Leads at once where nobody is before it, else waits."""
        with self._lock:
            if self._free > 0 and not self._waiting:
                entry.state = _State.LEADING
                self._free -= 1
            elif len(self._waiting) >= self._max_waiting:
                entry.state = _State.GONE
                raise TandemError("too many calls at once", reason=Reason.OVERLOADED, retry_after_s=1)
            else:
                self._waiting.append(entry)

    def _leave(self, entry: _Entry[Item, Answer]) -> None:
        """Takes back an item that nobody waits for any more; hands the lead on, if it has it. Can be repeated."""
        with self._lock:
            if entry.state is _State.LEADING:
                for other in reversed(entry.carried):
                    if other.state is _State.CARRIED:  # not answered: it has to go again
                        other.state = _State.WAITING
                        self._waiting.appendleft(other)
                if self._waiting:
                    leader = self._waiting.popleft()
                    leader.state = _State.LEADING
                    leader.latch.release()
                else:
                    self._free = min(self._free + 1, self._at_once)
            elif entry.state is _State.WAITING and entry in self._waiting:
                self._waiting.remove(entry)
            entry.state = _State.GONE

    def _lead(self, own: _Entry[Item, Answer]) -> None:
        """Carries its own item and all that wait, and answers them."""
        with self._lock:
            batch = [own]
            while self._waiting and len(batch) < self._max_batch:
                batch.append(self._waiting.popleft())
                batch[-1].state = _State.CARRIED
            own.carried = batch[1:]
        answers = self._answers([entry.item for entry in batch], own.until)
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, _Raised):
                entry.raised = answer.error
            elif entry.until > own.until and self._late(answer):
                continue
            else:
                entry.answer = answer
            with self._lock:
                if entry.state is _State.CARRIED:
                    entry.state = _State.ANSWERED
                    entry.latch.release()

    def _answers(self, items: Sequence[Item], until: float) -> Sequence[Answer | _Raised]:
        try:
            return self._work(items, until)
        except Exception as error:
            if len(items) == 1:
                return [_Raised(error)]
        return [answer for item in items for answer in self._answers([item], until)]


class _Raised:
    """What `work` raised over one item."""

    def __init__(self, error: Exception) -> None:
        self.error = error
