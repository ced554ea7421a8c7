"""The torture's plan and its figures: what every run meets, and how time in doubt and recovery are counted."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

import tandem
from identity_stub.client import CALL_S
from lab.torture import doubt
from lab.torture.designs import designs
from lab.torture.faults import Family, Fault
from lab.torture.history import Answer
from lab.torture.house import SERVICES, TTL_S
from lab.torture.naive_profiles import AGE_S
from lab.torture.plan import (
    KEEPALIVE_S,
    LANES,
    LONG_RUN_S,
    LONGEST_PAUSE_S,
    PATIENCE_S,
    POINTS,
    RARE_POINTS,
    TCP_USER_TIMEOUT_S,
    TWO_PHASE,
    Step,
    Targets,
    steps,
)
from lab.torture.report import recovery_s
from tandem.runtime.server import DEFAULT_DEADLINE_S
from tests.support.torture_scene import Scene, at, since

SOURCES = Path(tandem.__file__).parent


LATER = {name: design.targets for name, design in designs().items() if design.targets is not TWO_PHASE}
"""The other designs' targets."""


def first(seed: int, lane: int, count: int, run_s: float = 30.0, targets: Targets = TWO_PHASE) -> list[Step]:
    """The beginning of a plan."""
    return list(itertools.islice(steps(seed, lane, run_s=run_s, targets=targets), count))


# --- the plan -------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_of_its_seed_alone() -> None:
    """The same seed repeats it, for the product and for control groups; another one makes another."""
    for lane in range(LANES):
        assert first(1, lane, 50) == first(1, lane, 50)
        assert first(1, lane, 50) != first(2, lane, 50)
    assert first(1, 0, 50) != first(1, 1, 50)


@pytest.mark.parametrize("seed", range(20))
def test_every_plan_begins_with_one_of_each_family(seed: int) -> None:
    """Also within the half minute of a short run: lane 0's pause outlasts the ttl, lane 1 does the rest meanwhile."""
    (pause,), rest = first(seed, 0, 1), first(seed, 1, 5)
    assert pause.what == "pause"
    assert TTL_S < pause.seconds < 20
    assert {step.family for step in (pause, *rest)} == set(TWO_PHASE.families) == set(Family) - {Family.BROKER}
    assert sum(step.calm_s + step.seconds for step in rest) < 15
    assert not set(pause.victims) & {victim for step in rest for victim in step.victims}


@pytest.mark.parametrize("design", LATER)
def test_every_plan_of_another_design_begins_with_one_of_each_family_of_its_own(design: str) -> None:
    """While somebody stands still for a while identity dies between the two sides; the broker is among the victims."""
    targets = LATER[design]
    some, rest = first(1, 0, 3 if targets.has_broker else 1, targets=targets), first(1, 1, 5, targets=targets)
    assert {step.family for step in (*some, *rest)} == set(targets.families)
    assert sum(step.calm_s + step.seconds for step in some) < 15
    assert rest[1].point is not None
    assert rest[1].point.name == targets.dies_at
    assert not {some[0].victims[0]} & {victim for step in rest for victim in step.victims}


@pytest.mark.parametrize("design", LATER)
def test_a_plan_breaks_what_there_is_and_all_of_it(design: str) -> None:
    """Every victim of the design within a long run, and none that it does not have."""
    targets = LATER[design]
    found = {
        victim for lane in range(LANES) for step in first(1, lane, 1_000, targets=targets) for victim in step.victims
    }
    assert found == set(targets.victims)


def test_long_runs_begin_with_a_pause_that_is_longer_than_every_timeout() -> None:
    """SIGSTOP, also longer than every timeout: of the product, of gRPC's and PostgreSQL's connections, of clients."""
    assert first(1, 0, 1, LONG_RUN_S)[0].seconds == LONGEST_PAUSE_S
    longest = max(TCP_USER_TIMEOUT_S, KEEPALIVE_S, PATIENCE_S, CALL_S, DEFAULT_DEADLINE_S, TTL_S)
    assert longest + 5 <= LONGEST_PAUSE_S
    assert all(step.seconds < LONGEST_PAUSE_S for step in first(1, 0, 500))
    assert any(step.seconds == LONGEST_PAUSE_S for step in first(1, 0, 500, LONG_RUN_S)[1:])


def test_the_timeouts_without_a_name_are_still_the_products() -> None:
    """They are copied, so a change there must show here."""
    database, channel = ((SOURCES / "runtime" / name).read_text() for name in ("database.py", "channel.py"))
    assert f'"tcp_user_timeout": {TCP_USER_TIMEOUT_S * 1000:_.0f}' in database
    found = re.findall(r'"grpc\.keepalive_(?:time|timeout)_ms", ([\d_]+)', channel)
    assert sum(map(int, found)) == KEEPALIVE_S * 1000


def test_every_failpoint_of_the_product_is_a_point() -> None:
    """Purge's apart: nothing is old enough to be purged in a run."""
    named = set()
    for path in SOURCES.rglob("*.py"):
        named |= set(re.findall(r'"((?:driver|participant|sweeper|coordinator|recovery)\.\w+)"', path.read_text()))
    named |= {f"{who}.after_{what}" for who in ("sweeper", "reader", "push") for what in ("resolve", "apply")}
    points = {point.name for point in (*POINTS, *RARE_POINTS)}
    assert points <= named
    assert {name for name in named if ".after_" in name or ".before_" in name} == points
    assert {point.service for point in (*POINTS, *RARE_POINTS)} == set(SERVICES)


