"""R13: processes whose clocks are an hour off. Nothing changes: ages come from one database's clock, and the time in an
id is looked at in days.

Real processes; each is told another time by the C library (libfaketime), so also in gRPC and in the ids it makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tandem.runtime.identifiers import id_time_ms
from tests.faults.crash_house import COMMITTED, EVER, Answer, House, built, eventually
from tests.faults.initiator import Kind

HOUR_S = 3_600

SHIFTS = {
    "identity": HOUR_S,
    "initiator": -HOUR_S,
    "profiles": HOUR_S,
    "second": -HOUR_S,
    "coordinator": -HOUR_S,
}

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")


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
    house.arm(service, point)
    call = house.calling(
        lambda: house.sign_up(token, Kind.BOTH) if who == "identity" else house.initiate(token, Kind.BOTH)
    )
    house.died_at_it(service)
    assert not call.result().ok
    (left,) = [story for story in house.stories(EVER).values() if "prepared" in story.states.values()] or [None]
    house.restart(service)
    if point == "driver.after_votes":
        assert left is not None, "swept before its time: a clock that is an hour ahead made it due"
        house.make_due()
    house.settled()
    assert house.split() == []
    ended = [story for story in house.stories(EVER).values() if story.decision == COMMITTED]
    assert ended


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
