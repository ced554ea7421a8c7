"""Rolling restarts with SIGTERM: two processes of a kind behind one target, one after the other, under load.

No call fails for whoever uses the product's own clients, and no transaction is lost: that is counted by SQL.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID, uuid4

import grpc
import pytest
from uuid_utils.compat import uuid7

from identity_stub.client import Identity
from lab.processes import Service
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.channel import open_channel
from tandem.runtime.errors import TandemError
from tandem.runtime.status import from_rpc_error
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, transaction_pb2
from tests.faults import initiator
from tests.faults.crash_house import ABORTED, COMMITTED, COORDINATOR, PARTICIPANTS, House, built, eventually
from tests.faults.initiator import Kind

KINDS = ("profiles", "coordinator", "identity")
ROUNDS = 2
AT_LEAST = 5
"""Calls of each kind between two restarts."""


@dataclass
class Pairs:
    """The house with two processes of each kind."""

    house: House
    of: dict[str, list[Service]]

    def target(self, kind: str) -> str:
        """Both, behind one gRPC name."""
        return "ipv4:" + ",".join(service.address for service in self.of[kind])


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    with built() as house:
        made = Pairs(house, {kind: [house.services[kind], house.another(kind)] for kind in KINDS})
        second = house.services["second"]
        participants = f"profiles={made.target('profiles')},second={second.address}"
        coordinators = f"{COORDINATOR}={made.target('coordinator')}"
        told = {
            "PROFILES_COORDINATORS": coordinators,
            "COORDINATOR_PARTICIPANTS": participants,
            "IDENTITY_PARTICIPANTS": participants,
        }
        for service in (*(each for pair in made.of.values() for each in pair), second):
            service.environment = {**service.environment, **{k: told[k] for k in told if k in service.environment}}
            house.restart(service)
        yield made


def restarted(service: Service) -> None:
    """SIGTERM, the end of its drain, and another in its place."""
    service.stop()
    assert service.died() == 0, f"{service.module} did not end by itself"
    service.start()


Call = Callable[[], object]


@dataclass
class Load:
    """Clients that each make their call again and again, until it is over."""

    stopping: threading.Event = field(default_factory=threading.Event)
    made: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clients(self, kind: str, call: Call, many: int) -> None:
        """So many of a kind, from now on."""
        for _ in range(many):
            thread = threading.Thread(target=self._run, args=(kind, call), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, kind: str, call: Call) -> None:
        while not self.stopping.is_set():
            try:
                call()
            except (grpc.RpcError, TandemError) as caught:
                error = from_rpc_error(caught) if isinstance(caught, grpc.RpcError) else caught
                with self._lock:
                    self.failed.append(f"{kind}: {error.reason}: {error.message}")
            else:
                with self._lock:
                    self.made[kind] += 1

    def further(self, many: int) -> None:
        """Waits until each kind has made so many calls more."""
        before = Counter(self.made)
        kinds = list(before)
        eventually(
            lambda: self.failed or all(self.made[kind] - before[kind] >= many for kind in kinds),
            lambda: f"{before}, and then {self.made}",
        )

    def end(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


def test_nobody_notices_a_rolling_restart(pairs: Pairs) -> None:
    """Signups, reads and Execute go on while each of six processes drains and comes back, twice: no call fails, each
    signup that was answered is there on both sides, and nothing else is."""
    house = pairs.house
    mark = f"r{uuid4().hex[:8]}"
    numbers = count()
    executed: list[UUID] = []
    load = Load()
    with (
        Identity(pairs.target("identity")) as identity,
        open_profiles(pairs.target("profiles")) as profiles,
        open_channel(pairs.target("coordinator")) as coordinator,
    ):
        reading = profiles_service_pb2_grpc.ProfilesServiceStub(profiles)
        executing = coordinator_pb2_grpc.CoordinatorServiceStub(coordinator)

        def sign_up() -> None:
            token = f"{mark}{next(numbers)}"
            person = initiator.person_of(token)
            person.person_id = ""
            request = identity_pb.CreateUserRequest(request_id=token, email=f"{token}@example.org", person=person)
            identity.call(identity.stub.CreateUser, request)

        def read() -> None:
            found = reading.GetPerson(profiles_pb.GetPersonRequest(person_id=known), timeout=20).person
            assert found.name.display_name == "owner"

        def execute() -> None:
            key = transaction_pb2.TransactionKey(coordinator=COORDINATOR, transaction_id=str(uuid7()))
            request = coordinator_pb2.ExecuteRequest(key=key)
            branch = request.branches.add(participant="profiles")
            branch.writes.add().Pack(initiator.person_of(f"{mark}{next(numbers)}"), deterministic=True)
            executing.Execute(request, timeout=30)
            executed.append(UUID(key.transaction_id))

        known = str(house.one("profiles", "SELECT person_id FROM profiles.person WHERE display_name = 'owner'"))
        for kind, call, many in (("sign up", sign_up, 8), ("read", read, 4), ("execute", execute, 4)):
            load.clients(kind, call, many)
        eventually(lambda: load.failed or len(load.made) == 3, lambda: str(load.made))
        try:
            for _ in range(ROUNDS):
                for service in (each for pair in pairs.of.values() for each in pair):
                    load.further(AT_LEAST)
                    restarted(service)
            load.further(AT_LEAST)
        finally:
            load.end()
    print(load.made)
    assert load.failed == []
    house.settled()
    assert house.split() == []
    like = {"mark": f"{mark}%"}
    users = house.one("identity", "SELECT count(*) FROM identity.users WHERE email LIKE :mark", **like)
    persons = "SELECT count(*) FROM profiles.person WHERE display_name LIKE :mark AND state = 'active'"
    assert users == load.made["sign up"]
    assert house.one("profiles", persons, **like) == load.made["sign up"] + load.made["execute"]
    stories = house.stories(min(executed))
    assert {stories[id_].decision for id_ in executed} == {COMMITTED}


def test_transactions_in_flight_outlive_it(pairs: Pairs) -> None:
    """What is prepared and what is decided and undelivered, at two participants, is ended after every process has been
    replaced: the decided ones committed everywhere, the others aborted, and none is lost."""
    house = pairs.house
    many = 6
    since = uuid7()
    for number in range(2 * many):
        house.leave(f"f{uuid4().hex[:12]}", Kind.BOTH, PARTICIPANTS, decided=number % 2 == 0)
    left = house.stories(since)
    assert Counter(story.decision for story in left.values()) == {COMMITTED: many, None: many}
    everybody: Sequence[Service] = [*(each for pair in pairs.of.values() for each in pair), house.services["second"]]
    for service in everybody:
        restarted(service)
    assert house.stories(since).keys() == left.keys()
    house.make_due()
    house.release_deliveries()
    house.settled(since)
    assert house.split(since) == []
    ended = house.stories(since)
    assert ended.keys() == left.keys()
    for id_, story in ended.items():
        wanted = COMMITTED if left[id_].decision == COMMITTED else ABORTED
        assert (story.decision, set(story.states.values()), len(story.states)) == (wanted, {wanted}, 2)
