"""The crash table of design §2, row by row: kill -9 at that point, start again, and ask both sides what came of it.

Each case is a row's point × what is written (a Person, a Business, both) × one or two participants × who is let end it.
Every case asserts what the crash has left, how it ended, who ended it, and that nothing is left. By default a row's
cases contain every pair of these; TANDEM_FULL=1 runs all combinations. The row of PostgreSQL itself is in
test_crashes_of_databases.py, what dies at random moments in test_crashes_under_load.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from lab import processes
from lab.processes import Service
from tests.faults.crash_cases import Case, Rows, documented
from tests.faults.crash_house import (
    ABORTED,
    COMMITTED,
    HOLD_COMMIT,
    PREPARED,
    Answer,
    House,
    Trial,
    eventually,
)
from tests.support.house import new_id

# --- the cases --------------------------------------------------------------------------------------------------------

ROWS = Rows()
cases = ROWS.cases


@pytest.fixture
def trial(house: House, case: Case) -> Trial:
    return Trial(house, case.kind, case.participants)


# --- the initiator ----------------------------------------------------------------------------------------------------


def crash_initiator(trial: Trial, point: str) -> None:
    """It dies at the point; its caller hears of no success."""
    trial.house.arm(trial.initiator, point)
    call = trial.calling()
    trial.house.died_at_it(trial.initiator)
    assert not call.result().ok


def end_undecided(trial: Trial, ender: str) -> None:
    """Whoever comes first: the sweeper once the ttl has passed, or a retried signup once push_after has."""
    if ender == "sweeper":
        trial.house.make_due()
        trial.ended(ABORTED, {"sweeper"})
    else:
        trial.house.make_old()
        assert trial.call() == Answer(True)
        trial.ended(ABORTED, {"push"}, then=COMMITTED)


def end_committed(trial: Trial, ender: str, *, own_rows: bool = True) -> None:
    """Whoever comes first, after the decision: recovery, a reader who needs it now, the sweeper."""
    match ender:
        case "reader":
            for name in trial.names:
                assert trial.read(name) == Answer(True), "committed, so a reader must find it"
        case "sweeper":
            trial.house.make_due()
            eventually(lambda: trial.story.states == trial.everywhere(COMMITTED), lambda: str(trial.story))
    assert trial.story.undelivered == trial.everybody, "held back from recovery"
    trial.house.release_deliveries()
    trial.ended(COMMITTED, {ender}, own_rows=own_rows)


@cases("initiator before or during Prepare", "before", "during", enders=("sweeper", "retry"))
def test_initiator_before_or_during_prepare(house: House, trial: Trial, case: Case) -> None:
    """initiator before or during Prepare | perhaps prepared rows | sweeper, or a retried signup | aborted"""
    if case.point == "before":
        crash_initiator(trial, "driver.before_prepare")
        trial.left(None)
        house.restart(trial.initiator)
        if case.ender == "sweeper":
            trial.ended(None, ())
        else:
            assert trial.call() == Answer(True)
            trial.ended(None, (), then=COMMITTED)
        return
    with house.locked(trial.names[-1], "LOCK TABLE profiles.person, profiles.business IN SHARE MODE") as waiter:
        call = trial.calling()
        waiter()
        trial.initiator.kill()
    assert not call.result().ok
    # The participant goes on with what it was asked: nobody hears its vote.
    eventually(lambda: trial.stories and trial.story.states == trial.everywhere(PREPARED), lambda: str(trial.stories))
    trial.left(None, **trial.everywhere(PREPARED))
    house.restart(trial.initiator)
    end_undecided(trial, case.ender)


@cases(
    "initiator after the votes, before its local commit",
    "driver.after_block",
    "driver.after_votes",
    enders=("sweeper", "retry"),
)
def test_initiator_after_the_votes(house: House, trial: Trial, case: Case) -> None:
    """initiator after the votes, before its local commit | prepared rows | sweeper, or a retried signup | aborted"""
    crash_initiator(trial, case.point)
    trial.left(None, **trial.everywhere(PREPARED))
    house.restart(trial.initiator)
    end_undecided(trial, case.ender)


@cases("initiator in its local commit", "before COMMIT", "COMMIT holds", "COMMIT fails")
def test_initiator_in_its_local_commit(house: House, trial: Trial, case: Case) -> None:
    """initiator in its local commit | decided or not | sweeper / recovery | whatever was committed"""
    if case.point == "before COMMIT":
        crash_initiator(trial, "driver.after_insert")
        trial.left(None, **trial.everywhere(PREPARED))
        house.restart(trial.initiator)
        end_undecided(trial, "sweeper")
        return
    with house.locked("identity", HOLD_COMMIT) as waiter:
        call = trial.calling()
        committing = waiter()
        trial.initiator.kill()
        assert not call.result().ok
        trial.left(None, **trial.everywhere(PREPARED))
        # COMMIT was sent and the server is at it: a fence may not get ahead of it, nor take it for undecided.
        house.make_due()
        for name in trial.names:
            eventually(
                lambda name=name: (
                    house.one(  # type: ignore[misc]
                        name, "SELECT max(last_error) FROM twophase.prepared_transaction WHERE NOT confirmed"
                    )
                    == "IN_PROGRESS"
                ),
                "the sweeper is told IN_PROGRESS",
            )
        trial.left(None, **trial.everywhere(PREPARED))
        if case.point == "COMMIT fails":
            house.sql("identity", "SELECT pg_terminate_backend(:pid)", pid=committing)
    house.restart(trial.initiator)
    house.make_due()
    if case.point == "COMMIT fails":
        trial.ended(ABORTED, {"sweeper"})
    else:
        trial.ended(COMMITTED, {"sweeper", "recovery"})


@cases(
    "initiator after its local commit, before Commit",
    "driver.after_local_commit",
    enders=("recovery", "reader", "sweeper"),
)
def test_initiator_after_its_local_commit(house: House, trial: Trial, case: Case) -> None:
    """initiator after its local commit, before Commit | decision, undelivered | recovery, reader, sweeper |
    committed"""
    with house.paused(house.services["coordinator"]):
        crash_initiator(trial, case.point)
        trial.left(COMMITTED, undelivered=trial.names, **trial.everywhere(PREPARED))
        house.hold_deliveries()
    house.restart(trial.initiator)
    end_committed(trial, case.ender)


@cases("initiator after Commit, before the mark", "driver.after_commit", enders=("alone", "retry"))
def test_initiator_after_commit(house: House, trial: Trial, case: Case) -> None:
    """initiator after Commit, before the mark | decision, undelivered | recovery (repeat) | committed"""
    with house.paused(house.services["coordinator"]):
        crash_initiator(trial, case.point)
        trial.left(COMMITTED, undelivered=trial.names, by="coordinator", **trial.everywhere(COMMITTED))
        house.restart(trial.initiator)
        if case.ender == "retry":
            assert trial.call() == Answer(True), "a retried signup finds its own success"
        house.release_deliveries()
    trial.ended(COMMITTED, {"coordinator"})


# --- a participant ----------------------------------------------------------------------------------------------------


@cases(
    "participant before / after its own local commit of Prepare",
    "participant.before_stage", "participant.after_stage", "participant.after_prepare",
    enders=("retry", "too late"),
)  # fmt: skip
def test_participant_around_its_local_commit_of_prepare(house: House, trial: Trial, case: Case) -> None:
    """participant before / after its own local commit of Prepare | nothing / prepared, unanswered | the driver's retry,
    Abort, sweeper | committed by a retry within the deadline, else aborted"""
    prepared = case.point == "participant.after_prepare"
    house.arm(trial.victim, case.point)
    call = trial.calling(impatient=case.ender == "too late")
    house.died_at_it(trial.victim)
    at_victim = trial.story.states.get(trial.names[-1]) if trial.stories else None
    assert at_victim == (PREPARED if prepared else None)
    if case.ender == "retry":
        house.restart(trial.victim)
        assert call.result() == Answer(True)
        trial.ended(COMMITTED, {"coordinator"})
        return
    assert not call.result().ok
    survivors = dict.fromkeys(trial.names[:-1], ABORTED)
    at_victims = {trial.names[-1]: PREPARED} if prepared else {}
    if survivors:  # an Abort that its sender no longer waits for is carried out all the same
        eventually(lambda: trial.story.states == {**survivors, **at_victims}, lambda: str(trial.story))
    trial.left(None, by="coordinator", **survivors, **at_victims)
    house.restart(trial.victim)
    house.make_due()
    if survivors or prepared:
        trial.ended(ABORTED, {"coordinator", "sweeper"} if survivors else {"sweeper"})
        assert not prepared or trial.story.sides[trial.names[-1]].by == "sweeper"
    else:
        trial.ended(None, ())


@cases(
    "participant before / after its own local commit of Commit",
    "participant.before_publish", "participant.after_commit",
    enders=("at once", "late"),
)  # fmt: skip
def test_participant_around_its_local_commit_of_commit(house: House, trial: Trial, case: Case) -> None:
    """participant before / after its own local commit of Commit | prepared / active, unanswered | recovery (repeat) |
    committed"""
    applied = case.point == "participant.after_commit"
    house.arm(trial.victim, case.point)
    with house.paused(house.services["coordinator"]):
        call = trial.calling()
        house.died_at_it(trial.victim)
        story = trial.story
        assert story.decision == COMMITTED
        assert trial.names[-1] in story.undelivered
        assert story.sides[trial.names[-1]].state == (COMMITTED if applied else PREPARED)
        if case.ender == "at once":
            house.restart(trial.victim)
        assert call.result() == Answer(True), "after the commit point nothing raises"
    by = {"recovery", "coordinator"}
    if case.ender == "late":
        # The others' marks are written by and by.
        eventually(lambda: trial.story.undelivered == {trial.names[-1]}, lambda: str(trial.story))
        house.restart(trial.victim)
        by = {"coordinator"} if applied else {"recovery"}
    trial.ended(COMMITTED, by | {"coordinator"} if trial.participants == 2 else by)


# --- sweeper, coordinator, recovery -----------------------------------------------------------------------------------


@cases(
    "sweeper after the claim, or after Resolve",
    "sweeper.after_claim",
    "sweeper.after_resolve",
    "sweeper.after_apply",
    enders=("committed", "undecided"),
)
def test_sweeper(house: House, trial: Trial, case: Case) -> None:
    """sweeper after the claim, or after Resolve | the lease runs out | any sweeper | unchanged"""
    trial.leave(decided=case.ender == "committed")
    outcome = COMMITTED if case.ender == "committed" else ABORTED
    crash_claimed(trial, case.point, ended=outcome if case.point.endswith("apply") else PREPARED)
    house.make_due()
    eventually(lambda: trial.story.states == trial.everywhere(outcome), lambda: str(trial.story))
    house.release_deliveries()
    trial.ended(outcome, {"sweeper"})


def crash_claimed(trial: Trial, point: str, *, ended: str) -> None:
    """The victim's sweeper dies at the point, with a lease on the row unless it has ended."""
    house, victim = trial.house, trial.victim
    name = trial.names[-1]
    if point == "sweeper.after_claim":
        # A server's sweeper passes this each time, with rows or not; a sweep by hand when there are some.
        with house.paused(victim):
            house.make_due()
            house.command(victim, "sweep", point=point)
            side = trial.story.sides[name]
            assert (side.state, side.attempts, side.leased) == (ended, 1, True), side
    else:
        house.arm(victim, point)
        house.make_due()
        house.died_at_it(victim)
        side = trial.story.sides[name]
        assert (side.state, side.leased) == (ended, ended == PREPARED), side
        assert side.attempts >= 1
        house.restart(victim)


