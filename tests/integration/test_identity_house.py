"""What the tests of identity stand on: identity and profiles in one process, over gRPC, each on its own database."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

import grpc
import sqlalchemy as sa
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from identity_stub import ids
from identity_stub.facts import Facts
from identity_stub.provisioning import Provisioning
from identity_stub.provisioning.two_phase import TwoPhase
from identity_stub.servicer import IdentityServicer
from identity_stub.signup import SignUps
from identity_stub.tables import MIGRATIONS as IDENTITY_MIGRATIONS
from profiles_server.profiles import ProfilesResource
from profiles_server.resolving import Reader
from profiles_server.servicer import ProfilesServicer
from profiles_server.tables import MIGRATIONS as PROFILES_MIGRATIONS
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.servicer import RESERVED, CoordinatorServicer
from tandem.coordinator.tables import MIGRATIONS as COORDINATOR_MIGRATIONS
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.identity.v1 import identity_service_pb2_grpc
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.sweeper import Sweeper
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.profiles import ids as profile_ids
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.auth import ANONYMOUS
from tandem.runtime.database import create_engine
from tandem.runtime.errors import TandemError
from tandem.runtime.server import Server
from tandem.runtime.status import from_rpc_error
from tandem.runtime.times import Times
from tests.support.rules import eventually

_numbers = itertools.count(1)

CANARY = "Zebulon"
"""In names and addresses: must never be seen in an error."""


@dataclass
class Home:
    """Everything a test of identity reaches for."""

    identity: Engine
    profiles: Engine
    coordinator: Coordinator
    recovery: Recovery
    sweeper: Sweeper
    server: Server
    profiles_server: Server
    stub: identity_service_pb2_grpc.IdentityServiceStub

    def count(self, table: str, where: str = "true", **values: object) -> int:
        """Rows of a table of either side: `identity.users`, `profiles.person`, …"""
        engine = self.profiles if table.startswith("profiles.") else self.identity
        with engine.connect() as connection:
            return int(connection.execute(sa.text(f"SELECT count(*) FROM {table} WHERE {where}"), values).scalar_one())

    def person_state(self, person_id: str) -> str | None:
        """What profiles holds under this id."""
        with self.profiles.connect() as connection:
            statement = sa.text("SELECT state FROM profiles.person WHERE person_id = :id")
            return connection.execute(statement, {"id": person_id}).scalar_one_or_none()

    def roles(self, business_id: str) -> set[tuple[str, str, str]]:
        """(person, role, state) of a business in profiles."""
        with self.profiles.connect() as connection:
            statement = sa.text("SELECT person_id, role, state FROM profiles.business_person WHERE business_id = :id")
            return {(str(r.person_id), r.role, r.state) for r in connection.execute(statement, {"id": business_id})}

    def sql(self, statement: str, **values: object) -> None:
        """Turns identity's clock, so that no test has to wait."""
        with self.identity.begin() as connection:
            connection.execute(sa.text(statement), values)

    def transaction_of(self, request_id: str) -> UUID:
        """The transaction of a request that succeeded."""
        with self.identity.connect() as connection:
            statement = sa.text("SELECT transaction_id FROM identity.requests WHERE request_id = :id")
            found: UUID = connection.execute(statement, {"id": request_id}).scalar_one()
            return found

    def transaction_of_user(self, user_id: str) -> UUID:
        """The transaction, or a saga's event, that made the user."""
        with self.identity.connect() as connection:
            statement = sa.text("SELECT transaction_id FROM identity.requests WHERE user_id = :id")
            found: UUID = connection.execute(statement, {"id": user_id}).scalar_one()
            return found

    def marked(self, transaction_id: UUID | None = None) -> None:
        """Waits until acknowledgements are in the log, of this transaction or of all: they are written by and by."""
        those = "undelivered <> '{}' AND transaction_id = coalesce(:id, transaction_id)"
        eventually(lambda: not self.count("twophase.decision", those, id=transaction_id))

    def balanced(self) -> bool:
        """Neither side has what the other lacks, and nothing is in doubt."""
        return (
            self.count("identity.users") == self.count("profiles.person")
            and self.count("identity.businesses") == self.count("profiles.business")
            and self.count("identity.members") == self.count("profiles.business_person")
            and not self.count("profiles.person", "state = 'prepared'")
        )

    def died_prepared(self, request: pb.SignUpRequest) -> UUID:
        """As if identity had died after the votes of this request's first attempt; its transaction."""
        a_person, a_business = person_pb2.Person(), business_pb2.Business()
        a_person.CopyFrom(request.person)
        a_business.CopyFrom(request.business)
        a_person.person_id = str(profile_ids.person_id(ids.user_id(ANONYMOUS, request.request_id)))
        a_business.business_id = str(profile_ids.business_id(ids.business_id(ANONYMOUS, request.request_id)))
        return self.coordinator.prepare({"profiles": [a_person, a_business]}).id

    def sweep(self) -> int:
        """One sweep of profiles, as if the ttl of everything in doubt had passed; how many it ended."""
        with self.profiles.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE twophase.prepared_transaction SET next_attempt_at = now() WHERE NOT confirmed"
            )
        return self.sweeper.run_once()

    def undelivered(self, request: pb.SignUpRequest) -> pb.SignUpResponse:
        """As if identity had died after its local commit: nobody has brought the Commit."""
        deaf = Coordinator(self.identity, name="identity", participants={"profiles": self.profiles_server.address})
        deaf._confirm = lambda txs, confirm: None  # type: ignore[method-assign]
        with self.beside(TwoPhase(deaf)) as stub:
            answer = stub.SignUp(request)
        deaf.close()
        assert self.person_state(answer.user.person_id) == "prepared"
        return answer

    @contextmanager
    def beside(self, provisioning: Provisioning) -> Iterator[identity_service_pb2_grpc.IdentityServiceStub]:
        """A second identity over the same database, with another provisioning."""
        server = Server("127.0.0.1:0")
        facts = Facts(self.identity, provisioning, self.profiles_server.address)
        IdentityServicer(self.identity, SignUps(self.identity, provisioning), facts).add_to(server)
        server.start()
        with grpc.insecure_channel(server.address) as channel:
            yield identity_service_pb2_grpc.IdentityServiceStub(channel)
        server.drain(1)
        facts.close()


