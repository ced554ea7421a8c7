"""R13: processes whose clocks are an hour off. Nothing changes: ages come from one database's clock, and the time in an
id is looked at in days.

Real processes; each is told another time by the C library (libfaketime), so also in gRPC and in the ids it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from tandem.runtime.identifiers import id_time_ms
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc
from tests.faults import initiator
from tests.faults.crash_house import (
    ABORTED,
    COMMITTED,
    COORDINATOR,
    EVER,
    PARTICIPANTS,
    PREPARED,
    Answer,
    House,
    built,
    eventually,
)
from tests.faults.initiator import TIMES, Kind
from tests.support.house import new_id
from tests.support.required import needs
from tests.support.rules import Answer as Told
from tests.support.rules import Wire, asking, channel_to, key_of

HOUR_S = 3_600
DAY_S = 24 * HOUR_S
SHORTLY_S = 600
"""Less than any clock here is off by."""

SHIFTS = {
    "identity": HOUR_S,
    "initiator": -HOUR_S,
    "profiles": HOUR_S,
    "second": -HOUR_S,
    "coordinator": -HOUR_S,
}

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

pytestmark = needs("clocks", LIBRARY is not None, "libfaketime is not installed")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """All five processes, each with its own idea of the time; the databases know better."""
    with built() as house:
        for name, service in house.services.items():
            service.environment |= {
                "LD_PRELOAD": str(LIBRARY),
                "FAKETIME": f"{SHIFTS[name]:+d}",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        house.restart(*house.services.values())
        yield house


def test_the_clocks_are_off(house: House) -> None:
    """What makes this a test: the ids that two initiators make lie an hour before and after the database's time."""
    assert house.sign_up("early", Kind.PERSON) == Answer(True)
    assert house.initiate("late", Kind.PERSON) == Answer(True)
    now_ms = house.one("identity", "SELECT extract(epoch FROM now())::float8 * 1000")
    off = [(id_time_ms(id_) - now_ms) / 1000 for id_ in house.stories(EVER)]
    assert any(HOUR_S - 300 < shift < HOUR_S + 300 for shift in off)
    assert any(-HOUR_S - 300 < shift < -HOUR_S + 300 for shift in off)


@pytest.mark.parametrize("kind", Kind)
def test_everything_goes_on(house: House, kind: Kind) -> None:
    """Signups of every kind by both; their acknowledgements; nothing is left and nothing is split."""
    assert house.sign_up(f"plain-{kind}", kind) == Answer(True)
    assert house.initiate(f"two-{kind}", kind) == Answer(True)
    house.settled()
    assert house.split() == []


@pytest.mark.parametrize("who", ["identity", "initiator"])
@pytest.mark.parametrize("point", ["driver.after_votes", "driver.after_local_commit"])
def test_crashes_are_ended(house: House, who: str, point: str) -> None:
    """In doubt, undecided or decided: not before it is due, and then by the sweepers and recovery as ever."""
    token, service = f"{who}-{point.partition('.')[2]}".replace("_", "-"), house.services[who]
    earlier = set(house.stories(EVER))
    house.arm(service, point)
    call = house.calling(
        lambda: house.sign_up(token, Kind.BOTH) if who == "identity" else house.initiate(token, Kind.BOTH)
    )
    house.died_at_it(service)
    assert not call.result().ok
    (mine,) = house.stories(EVER).keys() - earlier
    committed = point == "driver.after_local_commit"
    if not committed:
        assert set(house.stories(EVER)[mine].states.values()) == {PREPARED}, "swept before its time"
    house.restart(service)
    if not committed:
        house.make_due()
    house.settled()
    assert house.split() == []
    story = house.stories(EVER)[mine]
    assert story.decision == (COMMITTED if committed else ABORTED)
    assert set(story.states.values()) == {story.decision}
    assert story.by <= ({"recovery", "sweeper"} if committed else {"sweeper"})


def test_what_is_young_is_left_alone(house: House) -> None:
    """Neither a sweeper an hour ahead nor one an hour behind takes a fresh transaction for an old one."""
    house.leave("young", Kind.PERSON, ("profiles", "second"), decided=False)
    before = {id_: story for id_, story in house.stories(EVER).items() if "prepared" in story.states.values()}
    assert len(before) == 1
    sweeps = timedelta(seconds=1)  # five of them
    until = house.one("profiles", "SELECT now()") + sweeps
    eventually(lambda: house.one("profiles", "SELECT now()") > until, "time passes")
    assert {id_: house.stories(EVER)[id_].states for id_ in before} == {
        id_: story.states for id_, story in before.items()
    }
    house.make_due()
    house.settled()
    assert house.split() == []