def test_every_failpoint_of_the_other_designs_is_a_point_of_one_of_them() -> None:
    """Again purge's apart, and those of the migration, which no design runs by itself."""
    named: set[str] = set()
    for package in ("tandem/kafka", "identity_stub", "profiles_server"):
        for path in (SOURCES.parent / package).rglob("*.py"):
            if "migration" not in path.parts:
                named |= set(re.findall(r'failpoint\("(\w+\.\w+)"', path.read_text()))
    points = {point.name for targets in LATER.values() for point in targets.points}
    assert {name for name in named if not name.startswith("purge.")} == points - {point.name for point in POINTS}


@pytest.mark.parametrize("design", LATER)
def test_a_point_is_of_a_service_that_the_design_has(design: str) -> None:
    """Nobody waits for the death of a process that is not there."""
    targets = LATER[design]
    assert {point.service for point in (*targets.points, *targets.rare_points)} <= set(targets.services)


def test_a_step_holds_whom_it_breaks() -> None:
    """A death that needs identity to leave something in doubt first has identity among its victims."""
    for step in first(3, 1, 2_000):
        if step.point is not None:
            assert step.point.service in step.victims
            assert not step.point.after or "identity" in step.victims
        assert len(set(step.victims)) == len(step.victims) > 0


def test_the_sweeper_of_the_control_group_waits_for_the_ttl() -> None:
    """No straw man: it deletes what has been in doubt for as long as the product's sweeper waits, and no sooner."""
    assert AGE_S == TTL_S


# --- time in doubt --------------------------------------------------------------------------------------------------


def one(*faults: Fault, decided: bool, begun: float, resolved: float, by: str = "sweeper") -> doubt.Ended:
    """One transaction, prepared at `begun` (and decided then), resolved at `resolved`."""
    scene = Scene()
    id_ = scene.transaction("create_user", uuid4(), None, staged=1)
    row, decision = scene.state.prepared[id_], scene.state.decisions[id_]
    scene.state.prepared[id_] = replace(row, prepared_at=at(begun), resolved_at=at(resolved), resolved_by=by)
    outcome = "committed" if decided else "aborted"
    scene.state.decisions[id_] = replace(decision, outcome=outcome, decided_at=at(begun if decided else resolved))
    (ended,) = doubt.ended(scene.state, faults, since)
    return ended


def test_a_decided_one_is_due_at_its_decision() -> None:
    """Without a fault nothing is taken off."""
    assert one(decided=True, begun=1, resolved=2.5).took_s == pytest.approx(1.5)


def test_an_undecided_one_is_due_once_its_ttl_is_over() -> None:
    """Whoever fenced it: the initiator had not decided."""
    ended = one(decided=False, begun=1, resolved=1 + TTL_S + 0.7)
    assert (ended.decided, ended.early) == (False, False)
    assert ended.took_s == pytest.approx(0.7)


def test_an_undecided_one_that_ended_before_it_was_due_is_counted_apart() -> None:
    """A push, or the driver itself: its 0 s is no figure."""
    assert one(decided=False, begun=1, resolved=9, by="push").early


def test_nobody_is_late_while_a_fault_lasts() -> None:
    """Due is the end of the last fault that overlaps the time in doubt: after the restart, as the goal has it."""
    faults = [
        Fault(0, "kill -9", "profiles", Family.KILL, 1, until=4),
        Fault(3, "SIGSTOP", "coordinator", Family.PAUSE, until=6),
        Fault(50, "kill -9", "profiles", Family.KILL, 1, until=60),
    ]
    ended = one(*faults, decided=True, begun=1, resolved=7.5)
    assert ended.hit
    assert ended.took_s == pytest.approx(1.5)
    assert not ended.during
    assert one(faults[1], decided=True, begun=1, resolved=5).during


def test_a_fault_before_or_between_clients_explains_nothing() -> None:
    """It did not keep anybody from ending it."""
    faults = [
        Fault(0, "kill -9", "profiles", Family.KILL, 1, until=0.5),
        Fault(0, "silence", "clients to profiles", Family.WIRE, until=6),
    ]
    ended = one(*faults, decided=True, begun=1, resolved=4)
    assert (ended.hit, ended.took_s) == (False, pytest.approx(3))


def test_the_goals_say_whether_they_are_met() -> None:
    """Decided p99 below 2 s, undecided within 2 s of being due; what was easy does not hide what was late."""
    quick = doubt.Ended(True, "coordinator", 0.01)
    during = doubt.Ended(True, "coordinator", 0.0, hit=True, during=True)
    slow = doubt.Ended(True, "recovery", 2.5, hit=True)
    due = doubt.Ended(False, "sweeper", 1.2, hit=True)
    early = doubt.Ended(False, "push", 0.0, early=True)
    decided, undecided = doubt.goals([quick, during] * 1_000 + [slow, due, early])
    assert decided[1:] == ("p99 < 2 s", "2.500 s", "NOT met")
    assert undecided[1:] == ("max < 2 s", "1.200 s", "met")
    assert [row[3] for row in doubt.goals([quick])] == ["none of them"] * 2


# --- recovery -------------------------------------------------------------------------------------------------------


def test_recovery_is_counted_from_the_restart_to_a_signup_that_began_after_it() -> None:
    """One that was under way already proves nothing, nor does a read."""
    scene = Scene()
    fault = Fault(0.0, "kill -9", "identity", Family.KILL, 1, until=1.0)
    scene.now = 0.5
    under_way = scene.user("a")
    under_way.ended = 1.2
    scene.now = 1.1
    scene.read("read_person", under_way.told["person_id"], value="a")
    scene.now = 3.0
    refused = scene.call("create_user", Answer.REFUSED, name="b", email="", duplicate="True")
    scene.now = 4.0
    later = scene.user("c")
    assert recovery_s(scene.calls, fault) == pytest.approx(later.over - 1.0)
    assert recovery_s([under_way, refused], fault) is None
    assert recovery_s(scene.calls, replace(fault, kills=0)) is None
