"""Fixtures of the tests of profiles: a migrated database, a participant over it, a server that really listens.

Only for `pytest_plugins`; what tests import is in profiles_support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine

from profiles_server.resolving import Reader
from profiles_server.servicer import ProfilesServicer
from profiles_server.tables import MIGRATIONS
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.participant import Participant
from tandem.participant.resolver import Resolver
from tandem.participant.servicer import ParticipantServicer
from tandem.participant.tables import MIGRATIONS as PARTICIPANT_MIGRATIONS
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.database import create_engine
from tandem.runtime.server import Server
from tandem.runtime.times import Times
from tandem.v1 import participant_pb2_grpc
from tests.integration.profiles_support import RESOURCE, Client
from tests.support.rules import OUTCOMES, ScriptedCoordinator


@pytest.fixture(scope="session")
def profiles_url(new_database: Callable[[str], str]) -> str:
    """A migrated database. Tests share it and make ids of their own."""
    url = new_database("profiles")
    engine = create_engine(url)
    for migrations in (PARTICIPANT_MIGRATIONS, MIGRATIONS):
        migrations.upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture(scope="session")
def profiles_engine(profiles_url: str) -> Iterator[Engine]:
    engine = create_engine(profiles_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def profiles_participant(profiles_engine: Engine) -> Participant:
    return Participant(
        profiles_engine,
        name="profiles",
        resource=RESOURCE,
        coordinators=["identity", "other"],
        times=Times(),
        metrics=ParticipantMetrics(CollectorRegistry()),
    )


@pytest.fixture(scope="session")
def profiles_coordinator() -> Iterator[ScriptedCoordinator]:
    """Who is asked for decisions: says that everything is undecided, until a test tells it otherwise."""
    scripted = ScriptedCoordinator()
    scripted.outcome = OUTCOMES.Value("OUTCOME_UNDECIDED")
    yield scripted
    scripted.stop()


@pytest.fixture(scope="session")
def profiles_client(
    profiles_engine: Engine, profiles_participant: Participant, profiles_coordinator: ScriptedCoordinator
) -> Iterator[Client]:
    server = Server("127.0.0.1:0")
    address = profiles_coordinator.address
    resolver = Resolver(profiles_participant, {"identity": address, "other": address})
    ParticipantServicer(profiles_participant, resolver).add_to(server)
    ProfilesServicer(Reader(profiles_engine, resolver)).add_to(server)
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        yield Client(
            profiles_service_pb2_grpc.ProfilesServiceStub(channel),
            participant_pb2_grpc.ParticipantServiceStub(channel),
        )
    server.drain(1)
    resolver.close()


@pytest.fixture(scope="module")
def creating_server(
    profiles_engine: Engine, profiles_participant: Participant, profiles_coordinator: ScriptedCoordinator
) -> Iterator[Server]:
    """A profiles whose updates create."""
    server = Server("127.0.0.1:0")
    resolver = Resolver(profiles_participant, {"identity": profiles_coordinator.address})
    ProfilesServicer(Reader(profiles_engine, resolver), updates_create=True).add_to(server)
    server.start()
    yield server
    server.drain(1)
    resolver.close()
