"""One design at work: databases of its own on two PostgreSQL servers, its processes, its broker where it has one."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc

from lab import checks, processes
from lab.compare.designs import Design
from lab.processes import Service
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.channel import open_channel
from tandem.runtime.postgres import EmbeddedPostgres

TTL_S = 10
"""The shortest that the product allows."""

QUIET_S = 40.0
READ_S = 5.0
BATCH = 500


class House:
    """A context manager. servers: the PostgreSQL servers of "identity" and "profiles", shared by all designs."""

    def __init__(self, design: Design, folder: Path, servers: dict[str, EmbeddedPostgres]) -> None:
        self.design = design
        folder.mkdir(parents=True)
        name = "".join(letter if letter.isalpha() else "_" for letter in design.name)
        urls = {side: server.database_url(f"{side}_{name}") for side, server in servers.items()}
        self.databases = checks.Databases(urls["identity"], urls["profiles"])
        self.broker: Any = (
            importlib.import_module("lab.broker").Broker(folder / "broker") if design.has_broker else None
        )
        self.address = {side: f"127.0.0.1:{processes.free_port()}" for side in ("profiles", "coordinator", "identity")}
        shared = {"TTL_S": str(TTL_S), "METRICS_LISTEN": "127.0.0.1:0", "LOG_LEVEL": "WARNING", "DRAIN_S": "1"}
        # With a name of its own a consumer that was killed gets its partitions back as soon as it is there again.
        kafka = {"KAFKA_SERVERS": self.broker.servers, "KAFKA_INSTANCE": "only"} if self.broker else {}
        profiles = f"profiles={self.address['profiles']}"
        own: dict[str, dict[str, str]] = {
            "profiles": {"COORDINATORS": f"identity={self.address['coordinator']}", **kafka, **design.profiles},
            "coordinator": {"PARTICIPANTS": profiles, "DATABASE_URL": urls["identity"], **design.coordinator},
            "identity": {"PARTICIPANTS": profiles, **kafka, **design.identity},
        }
        modules = {"profiles": "profiles_server", "coordinator": "coordinator", "identity": design.module}
        self.services = {}
        for side, module in modules.items():
            settings = {"DATABASE_URL": urls.get(side, ""), **shared, **own[side], "LISTEN": self.address[side]}
            environment = {f"{side.upper()}_{key}": value for key, value in settings.items()}
            self.services[side] = Service(module, self.address[side], environment, folder)

    def __enter__(self) -> House:
        if self.broker is not None:
            self.broker.start()
        for side in ("profiles", "identity"):
            service = self.services[side]
            processes.run(service.module, "migrate", environment=service.environment)
        for service in self.services.values():
            service.start()
        self._channel = open_channel(self.address["profiles"])
        self._profiles = profiles_service_pb2_grpc.ProfilesServiceStub(self._channel)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        for service in reversed(list(self.services.values())):
            service.stop()
        if self.broker is not None:
            self.broker.stop()

    def orphans(self) -> Orphans:
        """What one side has and the other lacks, as readers see it now."""
        # Accounts first: a profile that is made meanwhile is none without an account.
        persons, businesses = self._active("person"), self._active("business")
        users = self._accounts("user", checks.NAMESPACE_IDENTITY)
        firms = self._accounts("business", checks.NAMESPACE_IDENTITY_BUSINESS)
        lacking = [id_ for id_, status in users.items() if id_ not in persons and status != "rejected"]
        firms_lacking = [id_ for id_, status in firms.items() if id_ not in businesses and status != "rejected"]
        return Orphans(
            accounts=len(self._not_found(lacking, "person")) + len(self._not_found(firms_lacking, "business")),
            profiles=len(persons - users.keys()) + len(businesses - firms.keys()),
            rejected=sum(status == "rejected" for status in (*users.values(), *firms.values())),
        )

    def quiet(self) -> bool:
        """Whether nothing is on its way any more, within QUIET_S."""
        return processes.wait_until(self._is_quiet, timeout_s=QUIET_S)

    def accounts(self, prefix: str) -> int:
        """Users whose address begins so."""
        return self.databases.number(
            "identity", "SELECT count(*) FROM identity.users WHERE email LIKE %s", f"{prefix}%"
        )

    def _is_quiet(self) -> bool:
        pending = self.databases.number(
            "identity",
            "SELECT (SELECT count(*) FROM identity.users WHERE profile_status = 'pending')"
            " + (SELECT count(*) FROM identity.businesses WHERE profile_status = 'pending')",
        )
        return not (pending or self.databases.in_doubt() or self.databases.undelivered())

    def _active(self, table: str) -> set[object]:
        rows = self.databases.rows("profiles", f"SELECT {table}_id FROM profiles.{table} WHERE state = 'active'")
        return {row[0] for row in rows}

    def _accounts(self, kind: str, namespace: UUID) -> dict[object, str]:
        table = {"user": "users", "business": "businesses"}[kind]
        rows = self.databases.rows("identity", f"SELECT {kind}_id, profile_status FROM identity.{table}")
        return {checks.uuid5(namespace, str(row[0])): str(row[1]) for row in rows}

    def _not_found(self, ids: list[object], kind: str) -> list[object]:
        """Those that a reader does not find. A row that is only prepared may be found: the reader asks (R10)."""
        missing: list[object] = []
        for first in range(0, len(ids), BATCH):
            some = ids[first : first + BATCH]
            names = [str(id_) for id_ in some]
            answer: pb.BatchGetPersonsResponse | pb.BatchGetBusinessesResponse
            if kind == "person":
                answer = self._profiles.BatchGetPersons(
                    pb.BatchGetPersonsRequest(person_ids=names), timeout=READ_S, wait_for_ready=True
                )
            else:
                answer = self._profiles.BatchGetBusinesses(
                    pb.BatchGetBusinessesRequest(business_ids=names), timeout=READ_S, wait_for_ready=True
                )
            codes = [result.status.code for result in answer.results]
            missing += [
                id_ for id_, code in zip(some, codes, strict=True) if code == grpc.StatusCode.NOT_FOUND.value[0]
            ]
        return missing


class Orphans:
    """accounts: without a profile, and not saying `rejected`. profiles: without an account. rejected: they say so."""

    def __init__(self, accounts: int = 0, profiles: int = 0, rejected: int = 0) -> None:
        self.accounts, self.profiles, self.rejected = accounts, profiles, rejected

    def __sub__(self, other: Orphans) -> Orphans:
        return Orphans(self.accounts - other.accounts, self.profiles - other.profiles, self.rejected - other.rejected)