@cases("coordinator service after the fence, before the answer", "coordinator.after_fence")
def test_coordinator_service(house: House, trial: Trial, case: Case) -> None:
    """coordinator service after the fence, before the answer | fence row | sweeper (repeat) | aborted"""
    trial.leave(decided=False)
    coordinator = house.services["coordinator"]
    house.arm(coordinator, case.point)
    house.make_due(trial.names[0])
    house.died_at_it(coordinator)
    trial.left(ABORTED, **trial.everywhere(PREPARED))
    house.restart(coordinator)
    house.make_due()
    trial.ended(ABORTED, {"sweeper"})


@cases("recovery after the claim, or after Commit", "recovery.after_claim", "recovery.after_commit")
def test_recovery(house: House, trial: Trial, case: Case) -> None:
    """recovery after the claim, or after Commit | the lease runs out | any recovery | committed"""
    coordinator = house.services["coordinator"]
    trial.leave(decided=True)
    if case.point == "recovery.after_claim":
        with house.paused(coordinator):
            house.release_deliveries()
            house.command(coordinator, "recover", point=case.point)
            trial.left(COMMITTED, undelivered=trial.names, **trial.everywhere(PREPARED))
            assert (trial.story.attempts, trial.story.leased) == (1, True)
    else:
        house.arm(coordinator, case.point)
        house.release_deliveries()
        house.died_at_it(coordinator)
        trial.left(COMMITTED, undelivered=trial.names, by="recovery", **trial.everywhere(COMMITTED))
        assert (trial.story.attempts, trial.story.leased) == (1, True)
        house.restart(coordinator)
    house.release_deliveries()
    trial.ended(COMMITTED, {"recovery"})


