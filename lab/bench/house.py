"""What every measurement runs against: two PostgreSQL servers, profiles, coordinator, the naive profiles, and a driver.

The driver lives in this process, which is the initiator; everything else is a process of its own, reached by gRPC. A
process of identity, with accounts of its own in the same database, is there for the import alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from uuid import UUID, uuid4

import sqlalchemy as sa
from google.type import date_pb2
from sqlalchemy.engine import Engine

import identity_stub
from lab import processes
from lab.processes import Service
from tandem.coordinator import Coordinator
from tandem.profiles.v1 import person_pb2
from tandem.runtime.database import create_engine
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.process import spare_collector
from tandem.runtime.times import Times

PERSONS = Path(identity_stub.__file__).parent / "data" / "persons.csv"
PROFILES = "lab.bench.unswept_profiles"
CONNECTIONS = 100

users = sa.Table(
    "users", sa.MetaData(), sa.Column("user_id", sa.Uuid, primary_key=True), sa.Column("email", sa.Text, unique=True)
)
"""The initiator's own row of a signup."""


@dataclass
class House:
    """Everything that runs. profiles: how many processes serve it. second: another participant, on the same server."""

    folder: Path
    profiles: int = 1
    databases: dict[str, EmbeddedPostgres] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    engine: Engine = field(init=False)
    profiles_engine: Engine = field(init=False)
    coordinator: Coordinator = field(init=False)
    naive: str = ""
    second: str = ""
    coordinator_address: str = ""
    identity_address: str = ""
    profiles_addresses: list[str] = field(default_factory=list)

    def __enter__(self) -> House:
        """Starts it all, from nothing."""
        for name in ("identity", "profiles"):
            self.databases[name] = EmbeddedPostgres(self.folder / f"postgres-{name}").start()
        urls = {name: server.database_url(name) for name, server in self.databases.items()}
        self.coordinator_address = f"127.0.0.1:{processes.free_port()}"
        self.identity_address = f"127.0.0.1:{processes.free_port()}"
        self.profiles_addresses = [f"127.0.0.1:{processes.free_port()}" for _ in range(self.profiles)]
        self.naive = f"127.0.0.1:{processes.free_port()}"
        self.second = f"127.0.0.1:{processes.free_port()}"
        coordinating = {
            "COORDINATOR_DATABASE_URL": urls["identity"],
            "COORDINATOR_LISTEN": self.coordinator_address,
            "COORDINATOR_METRICS_LISTEN": "127.0.0.1:0",
            "COORDINATOR_PARTICIPANTS": f"profiles={self.targets},second={self.second}",
            "COORDINATOR_LOG_LEVEL": "WARNING",
        }
        serving = {
            "PROFILES_DATABASE_URL": urls["profiles"],
            "PROFILES_METRICS_LISTEN": "127.0.0.1:0",
            "PROFILES_COORDINATORS": f"identity={self.coordinator_address}",
            "PROFILES_LOG_LEVEL": "WARNING",
        }
        serving_second = {
            **serving,
            "PROFILES_NAME": "second",
            "PROFILES_DATABASE_URL": self.databases["profiles"].database_url("second"),
            "PROFILES_LISTEN": self.second,
        }
        importing = {
            "IDENTITY_DATABASE_URL": urls["identity"],
            "IDENTITY_LISTEN": self.identity_address,
            "IDENTITY_METRICS_LISTEN": "127.0.0.1:0",
            "IDENTITY_PARTICIPANTS": f"profiles={self.targets},second={self.second}",
            "IDENTITY_LOG_LEVEL": "WARNING",
        }
        processes.run("coordinator", "migrate", environment=coordinating)
        processes.run("identity_stub", "migrate", environment=importing)
        for environment in (serving, serving_second):
            processes.run("profiles_server", "migrate", environment=environment)
        self.engine = create_engine(urls["identity"], pool_size=CONNECTIONS)
        self.profiles_engine = create_engine(urls["profiles"], pool_size=8)
        users.metadata.create_all(self.engine)
        self.services = [
            *(
                Service(PROFILES, address, {**serving, "PROFILES_LISTEN": address}, self.folder)
                for address in self.profiles_addresses
            ),
            Service("profiles_server", self.second, serving_second, self.folder),
            Service("coordinator", self.coordinator_address, coordinating, self.folder),
            Service("identity_stub", self.identity_address, importing, self.folder),
            Service("lab.bench.naive_profiles", self.naive, {**serving, "PROFILES_LISTEN": self.naive}, self.folder),
        ]
        for service in self.services:
            service.start()
        self.coordinator = Coordinator(
            self.engine,
            name="identity",
            participants={"profiles": self.targets, "second": self.second},
            times=Times(),
        )
        spare_collector()  # the driver's process is an initiator's
        return self

    def __exit__(self, *_: object) -> None:
        self.coordinator.close()
        for service in reversed(self.services):
            service.stop()
        for engine in (self.engine, self.profiles_engine):
            engine.dispose()
        for server in self.databases.values():
            server.close()

    @property
    def targets(self) -> str:
        """The profiles processes as one gRPC target."""
        return self.profiles_addresses[0] if self.profiles == 1 else f"ipv4:{','.join(self.profiles_addresses)}"

    def pid(self, module: str) -> int:
        """The process that runs this module."""
        return next(service.pid for service in self.services if service.module == module)


def people() -> Iterator[tuple[UUID, str, person_pb2.Person]]:
    """Real people without end: a new user id, a new address, and the person, each time."""
    with PERSONS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in cycle(rows):
        user_id = uuid4()
        born = [int(part) for part in row["birthday"].split("-")] if row["birthday"] else []
        yield (
            user_id,
            f"{user_id}@example.org",
            person_pb2.Person(
                person_id=str(uuid4()),
                name=person_pb2.PersonName(
                    given_name=row["given_name"],
                    middle_name=row["middle_name"],
                    family_name=row["family_name"],
                    suffix=row["suffix"],
                    display_name=row["full_name"] or row["family_name"],
                ),
                date_of_birth=date_pb2.Date(year=born[0], month=born[1], day=born[2]) if born else None,
                email_addresses=[f"{user_id}@example.org"],
                nationalities=["US"],
            ),
        )
