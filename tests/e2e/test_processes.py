"""Real processes from the command line: two profiles servers as two participants, and how a process lives and dies."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lab import processes
from lab.processes import Service, wait_until
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.errors import Refused
from tandem.profiles import ids
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2, profiles_service_pb2_grpc
from tandem.runtime.channel import open_channel
from tandem.runtime.database import create_engine
from tandem.runtime.postgres import EmbeddedPostgres
from tests.support.house import fresh_name, own


@dataclass
class Town:
    """One PostgreSQL, two profiles servers and a coordinator as real processes; the initiator is the test."""

    postgres: EmbeddedPostgres
    profiles: Service
    second: Service
    coordinator: Service
    driver: Coordinator
    engine: sa.Engine

    def person(self, service: Service, person_id: UUID) -> person_pb2.Person | None:
        """As one of the servers answers a client."""
        with open_channel(service.address) as channel:
            stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            try:
                request = profiles_service_pb2.GetPersonRequest(person_id=str(person_id))
                return stub.GetPerson(request, timeout=5, wait_for_ready=True).person
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
                return None


@pytest.fixture(scope="module")
def town(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    suffix = uuid4().hex[:6]
    urls = {name: postgres.database_url(f"{name}_{suffix}") for name in ("identity", "profiles", "second")}
    ports = {name: f"127.0.0.1:{processes.free_port()}" for name in urls}
    coordinators = f"identity={ports['identity']}"

    def profiles(name: str) -> Service:
        environment = {
            "PROFILES_NAME": name,
            "PROFILES_LISTEN": ports[name],
            "PROFILES_METRICS_LISTEN": "127.0.0.1:0",
            "PROFILES_DATABASE_URL": urls[name],
            "PROFILES_COORDINATORS": coordinators,
            "PROFILES_SWEEP_INTERVAL_S": "0.5",
        }
        return Service("profiles_server", ports[name], environment, folder)

    targets = {"profiles": ports["profiles"], "second": ports["second"]}
    coordinator = Service(
        "coordinator",
        ports["identity"],
        {
            "COORDINATOR_LISTEN": ports["identity"],
            "COORDINATOR_METRICS_LISTEN": "127.0.0.1:0",
            "COORDINATOR_DATABASE_URL": urls["identity"],
            "COORDINATOR_PARTICIPANTS": ",".join(f"{name}={target}" for name, target in targets.items()),
            "COORDINATOR_RECOVERY_INTERVAL_S": "0.2",
        },
        folder,
    )
    services = (profiles("profiles"), profiles("second"), coordinator)
    with ExitStack() as stack:
        for service in services:
            processes.run(service.module, "migrate", environment=service.environment)
            service.start()
            stack.callback(service.stop)
        engine = create_engine(urls["identity"])
        stack.callback(engine.dispose)
        own.metadata.create_all(engine)
        driver = Coordinator(engine, name="identity", participants=targets)
        stack.callback(driver.close)
        yield Town(postgres, *services, driver, engine)


def person(person_id: UUID) -> person_pb2.Person:
    return person_pb2.Person(person_id=str(person_id), name=person_pb2.PersonName(display_name="Zoë Ångström"))


def business(number: str) -> business_pb2.Business:
    return business_pb2.Business(
        business_id=str(uuid4()),
        legal_name="Société Générale de Tests",
        entity_type=business_pb2.ENTITY_TYPE_CORPORATION,
        registration_country="FR",
        registration_number=number,
    )


def test_two_profiles_servers_both(town: Town) -> None:
    """One transaction on two profiles servers: both have the person, or…"""
    person_id = ids.person_id(uuid4())
    with town.driver.transaction({"profiles": [person(person_id)], "second": [person(person_id)]}) as tx:
        assert town.person(town.profiles, person_id) is None, "prepared is invisible"
        tx.connection.execute(sa.insert(own).values(id=person_id))
    for service in (town.profiles, town.second):
        found = town.person(service, person_id)
        assert found is not None
        assert found.name.display_name == "Zoë Ångström"
        assert found.version == 1


def test_two_profiles_servers_neither(town: Town) -> None:
    """…neither: a registration number that the second one has already takes the whole transaction back."""
    number = fresh_name().upper()
    with town.driver.transaction({"second": [business(number)]}):
        pass
    person_id = ids.person_id(uuid4())
    with pytest.raises(Refused) as raised:
        with town.driver.transaction({"profiles": [person(person_id)], "second": [business(number)]}):
            pytest.fail("the block must not run")
    assert set(raised.value.reasons) == {"second"}
    assert number not in str(raised.value)
    assert town.person(town.profiles, person_id) is None


def test_a_participant_killed_after_its_vote_gets_it_by_recovery(town: Town) -> None:
    """kill -9 of one participant between vote and Commit: the block returns, recovery delivers after the restart."""
    person_id = ids.person_id(uuid4())
    with town.driver.transaction({"profiles": [person(person_id)], "second": [person(person_id)]}) as tx:
        town.second.kill()
    assert not tx.delivered
    assert tx.undelivered == ("second",)
    assert town.person(town.profiles, person_id) is not None
    town.second.start()
    assert wait_until(lambda: town.person(town.second, person_id) is not None, timeout_s=20)


def test_health_reflection_metrics(town: Town) -> None:
    """Every process says that it serves, which services it has, and its three gauges."""
    with open_channel(town.profiles.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tandem.v1.ParticipantService", "tandem.profiles.v1.ProfilesService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert wait_until(lambda: b"tandem_sweep_last_success_timestamp_seconds 1." in metrics(town.profiles), timeout_s=10)
    page = metrics(town.profiles)
    assert b'tandem_prepared_transactions{coordinator="identity"}' in page
    assert b"tandem_oldest_prepared_timestamp_seconds" in page


def metrics(service: Service) -> bytes:
    with urllib.request.urlopen(f"http://{service.metrics}/metrics", timeout=5) as response:
        return bytes(response.read())


def test_sigterm_drains(town: Town) -> None:
    """SIGTERM: the process ends by itself, with status 0, and can be started again."""
    town.second.stop()
    assert town.second.died() == 0
    town.second.start()


@pytest.mark.parametrize("module", ["profiles_server", "coordinator", "identity_stub"])
def test_refuses_a_schema_it_does_not_know(postgres: EmbeddedPostgres, module: str) -> None:
    """A process refuses to start on tables that aren't there, and says what to run; then it is right."""
    prefix = {"profiles_server": "PROFILES", "coordinator": "COORDINATOR", "identity_stub": "IDENTITY"}[module]
    environment = {
        **os.environ,
        f"{prefix}_DATABASE_URL": postgres.database_url(fresh_name("empty").replace("-", "_")),
        f"{prefix}_LISTEN": "127.0.0.1:0",
        f"{prefix}_METRICS_LISTEN": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", module], env=environment, capture_output=True, text=True, timeout=60, check=False,
        cwd=processes.ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"python -m {module} migrate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROFILES_TTL_S", "5", "PROFILES_TTL_S"),
        ("PROFILES_PUSH_AFTER_S", "6", "push_after"),
        ("PROFILES_PUSH_AFTER_S", "90", "ttl"),
        ("PROFILES_RETENTION_DAYS", "1", "PROFILES_RETENTION_DAYS"),
        ("PROFILES_DATABASE_URL", "mysql://somewhere/else", "PostgreSQL"),
    ],
)
def test_refuses_settings_that_do_not_fit(name: str, value: str, says: str) -> None:
    """The times are checked against each other at start; the sentence names the setting."""
    done = subprocess.run(
        [sys.executable, "-m", "profiles_server"], env={**os.environ, name: value}, capture_output=True, text=True,
        timeout=60, check=False, cwd=processes.ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_explains_each_setting() -> None:
    """--help of each process explains every environment variable."""
    for module, variable in (
        ("profiles_server", "PROFILES_TTL_S"),
        ("coordinator", "COORDINATOR_RECOVERY_INTERVAL_S"),
        ("identity_stub", "IDENTITY_CONFIRM"),
    ):
        assert variable in processes.run(module, "--help", environment={"COLUMNS": "200"})


def test_migrate_prints_sql(tmp_path: Path) -> None:
    """`migrate --sql` prints what would be run, for whoever must read it first."""
    for module in ("profiles_server", "coordinator", "identity_stub"):
        printed = processes.run(module, "migrate", "--sql", environment={"TANDEM_DATA": str(tmp_path)})
        assert "CREATE TABLE twophase." in printed
        assert not list(tmp_path.iterdir()), "nothing was started for it"
