"""Identity and profiles as real processes with a broker between them, for the tests that kill one of the three."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
import sqlalchemy as sa
from confluent_kafka import Consumer, TopicPartition
from sqlalchemy.engine import Engine

import identity_stub.app
import profiles_server.app
from lab import processes
from lab.broker import Broker
from lab.processes import ProcessFailed, Service
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.runtime.database import create_engine
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

    def has_caught_up(self) -> bool:
        """Whether profiles has committed all that there is: else the next one takes something older up first."""
        prefix = self.profiles.environment["PROFILES_KAFKA_PREFIX"]
        for topic, group in (("profiles.requested", "profiles.requested"), ("commits.profiles", "profiles.commits")):
            reach = {"bootstrap.servers": self.broker.servers, "group.id": f"{prefix}.{group}", "log_level": 0}
            with closing(Consumer(reach)) as consumer:
                name = f"{prefix}.{topic}"
                partitions = consumer.list_topics(name, timeout=10).topics[name].partitions
                places = [TopicPartition(name, number) for number in partitions]
                for place in consumer.committed(places, timeout=10):
                    _, high = consumer.get_watermark_offsets(place, timeout=10)
                    if max(place.offset, 0) < high:
                        return False
        return True

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


@contextmanager
def opened(new_database: Callable[[str], str], broker: Broker, *, ttl_s: int = 10) -> Iterator[House]:
    """Everything but the broker, which runs already; identity with the saga at first. ttl_s: when a sweeper asks."""
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
            "PUSH_AFTER_S": str(ttl_s - 2),
            "TTL_S": str(ttl_s),
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