def participant_of(profiles: Engine, times: Times, metrics: ParticipantMetrics) -> Participant:
    """A participant over profiles' database."""
    return Participant(
        profiles,
        name="profiles",
        resource=ProfilesResource(),
        coordinators=["identity"],
        times=times,
        metrics=metrics,
    )


def invitation_of(owner: pb.SignUpResponse, **fields: object) -> pb.InviteUserRequest:
    """Into the owner's business."""
    fields.setdefault("business_id", owner.business.business_id)
    fields.setdefault("inviter_user_id", owner.user.user_id)
    fields.setdefault("email", address())
    fields.setdefault("role", business_pb2.ROLE_OFFICER)
    return pb.InviteUserRequest(**fields)  # type: ignore[arg-type]


def invite(
    stub: identity_service_pb2_grpc.IdentityServiceStub, owner: pb.SignUpResponse, **fields: object
) -> pb.Invitation:
    """An invitation into the owner's business."""
    return stub.InviteUser(invitation_of(owner, **fields), timeout=20).invitation


@contextmanager
def home(url_of: Callable[[str], str]) -> Iterator[Home]:
    """A home on fresh databases."""
    times = Times()
    url = url_of("identity")
    identity, resolving = create_engine(url, pool_size=20), create_engine(url, pool_size=8)
    profiles = create_engine(url_of("profiles"), pool_size=20)
    for migrations in (COORDINATOR_MIGRATIONS, IDENTITY_MIGRATIONS):
        migrations.upgrade(identity)
    for migrations in (PARTICIPANT_MIGRATIONS, PROFILES_MIGRATIONS):
        migrations.upgrade(profiles)
    server = Server("127.0.0.1:0", reserved=RESERVED)
    profiles_server = Server("127.0.0.1:0")
    metrics = ParticipantMetrics(CollectorRegistry())
    participant = participant_of(profiles, times, metrics)
    resolver = Resolver(participant, {"identity": server.address})
    ParticipantServicer(participant, resolver).add_to(profiles_server)
    ProfilesServicer(Reader(profiles, resolver), updates_create=True).add_to(profiles_server)
    profiles_server.start()
    coordinator = Coordinator(identity, name="identity", participants={"profiles": profiles_server.address})
    CoordinatorServicer(coordinator, DecisionLog(resolving, times)).add_to(server)
    provisioning = TwoPhase(coordinator)
    facts = Facts(identity, provisioning, profiles_server.address)
    IdentityServicer(identity, SignUps(identity, provisioning), facts).add_to(server)
    server.start()
    try:
        # Without the library's own retries: a test wants to see each answer.
        with grpc.insecure_channel(server.address) as channel:
            yield Home(
                identity,
                profiles,
                coordinator,
                Recovery(coordinator),
                Sweeper(profiles, resolver, metrics),
                server,
                profiles_server,
                identity_service_pb2_grpc.IdentityServiceStub(channel),
            )
    finally:
        server.drain(0)
        facts.close()
        coordinator.close()
        profiles_server.drain(0)
        resolver.close()
        for engine in (identity, resolving, profiles):
            engine.dispose()


# --- requests -----------------------------------------------------------------------------------------------------


def fresh(prefix: str = "request") -> str:
    return f"{prefix}-{uuid4().hex[:12]}"


def address() -> str:
    return f"{CANARY}.{next(_numbers)}@example.org"


def person(**fields: object) -> person_pb2.Person:
    fields.setdefault("name", person_pb2.PersonName(display_name=f"{CANARY} Pike"))
    return person_pb2.Person(**fields)  # type: ignore[arg-type]


def business(**fields: object) -> business_pb2.Business:
    fields.setdefault("legal_name", f"{CANARY} Ltd")
    fields.setdefault("entity_type", business_pb2.ENTITY_TYPE_CORPORATION)
    return business_pb2.Business(**fields)  # type: ignore[arg-type]


def registered(number: str | None = None) -> business_pb2.Business:
    return business(registration_country="GB", registration_number=number or uuid4().hex[:12].upper())


def sign_up(**fields: object) -> pb.SignUpRequest:
    fields.setdefault("email", address())
    fields.setdefault("person", person())
    fields.setdefault("business", registered())
    return pb.SignUpRequest(**fields)  # type: ignore[arg-type]


def create_user(**fields: object) -> pb.CreateUserRequest:
    fields.setdefault("email", address())
    fields.setdefault("person", person())
    return pb.CreateUserRequest(**fields)  # type: ignore[arg-type]


def refusal(method: Callable[..., object], request: Message) -> TandemError:
    """The error of a call that must fail; it names nobody."""
    try:
        method(request, timeout=20)
    except grpc.RpcError as error:
        told = from_rpc_error(error)
        said = f"{told.message} {told.metadata} {told.violations} {error!r}"
        assert CANARY not in said, "personal data in an error"
        return told
    raise AssertionError("it was not refused")


def code_of(method: Callable[..., object], request: Message) -> grpc.StatusCode:
    """The status code of a call that must fail."""
    try:
        method(request, timeout=20)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
        return code
    raise AssertionError("it was not refused")