# --- whoever meets a prepared row -------------------------------------------------------------------------------------


@cases(
    "a reader, after Resolve or after applying it",
    "reader.after_resolve",
    "reader.after_apply",
    enders=("committed", "undecided"),
)
def test_reader(house: House, trial: Trial, case: Case) -> None:
    """a reader, after Resolve or after applying it | as the sweeper | anyone | unchanged"""
    decided = case.ender == "committed"
    trial.leave(decided=decided)
    house.arm(trial.victim, case.point)
    read = house.calling(lambda: trial.read(trial.names[-1], repeat=False))
    house.died_at_it(trial.victim)
    assert not read.result().ok
    applied = decided and case.point.endswith("apply")
    side = trial.story.sides[trial.names[-1]]
    assert (side.state, side.by) == ((COMMITTED, "reader") if applied else (PREPARED, None))
    house.restart(trial.victim)
    again = trial.read(trial.names[-1])
    assert again == Answer(True) if decided else again.is_not_there, (
        f"{again}: committed is found, undecided is not there"
    )
    house.release_deliveries()
    house.make_due()
    trial.ended(COMMITTED if decided else ABORTED, {"reader", "recovery", "sweeper"} if decided else {"sweeper"})
    if decided:
        assert trial.story.sides[trial.names[-1]].by == "reader"


