"""The crash table's row of PostgreSQL: kill -9 of a server while a transaction is held still at a known place.

The place is held by a lock, so that the server dies while somebody is known to be at it: alone, or together with the
process that is at it. What comes of it is a race, so the tests accept what may come, and hold the answer that the
caller was given, both sides, and everything that is left, against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack

import pytest

from lab.processes import Service
from tests.faults.crash_cases import Case, Rows, documented
from tests.faults.crash_house import (
    ABORTED,
    ANYBODY,
    COMMITTED,
    HOLD_COMMIT,
    HOLD_MARK,
    PREPARED,
    Answer,
    House,
    Trial,
    eventually,
)

ROWS = Rows()

HOLD_ENTITIES = "LOCK TABLE profiles.person, profiles.business IN SHARE MODE"
HOLD_FENCE = "LOCK TABLE twophase.decision IN SHARE MODE"

ENDINGS: dict[str, set[str | None]] = {
    "stage": {COMMITTED, ABORTED, None},
    "local commit": {COMMITTED, ABORTED},
    "publish": {COMMITTED},
    "mark": {COMMITTED},
    "fence": {ABORTED},
}
"""What a transaction may come to. None: no participant ever heard of it."""


@pytest.fixture
def trial(house: House, case: Case) -> Trial:
    return Trial(house, case.kind, case.participants)


@ROWS.cases(
    "either PostgreSQL, any time",
    *(f"{server} in {place}" for place in ENDINGS for server in ("identity-pg", "profiles-pg")),
    enders=("alone", "with a process"),
)
def test_either_postgresql(house: House, trial: Trial, case: Case) -> None:
    """either PostgreSQL, any time | what was committed | as above | as above

    Held in stage, in the initiator's local commit, in publish, at the mark, in the fence. The process that dies with a
    server is the one that is at work there, or waits for it.
    """
    server, _, place = case.point.partition(" in ")
    with ExitStack() as locks:
        call = held_in(place, trial, locks)
        before = trial.story if trial.stories else None
        if place == "local commit":
            assert before is not None
            assert (before.decision, before.states) == (None, trial.everywhere(PREPARED))
        elif place != "stage":
            assert before is not None
            assert before.decision == (None if place == "fence" else COMMITTED)
        if case.ender == "with a process":
            at_work = worker(trial, place, server)
            at_work.kill()
        house.kill_server(server)
        house.server_is_back(server)
    if case.ender == "with a process":
        house.restart(at_work)
    answer = call.result() if call else None
    outcome = settle(trial)
    assert outcome in ENDINGS[place]
    if answer is not None:
        agrees(answer, outcome)
    if (server, place, case.ender) == ("identity-pg", "local commit", "with a process"):
        assert answer is not None
        assert not answer.ok, "its process is gone, and nobody else has answered"
    trial.ended(outcome, ANYBODY)
    eventually(lambda: all(Trial(house, case.kind, number).call().ok for number in (1, 2)), "signups go on after it")


def held_in(place: str, trial: Trial, locks: ExitStack) -> Future[Answer] | None:
    """Brings it to the place where it stands still as long as `locks` are held. The call that is under way, if any."""
    house = trial.house

    def lock(database: str, statement: str) -> Callable[..., int]:
        return locks.enter_context(house.locked(database, statement))

    call = None
    match place:
        case "stage":
            wait = lock(trial.names[-1], HOLD_ENTITIES)
            call = trial.calling()
            wait(call)
        case "local commit":
            wait = lock("identity", HOLD_COMMIT)
            call = trial.calling()
            wait(call)
        case "publish":
            with house.locked("identity", HOLD_COMMIT) as committing:
                call = trial.calling()
                committing(call)
                wait = lock(trial.names[-1], HOLD_ENTITIES)
            wait(call)
        case "mark":
            # Marks are written by and by: those of calls before this one must not be what waits for the lock.
            eventually(lambda: not house.unfinished(), lambda: f"still left: {house.unfinished()}")
            wait = lock("identity", HOLD_MARK)
            call = trial.calling()
            wait(call)
        case "fence":
            trial.leave(decided=False)
            wait = lock("identity", HOLD_FENCE)
            house.make_due()
            wait(call)
    return call


def worker(trial: Trial, place: str, server: str) -> Service:
    """The process that is at it, at this server or waiting for the other."""
    if place == "fence":
        return trial.house.services["coordinator"] if server == "identity-pg" else trial.victim
    return trial.initiator if server == "identity-pg" else trial.victim


def settle(trial: Trial) -> str | None:
    """Waits until nothing is left; what it has come to."""
    house = trial.house
    until_due = (house.make_due, house.release_deliveries)

    def settled() -> bool:
        for turn_clock in until_due:  # a lease, a ttl or a back-off has run out
            turn_clock()
        return not house.unfinished(trial.since)

    eventually(settled, lambda: f"still left: {house.unfinished(trial.since)}")
    if not trial.stories:
        return None
    return COMMITTED if trial.story.decision == COMMITTED else ABORTED


def agrees(answer: Answer, outcome: str | None) -> None:
    """Who is told of success has it; who is told of a refusal has not; who is told neither may have either."""
    if answer.ok:
        assert outcome == COMMITTED, answer
    elif not any(unsure in answer.why for unsure in UNSURE):
        assert outcome != COMMITTED, answer


UNSURE = ("OUTCOME_UNKNOWN", "RemoteDisconnected", "ConnectionResetError", "ConnectionRefusedError", "UNAVAILABLE")
"""What a caller hears of a transaction that may have committed, or of a process that has died."""


def test_the_cases_are_the_tables() -> None:
    """The row is the documented one, and its cases contain every pair of a server and place, a kind of write, one or
    two participants, and of who dies with it."""
    table = documented()
    for crash, row in ROWS.of.items():
        assert row.text.startswith(table[crash])
        assert not row.missing