def prepare(house: House, name: str, id_: UUID, token: str) -> Told:
    """A Prepare of a person at one participant."""
    log_id = house.one("identity", "SELECT log_id FROM twophase.log WHERE current")
    request = asking(id_, coordinator=COORDINATOR, log_id=log_id)
    for write in initiator.writes(Kind.PERSON, token):
        request.writes.add().Pack(write, deterministic=True)
    return Wire(int(house.services[name].address.rpartition(":")[2])).ask(request)


def resolve(house: House, id_: UUID) -> int:
    """Resolve with fence: the outcome."""
    request = coordinator_pb2.ResolveRequest(participant="profiles", fence=True)
    log_id = house.one("identity", "SELECT log_id FROM twophase.log WHERE current")
    request.items.add(key=key_of(id_, COORDINATOR), log_id=str(log_id), digest=bytes(32))
    port = int(house.services["coordinator"].address.rpartition(":")[2])
    (result,) = coordinator_pb2_grpc.CoordinatorServiceStub(channel_to(port)).Resolve(request, timeout=20).results
    return int(result.outcome)


EXPIRED = coordinator_pb2.ResolveResult.OUTCOME_EXPIRED
UNSPECIFIED = coordinator_pb2.ResolveResult.OUTCOME_UNSPECIFIED
EDGES = {
    "expired": (TIMES.retention_s - DAY_S, "TRANSACTION_EXPIRED"),
    "ahead": (-float(DAY_S), "TRANSACTION_AHEAD"),
}


@pytest.mark.parametrize("edge", EDGES)
def test_an_id_is_as_old_as_the_databases_say(house: House, edge: str) -> None:
    """R13, R14: "Ages come from one database's now()": what is ten minutes within the limit is taken, what is ten
    minutes beyond it is refused everywhere, though clocks are an hour off both ways."""
    edge_s, refusal = EDGES[edge]
    towards_now = -1 if edge == "expired" else 1
    within_s, beyond_s = edge_s + towards_now * SHORTLY_S, edge_s - towards_now * SHORTLY_S
    fine = new_id(age_s=within_s)
    assert house.execute(fine, f"{edge}-within", Kind.PERSON, PARTICIPANTS) == Answer(True)
    assert house.stories(EVER)[fine].decision == COMMITTED
    for name in PARTICIPANTS:
        refused = new_id(age_s=beyond_s)
        assert prepare(house, name, refused, f"{edge}-{name}").reason == refusal
        assert refused not in house.stories(EVER)
    refused = new_id(age_s=beyond_s)
    answer = house.execute(refused, f"{edge}-beyond", Kind.PERSON, PARTICIPANTS)
    assert answer.why.startswith(refusal), answer
    assert resolve(house, refused) == (EXPIRED if edge == "expired" else UNSPECIFIED)
    assert refused not in house.stories(EVER), "nothing is written, not even by a fence"
    house.settled()
    assert house.split() == []


@pytest.mark.parametrize("name", PARTICIPANTS)
def test_a_push_waits_for_its_time(house: House, name: str) -> None:
    """R10: a holder younger than `push_after` isn't fenced by a participant an hour ahead; an old one is by any."""
    token = f"pushed-{name}"
    earlier = set(house.stories(EVER))
    house.leave(token, Kind.PERSON, (name,), decided=False)
    (holder,) = house.stories(EVER).keys() - earlier
    assert prepare(house, name, new_id(), token).reason == "HELD"
    assert (house.stories(EVER)[holder].decision, house.stories(EVER)[holder].states) == (None, {name: PREPARED})
    house.make_old()
    mine = new_id()
    assert prepare(house, name, mine, token).ok
    stories = house.stories(EVER)
    assert (stories[holder].decision, stories[holder].states) == (ABORTED, {name: ABORTED})
    assert stories[holder].by == {"push"}
    assert stories[mine].states == {name: PREPARED}
    house.make_due()
    house.settled()
    assert house.split() == []


@pytest.mark.parametrize("name", PARTICIPANTS)
@pytest.mark.parametrize("decided", [True, False], ids=["committed", "undecided"])
def test_a_reader_asks_whatever_the_time(house: House, name: str, decided: bool) -> None:
    """R10: a reader rolls forward what is committed; what is undecided is not found, and stays as it is."""
    token = f"read-{name}-{'committed' if decided else 'undecided'}"
    earlier = set(house.stories(EVER))
    house.leave(token, Kind.PERSON, (name,), decided=decided)
    (mine,) = house.stories(EVER).keys() - earlier
    assert house.stories(EVER)[mine].states == {name: PREPARED}
    answer = house.read(name, person_id=initiator.person_of(token).person_id)
    story = house.stories(EVER)[mine]
    if decided:
        assert answer.ok, answer
        assert story.states == {name: COMMITTED}
        assert story.by == {"reader"}
    else:
        assert answer.why.startswith("NOT_FOUND"), answer
        assert (story.decision, story.states) == (None, {name: PREPARED})
    house.make_due()
    house.release_deliveries()
    house.settled()
    assert house.split() == []