@cases(
    "a pushing Prepare, after Resolve or after applying it",
    "push.after_resolve",
    "push.after_apply",
    enders=("undecided", "committed"),
)
def test_pushing_prepare(house: House, trial: Trial, case: Case) -> None:
    """a pushing Prepare, after Resolve or after applying it | as the sweeper | anyone | unchanged"""
    decided = case.ender == "committed"
    trial.leave(decided=decided)
    house.make_old()
    house.arm(trial.victim, case.point)
    # Another attempt at the same needs what the first one holds. Its own row is what the initiator would know it by.
    if decided:
        house.sql("identity", "DELETE FROM own WHERE token = :token", token=trial.token)
    call = trial.calling()
    house.died_at_it(trial.victim)
    outcome = COMMITTED if decided else ABORTED
    side = trial.story.sides[trial.names[-1]]
    applied = case.point.endswith("apply")
    assert (side.state, side.by) == ((outcome, "push") if applied else (PREPARED, None))
    house.restart(trial.victim)
    answer = call.result()
    assert answer.ok != decided, answer
    if decided:
        assert "ALREADY_EXISTS" in answer.why
        house.sql("identity", "INSERT INTO own (token) VALUES (:token)", token=trial.token)
        house.release_deliveries()
        trial.ended(COMMITTED, {"push", "recovery"}, then=ABORTED)
    else:
        trial.ended(ABORTED, {"push"}, then=COMMITTED)


# --- purge ------------------------------------------------------------------------------------------------------------


@cases("purge, any time", "purge.before_commit", "purge.after_commit", enders=("participant", "coordinator"))
def test_purge(house: House, trial: Trial, case: Case) -> None:
    """purge, any time | fewer finished rows | the next purge | unchanged"""
    assert trial.call() == Answer(True)
    trial.ended(COMMITTED, {"coordinator"})
    (young,) = house.stories(trial.since)
    old = new_id(age_s=31 * 86_400)
    databases = {"identity": "twophase.decision"} if case.ender == "coordinator" else {}
    databases |= {} if databases else dict.fromkeys(trial.names, "twophase.prepared_transaction")
    for database, table in databases.items():
        age(house, database, table, young, old)
    # The copies stand for the transaction as it would be a month later.
    services = [house.services["coordinator"]] if case.ender == "coordinator" else [
        house.services[name] for name in trial.names
    ]  # fmt: skip
    left = 0 if case.point.endswith("after_commit") else 1
    for service, (database, table) in zip(services, databases.items(), strict=True):
        house.command(service, "purge", point=case.point)
        assert house.one(database, f"SELECT count(*) FROM {table} WHERE transaction_id = :old", old=old) == left
        house.command(service, "purge")
        assert house.one(database, f"SELECT count(*) FROM {table} WHERE transaction_id = :old", old=old) == 0
    trial.ended(COMMITTED, {"coordinator"})


