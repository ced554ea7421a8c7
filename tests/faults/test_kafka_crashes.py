"""kill -9 at each step of relays and consumers, in real processes with a broker between them, for saga and hybrid.

Whatever dies where: the signup succeeds once it is repeated, and in the end both sides have it, once.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

import identity_stub.app
import profiles_server.app
from lab import processes
from lab.broker import Broker
from lab.processes import ProcessFailed, Service
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.runtime.database import create_engine
from tests.faults.crash_cases import FULL
from tests.faults.crash_house import identity_client
from tests.faults.initiator import business_of, person_of
from tests.faults.nursery import Child
from tests.support.rules import eventually

WITHIN_S = 40.0

COUNTS = {
    "identity": (
        "SELECT (SELECT count(*) FROM identity.users WHERE email = :email),"
        " (SELECT count(*) FROM identity.businesses JOIN identity.requests USING (business_id)"
        "  WHERE request_id = :token),"
        " (SELECT count(*) FROM identity.outbox),"
        " (SELECT count(*) FROM twophase.decision WHERE undelivered <> '{}')"
    ),
    "profiles": (
        "SELECT (SELECT count(*) FROM profiles.person WHERE display_name = :token),"
        " (SELECT count(*) FROM profiles.business WHERE legal_name = :token),"
        " (SELECT count(*) FROM profiles.business_person JOIN profiles.business USING (business_id)"
        "  WHERE legal_name = :token),"
        " (SELECT count(*) FROM profiles.audit_event JOIN profiles.person ON entity_id = person_id::text"
        "  WHERE display_name = :token),"
        " (SELECT count(*) FROM profiles.outbox),"
        " (SELECT count(*) FROM profiles.person WHERE state <> 'active')"
    ),
}


@dataclass
class House:
    """A broker, identity (which serves its coordinator, too) and profiles, each with a database."""

    broker: Broker
    identity: Service
    profiles: Service
    engines: dict[str, Engine]

    def choose(self, design: str) -> None:
        """Has identity start with this design from now on; again, where it runs with another."""
        if self.identity.environment["IDENTITY_PROVISIONING"] != design:
            self.identity.environment = {**self.identity.environment, "IDENTITY_PROVISIONING": design}
            self.restart(self.identity)

    def restart(self, service: Service, *, point: str = "") -> None:
        """Starts it again, armed or not. An armed one may die before it says that it is ready."""
        service.kill()
        service.failpoints = f"{point}=kill" if point else ""
        try:
            service.start()
        except ProcessFailed:
            if not point:
                raise

    def died(self, service: Service) -> None:
        """Waits until the armed service has come by its failpoint."""
        code = eventually(lambda: service.died() is not None and (service.died(),), WITHIN_S)
        assert code == (signal.SIGKILL,), f"ended by itself; log:\n{processes.tail(service.log)}"

    def sign_up(self, token: str) -> pb.SignUpResponse:
        """One call, that is not repeated."""
        person, business = person_of(token), business_of(token)
        person.person_id = business.business_id = ""
        del business.people[:]
        request = pb.SignUpRequest(request_id=token, email=f"{token}@example.org", person=person, business=business)
        with identity_client(self.identity.address) as stub:
            answer: pb.SignUpResponse = stub.SignUp(request, timeout=20, wait_for_ready=True)
            return answer

    def signed_up(self, token: str, *, armed: str = "") -> pb.SignUpResponse:
        """As a client does it: repeated with the same request id until it is answered.

        armed: what profiles is armed with. Something older may make it die of that before it has voted.
        """

        def call() -> pb.SignUpResponse | None:
            try:
                return self.sign_up(token)
            except grpc.RpcError:
                if armed and self.profiles.died() is not None:
                    self.restart(self.profiles, point=armed)
                return None

        found: pb.SignUpResponse = eventually(call, WITHIN_S)
        return found

    def status(self, user_id: str) -> int:
        with identity_client(self.identity.address) as stub:
            return int(stub.GetUser(pb.GetUserRequest(user_id=user_id), timeout=10).user.profile_status)

    def counts(self, side: str, token: str) -> tuple[int, ...]:
        with self.engines[side].connect() as connection:
            values = {"token": token, "email": f"{token}@example.org"}
            return tuple(connection.execute(sa.text(COUNTS[side]), values).one())

    def whole(self, token: str) -> None:
        """Both sides have it once, it is told, and nothing is left under way."""
        answer = self.signed_up(token)
        eventually(
            lambda: (
                self.counts("identity", token) == (1, 1, 0, 0)
                and self.counts("profiles", token) == (1, 1, 1, 1, 0, 0)
                and self.status(answer.user.user_id) == pb.PROFILE_STATUS_ACTIVE
            ),
            WITHIN_S,
        )


@pytest.fixture(scope="module")
def town(new_database: Callable[[str], str], broker: Broker) -> Iterator[House]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-kafka-crash-")))
        urls = {name: new_database(name) for name in ("identity", "profiles")}
        engines = {name: create_engine(url) for name, url in urls.items()}
        for name, app in (("identity", identity_stub.app), ("profiles", profiles_server.app)):
            stack.callback(engines[name].dispose)
            for migrations in app.MIGRATIONS:
                migrations.upgrade(engines[name])
        addresses = {name: f"127.0.0.1:{processes.free_port()}" for name in urls}
        shared = {
            "METRICS_LISTEN": "",
            "KAFKA_SERVERS": broker.servers,
            "KAFKA_PREFIX": f"t{uuid4().hex[:10]}",
            "KAFKA_PARTITIONS": "2",
            "KAFKA_INSTANCE": "only",  # else a restarted one waits for the session of the dead one to end
            "RELAY_INTERVAL_S": "0.05",
            "PUSH_AFTER_S": "8",
            "TTL_S": "10",
        }

        def service(name: str, module: str, prefix: str, **settings: str) -> Service:
            (folder / name).mkdir()
            told = {**shared, "DATABASE_URL": urls[name], "LISTEN": addresses[name], **settings}
            environment = {f"{prefix}_{key}": value for key, value in told.items()}
            made = Child(module, addresses[name], environment, folder / name)
            stack.callback(made.kill)
            return made

        identity = service(
            "identity", "identity_stub", "IDENTITY", PARTICIPANTS=f"profiles={addresses['profiles']}",
            SERVE_COORDINATOR="true", RECOVERY_INTERVAL_S="0.2", PROVISIONING="saga",
        )  # fmt: skip
        profiles = service(
            "profiles", "profiles_server", "PROFILES", COORDINATORS=f"identity={addresses['identity']}",
            SWEEP_INTERVAL_S="0.5",
        )  # fmt: skip
        house = House(broker, identity, profiles, engines)
        house.restart(profiles)
        house.restart(identity)
        yield house
        for one in (identity, profiles):
            assert "@example.org" not in one.log.read_text(), "personal data in a log"


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
