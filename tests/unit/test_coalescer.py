"""Callers leave together, and none of them notices the others: not their refusals, deadlines or interruptions."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tandem.runtime.coalescer import Coalescer
from tandem.runtime.errors import Reason, TandemError
from tests.support.rules import eventually, seeded

PATIENCE_S = 10.0
LATE = "late"


class Work:
    """Answers each item with its double; notes its batches; waits at `gate` where it is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.raising: set[int] = set()
        self.interrupting: set[int] = set()
        self.late_until = 0.0

    def __call__(self, items: Sequence[int], until: float) -> list[int | str]:
        self.batches.append(list(items))
        self.threads.append(threading.get_ident())
        assert self.gate.wait(PATIENCE_S)
        if self.interrupting & set(items):
            self.interrupting.clear()
            raise KeyboardInterrupt
        if self.raising & set(items):
            raise ValueError(items)
        if until < self.late_until:
            return [LATE for _ in items]
        return [2 * item for item in items]


def soon() -> float:
    return time.monotonic() + PATIENCE_S


class Crowd:
    """One caller whose call is in flight, held at the gate, and more that have come meanwhile."""

    def __init__(self, work: Work, pool: ThreadPoolExecutor, **options: int) -> None:
        self.work, self.pool = work, pool
        self.ask = Coalescer(work, late=lambda answer: answer == LATE, **options)  # type: ignore[arg-type]
        work.gate.clear()
        self.first = pool.submit(lambda: self.ask(0, until=soon()))
        eventually(lambda: len(work.batches) == 1)

    def call(self, item: int, *, until: float | None = None) -> Future[int | str]:
        """Calls in a thread of its own; returns once it waits."""
        before = len(self.ask._waiting)
        future = self.pool.submit(lambda: self.ask(item, until=soon() if until is None else until))
        eventually(lambda: len(self.ask._waiting) > before or future.done())
        return future


@pytest.fixture
def pool():  # type: ignore[no-untyped-def]
    with ThreadPoolExecutor(40) as pool:
        yield pool


def test_a_lone_caller_does_it_itself() -> None:
    """Without a thread of anybody else's, and alone."""
    work = Work()
    ask = Coalescer(work)
    assert [ask(item, until=soon()) for item in (1, 2)] == [2, 4]
    assert work.batches == [[1], [2]]
    assert set(work.threads) == {threading.get_ident()}


def test_those_who_came_meanwhile_leave_together(pool: ThreadPoolExecutor) -> None:
    """In the order in which they came, at most `max_batch`; each gets its own answer."""
    work = Work()
    crowd = Crowd(work, pool, max_batch=4)
    others = [crowd.call(item) for item in range(1, 8)]
    work.gate.set()
    assert [future.result(PATIENCE_S) for future in (crowd.first, *others)] == [2 * item for item in range(8)]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert crowd.ask(9, until=soon()) == 18, "and nobody holds the lead"


def test_one_that_fails_is_alone_in_it(pool: ThreadPoolExecutor) -> None:
    """What the work raises over one item is this item's."""
    work = Work()
    work.raising = {2}
    crowd = Crowd(work, pool)
    others = [crowd.call(item) for item in (1, 2, 3)]
    work.gate.set()
    assert (others[0].result(PATIENCE_S), others[2].result(PATIENCE_S)) == (2, 6)
    with pytest.raises(ValueError):
        others[1].result(PATIENCE_S)


def test_a_deadline_is_its_callers_own(pool: ThreadPoolExecutor) -> None:
    """One that has no time left goes away by itself: waiting, or carried by another; the others get their answers."""
    work = Work()
    crowd = Crowd(work, pool)
    hurried, patient = crowd.call(1, until=time.monotonic() + 0.05), crowd.call(2)
    with pytest.raises(TandemError) as raised:
        hurried.result(PATIENCE_S)
    assert raised.value.reason is Reason.DEADLINE_PASSED
    work.gate.set()
    assert (crowd.first.result(PATIENCE_S), patient.result(PATIENCE_S)) == (0, 4)
    assert work.batches == [[0], [2]], "what nobody waits for is not asked"


def test_a_carriers_deadline_is_not_its_neighbours(pool: ThreadPoolExecutor) -> None:
    """The carrier's time is over: it is told so; who has more time goes again with another."""
    work = Work()
    crowd = Crowd(work, pool)
    now = time.monotonic()
    carrier, neighbour = crowd.call(1, until=now + 5), crowd.call(2, until=now + 9)
    work.late_until = now + 7
    work.gate.set()
    assert carrier.result(PATIENCE_S) == LATE
    assert neighbour.result(PATIENCE_S) == 4
    assert work.batches[1:] == [[1, 2], [2]]


def test_an_interrupted_carrier_takes_nobody_along(pool: ThreadPoolExecutor) -> None:
    """KeyboardInterrupt in the middle of the work: the others are carried by one of their own."""
    work = Work()
    crowd = Crowd(work, pool)
    carrier, *others = [crowd.call(item) for item in (1, 2, 3)]
    work.interrupting = {1}
    work.gate.set()
    with pytest.raises(KeyboardInterrupt):
        carrier.result(PATIENCE_S)
    assert [future.result(PATIENCE_S) for future in others] == [4, 6]


def test_a_queue_that_is_full_says_so(pool: ThreadPoolExecutor) -> None:
    """R16: a further one is OVERLOADED, at once."""
    work = Work()
    crowd = Crowd(work, pool, max_waiting=2)
    others = [crowd.call(item) for item in (1, 2)]
    with pytest.raises(TandemError) as raised:
        crowd.ask(3, until=soon())
    assert (raised.value.reason, raised.value.retry_after_s) == (Reason.OVERLOADED, 1)
    work.gate.set()
    assert [future.result(PATIENCE_S) for future in others] == [2, 4]


@pytest.mark.parametrize("at_once", [1, 3])
def test_everybody_gets_their_own_answer(pool: ThreadPoolExecutor, at_once: int) -> None:
    """Forty callers, a hundred times each, some in a hurry, some items failing: each answer is its caller's own."""
    chance = seeded()
    running, most, lock = 0, 0, threading.Lock()

    def work(items: Sequence[int], until: float) -> list[int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.0002)
        with lock:
            running -= 1
        if any(item % 50 == 49 for item in items):
            raise ValueError
        return [2 * item for item in items]

    ask = Coalescer(work, at_once=at_once, max_batch=16)
    plans = [[(chance.randrange(10_000), chance.random() < 0.05) for _ in range(100)] for _ in range(40)]
    told: Counter[str] = Counter()

    def caller(plan: list[tuple[int, bool]]) -> None:
        for item, hurried in plan:
            try:
                answer = ask(item, until=time.monotonic() + (0.0005 if hurried else PATIENCE_S))
            except ValueError:
                assert item % 50 == 49
                told["failed"] += 1
            except TandemError as error:
                assert error.reason is Reason.DEADLINE_PASSED
                assert hurried
                told["late"] += 1
            else:
                assert answer == 2 * item
                told["answered"] += 1

    for future in [pool.submit(caller, plan) for plan in plans]:
        future.result(60)
    assert sum(told.values()) == 4_000
    assert told["answered"] > 3_000, told
    assert most <= at_once
    assert ask._free == at_once