def age(house: House, database: str, table: str, young: UUID, old: UUID) -> None:
    """A copy of a finished row with an id, and an end, of a month ago."""
    ended = "decided_at" if table == "twophase.decision" else "resolved_at"
    names = [
        str(row[0])
        for row in house.sql(
            database, "SELECT attname FROM pg_attribute WHERE attrelid = CAST(:t AS regclass) AND attnum > 0", t=table
        )
    ]
    changed = {"transaction_id": "CAST(:old AS uuid)", ended: f"{ended} - interval '31 days'"}
    values = ", ".join(changed.get(name, name) for name in names)
    house.sql(
        database,
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM {table} WHERE transaction_id = :young",
        old=str(old),
        young=young,
    )


# --- Execute ----------------------------------------------------------------------------------------------------------

UNDECIDED_POINTS = ("driver.before_prepare", "driver.after_block", "driver.after_votes", "driver.after_insert")
DECIDED_POINTS = ("driver.after_local_commit", "driver.after_commit")


@cases(
    "Execute, at each of the initiator's points",
    *UNDECIDED_POINTS,
    *DECIDED_POINTS,
    enders=("first sweeper", "first repeat"),
)
def test_execute(house: House, trial: Trial, case: Case) -> None:
    """Execute, at each of the initiator's points | as the initiator | as the initiator | as the initiator

    And a repeat with the same content gets the same decision, whoever comes first."""
    coordinator = house.services["coordinator"]
    id_ = uuid7()
    house.arm(coordinator, case.point)
    call = house.calling(lambda: house.execute(id_, trial.token, trial.kind, trial.names))
    house.died_at_it(coordinator)
    assert not call.result().ok
    trial.by_identity = False
    decision = COMMITTED if case.point in DECIDED_POINTS else None
    state = COMMITTED if case.point == "driver.after_commit" else PREPARED
    stories = trial.stories
    if case.point == "driver.before_prepare":
        assert stories == []
    else:
        assert [(s.decision, s.states) for s in stories] == [(decision, trial.everywhere(state))]
        assert stories[0].undelivered == (trial.everybody if decision else set())
    house.hold_deliveries()
    house.restart(coordinator)
    repeat_first = case.ender == "first repeat" or case.point == "driver.before_prepare"
    if repeat_first:
        assert house.execute(id_, trial.token, trial.kind, trial.names) == Answer(True)
    house.make_due()
    house.release_deliveries()
    if decision or repeat_first:
        trial.ended(COMMITTED, {"coordinator", "recovery", "sweeper"}, own_rows=False)
        assert house.execute(id_, trial.token, trial.kind, trial.names) == Answer(True)
    else:
        trial.ended(ABORTED, {"sweeper"})
        again = house.execute(id_, trial.token, trial.kind, trial.names)
        assert not again.ok
        trial.ended(ABORTED, {"sweeper"})


# --- two processes at once --------------------------------------------------------------------------------------------


