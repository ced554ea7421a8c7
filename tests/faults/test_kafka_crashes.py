"""kill -9 at each step of relays and consumers, in real processes with a broker between them, for saga and hybrid.

Whatever dies where: the signup succeeds once it is repeated, and in the end both sides have it, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from uuid import uuid4

import grpc
import pytest

from lab.broker import Broker
from lab.processes import Service
from tests.faults.crash_cases import FULL
from tests.faults.kafka_house import WITHIN_S, House, opened
from tests.support.rules import eventually


@pytest.fixture(scope="module")
def town(new_database: Callable[[str], str], broker: Broker) -> Iterator[House]:
    with opened(new_database, broker) as found:
        yield found


@pytest.fixture
def house(town: House) -> House:
    """With both services running, whatever a test before may have left."""
    for service in (town.profiles, town.identity):
        if service.failpoints or service.died() is not None:
            town.restart(service)
    return town


def crash(house: House, design: str, service: Service, point: str) -> None:
    """Dies at the point, comes back, and all is well."""
    token = f"k{uuid4().hex[:12]}"
    house.choose(design)
    if service is house.profiles:
        eventually(house.has_caught_up, WITHIN_S)
        house.restart(house.profiles, point=point)
        house.signed_up(token, armed=point)
    else:
        house.restart(house.identity, point=point)
        try:
            house.sign_up(token)
        except grpc.RpcError:
            pass  # it may die before it answers
    house.died(service)
    house.restart(service)
    house.whole(token)


def points(*always: str, full: Sequence[str] = ()) -> pytest.MarkDecorator:
    """Those that are tried in any run, and those that are tried in a full one (TANDEM_FULL)."""
    return pytest.mark.parametrize("point", [*always, *(full if FULL else ())])


@points(
    "saga.after_local_commit", "relay.after_publish", "settling.after_local_commit",
    full=[
        "saga.before_local_commit", "relay.after_claim", "relay.after_delete", "consumer.after_poll",
        "settling.before_local_commit", "consumer.after_handle", "consumer.after_commit",
    ],
)  # fmt: skip
def test_identity_dies_in_a_saga(house: House, point: str) -> None:
    """Before its local commit, between it and the broker, and while it takes up what came of it."""
    crash(house, "saga", house.identity, point)


@points(
    "creating.before_local_commit", "creating.after_local_commit", "relay.after_publish",
    full=[
        "consumer.after_poll", "creating.after_inbox", "consumer.after_handle", "consumer.after_commit",
        "relay.after_claim", "relay.after_delete",
    ],
)  # fmt: skip
def test_profiles_dies_in_a_saga(house: House, point: str) -> None:
    """While it takes the event up, and while it tells what came of it."""
    crash(house, "saga", house.profiles, point)


@points("driver.after_local_commit", "driver.after_commit", full=["driver.after_votes"])
def test_identity_dies_in_a_hybrid_signup(house: House, point: str) -> None:
    """Before the decision, between it and the broker, and between the broker and the mark."""
    crash(house, "hybrid", house.identity, point)


@points("recovery.after_commit", full=["recovery.after_claim"])
def test_the_hybrid_relay_dies(house: House, point: str) -> None:
    """Recovery, which publishes what the driver has left: after its claim, and after the broker has it."""
    token = f"k{uuid4().hex[:12]}"
    house.choose("hybrid")
    house.restart(house.identity, point="driver.after_local_commit")
    with pytest.raises(grpc.RpcError):
        house.sign_up(token)
    house.died(house.identity)
    house.restart(house.identity, point=point)
    house.died(house.identity)
    house.restart(house.identity)
    house.whole(token)


@points(
    "participant.after_commit", "consumer.after_handle",
    full=["consumer.after_poll", "participant.before_publish", "consumer.after_commit"],
)  # fmt: skip
def test_profiles_dies_over_a_decision(house: House, point: str) -> None:
    """While it consumes a Commit."""
    crash(house, "hybrid", house.profiles, point)