@cases(
    "two processes at once",
    "driver.after_votes with a participant",
    "driver.after_local_commit with a participant",
    "driver.after_local_commit with the coordinator",
    "driver.after_local_commit with recovery",
    "participant.after_prepare with the coordinator",
    "coordinator.after_fence with a participant",
    "sweep that waits with the coordinator",
    "sweep that was answered with the coordinator",
    enders=("in order", "in reverse"),
)
def test_two_processes_at_once(house: House, trial: Trial, case: Case) -> None:
    """two processes at once | as the rows of both | as the rows of both | as the rows of both

    Whichever of them is started again first.
    """
    point, _, other = case.point.partition(" with ")
    coordinator = house.services["coordinator"]
    dying = {"driver": trial.initiator, "coordinator": coordinator}
    first = dying.get(point.partition(".")[0], trial.victim)
    second = trial.victim if other == "a participant" else coordinator
    pair = [first, second] if case.ender == "in order" else [second, first]
    match case.point:
        case "driver.after_votes with a participant":
            crash_initiator(trial, point)
            second.kill()
            trial.left(None, **trial.everywhere(PREPARED))
            start_again(house, pair)
            house.make_due()
            trial.ended(ABORTED, {"sweeper"})
        case "driver.after_local_commit with recovery":
            house.arm(second, "recovery.after_commit")
            with house.paused(second):
                crash_initiator(trial, point)
                house.release_deliveries()
            house.died_at_it(second)
            trial.left(COMMITTED, undelivered=trial.names, by="recovery", **trial.everywhere(COMMITTED))
            start_again(house, pair)
            house.release_deliveries()
            trial.ended(COMMITTED, {"recovery"})
        case "driver.after_local_commit with a participant" | "driver.after_local_commit with the coordinator":
            crash_initiator(trial, point)
            second.kill()
            assert trial.story.decision == COMMITTED
            start_again(house, pair)
            house.make_due()
            trial.ended(COMMITTED, {"recovery", "sweeper"})
        case "participant.after_prepare with the coordinator":
            house.arm(first, point)
            call = trial.calling()
            house.died_at_it(first)
            second.kill()
            assert trial.story.decision is None
            start_again(house, pair)
            assert call.result() == Answer(True)
            trial.ended(COMMITTED, {"coordinator"})
        case "coordinator.after_fence with a participant":
            trial.leave(decided=False)
            house.arm(first, point)
            house.make_due()
            house.died_at_it(first)
            second.kill()
            trial.left(ABORTED, **trial.everywhere(PREPARED))
            start_again(house, pair)
            house.make_due()
            trial.ended(ABORTED, {"sweeper"})
        case "sweep that waits with the coordinator":
            trial.leave(decided=False)
            with house.locked("identity", "LOCK TABLE twophase.decision IN SHARE MODE") as waiter:
                house.make_due()
                waiter()  # the fence that a sweep has asked for
                first.kill()
                second.kill()
                trial.left(None, **trial.everywhere(PREPARED))
            start_again(house, pair)
            house.make_due()
            trial.ended(ABORTED, {"sweeper"})
        case _:
            trial.leave(decided=False)
            house.arm(first, "sweeper.after_resolve")
            house.make_due()
            house.died_at_it(first)
            second.kill()
            assert trial.story.decision == ABORTED
            assert trial.story.sides[trial.names[-1]].state == PREPARED
            start_again(house, pair)
            house.make_due()
            trial.ended(ABORTED, {"sweeper"})


def start_again(house: House, services: Sequence[Service]) -> None:
    for service in services:
        house.restart(service)


# --- the suite itself -------------------------------------------------------------------------------------------------


def test_the_cases_cover_the_table() -> None:
    """Each row of the documented table has a test that quotes it, and the test's cases contain every pair of a point, a
    kind of write, one or two participants, and who ends it."""
    table = documented()
    assert {*ROWS.of, "either PostgreSQL, any time"} == set(table)
    for crash, row in ROWS.of.items():
        assert row.text.startswith(table[crash]), crash
        assert not row.missing, (crash, row.missing)


def test_every_failpoint_has_a_case() -> None:
    """Nobody can add a point where a process may die without saying how it ends."""
    lines = [
        line
        for path in (processes.ROOT / "tandem").rglob("*.py")
        if path.parent.name != "kafka"  # test_kafka_crashes.py
        for line in path.read_text().splitlines()
        if "failpoint(" in line and not line.startswith(("def ", '"""'))
    ]
    there = {name for line in lines for name in re.findall(r'"([a-z{][a-z_.{}]+\.[a-z]+_[a-z_]+)"', line)}
    by = {name for name in there if "{by.value}" in name}
    there = (there - by) | {name.replace("{by.value}", who) for name in by for who in ("reader", "push", "sweeper")}
    assert len(there) > 20
    tried = {case.point.partition(" ")[0] for row in ROWS.of.values() for case in row.made}
    assert there <= tried, sorted(there - tried)
