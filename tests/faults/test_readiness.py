"""Readiness tells the truth about real processes whose PostgreSQL is killed, stopped, or takes no writes; and back.

Only those that need the database say so; all of them live on, and are ready again by themselves.
"""

from __future__ import annotations

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from lab.processes import Service
from tandem.runtime import _postgres_keeper as keeper
from tandem.runtime.database import create_engine
from tandem.runtime.healthcheck import LIVE, state
from tandem.runtime.postgres import EmbeddedPostgres
from tandem.runtime.readiness import FAILURES, Readiness
from tests.faults.crash_house import House, built, eventually
from tests.support.rules import BareServer

NEEDS = {"profiles-pg": ("profiles", "second"), "identity-pg": ("coordinator", "identity")}
"""A database server, and who can do nothing without it."""


@pytest.fixture(scope="module")
def town() -> Iterator[House]:
    """The house, with HTTP ports."""
    with built() as house:
        for names in NEEDS.values():
            for name in names:
                service = house.services[name]
                prefix = next(iter(service.environment)).partition("_")[0]
                service.environment = {**service.environment, f"{prefix}_METRICS_LISTEN": "127.0.0.1:0"}
                house.restart(service)
        yield house


def asked(service: Service, path: str) -> int:
    """The status of its HTTP port."""
    try:
        with urllib.request.urlopen(f"http://{service.metrics}{path}", timeout=10) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def ready(service: Service) -> list[object]:
    """By both protocols."""
    return [state(service.address), asked(service, "/readyz")]


def live(service: Service) -> list[object]:
    return [state(service.address, service=LIVE), asked(service, "/livez")]


READY: list[object] = ["SERVING", 200]
NOT_READY: list[object] = ["NOT_SERVING", 503]


def become(wanted: list[object], services: Sequence[Service]) -> None:
    """Waits until each of them says so."""
    eventually(
        lambda: all(ready(service) == wanted for service in services),
        lambda: {service.module: ready(service) for service in services},
    )


@contextmanager
def stopped(house: House, name: str) -> Iterator[None]:
    """SIGSTOP of a PostgreSQL server and all its backends: the kernel takes connections, and nobody speaks."""
    postmaster, _ = keeper.read_postmaster(keeper.Files(house.servers[name].folder))
    assert postmaster is not None
    pids = [postmaster]  # first of all: it starts no further one
    os.kill(postmaster, signal.SIGSTOP)
    pids += map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def away(house: House, name: str) -> Iterator[None]:
    with house.down(name):
        yield


@contextmanager
def read_only(house: House, name: str) -> Iterator[None]:
    """New local transactions write nothing, as after a switch of roles, or on a full disk's provider."""
    database = name.partition("-")[0]
    others = [each for each in ("profiles", "second") if database == "profiles"] or [database]
    for each in others:
        house.sql(each, f"ALTER DATABASE {each} SET default_transaction_read_only = on")
        cut(house, each)
    try:
        yield
    finally:
        for each in others:
            engine = create_engine(house.servers[name].database_url("postgres"), pool_size=1)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"ALTER DATABASE {each} RESET default_transaction_read_only")
            engine.dispose()
            cut(house, each)


def cut(house: House, database: str) -> None:
    """Sessions have the settings that they began with."""
    others = "datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'tests'"
    house.sql(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")


TROUBLES: dict[str, Callable[[House, str], AbstractContextManager[None]]] = {
    "killed": away,
    "stopped": stopped,
    "read-only": read_only,
}


@pytest.mark.parametrize("server", NEEDS)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_database_that_can_not_serve(house: House, server: str, trouble: str) -> None:
    """Who needs it is not ready, by both protocols, until it is back; everybody lives, in the same process, and who
    does not need it is ready all the time."""
    concerned = [house.services[name] for name in NEEDS[server]]
    others = [house.services[name] for names in NEEDS.values() for name in names if name not in NEEDS[server]]
    everybody = [*concerned, *others]
    pids = [service.pid for service in everybody]
    become(READY, everybody)
    with TROUBLES[trouble](house, server):
        become(NOT_READY, concerned)
        assert [live(service) for service in everybody] == [READY] * len(everybody)
        assert [ready(service) for service in others] == [READY] * len(others)
        assert [ready(service) for service in concerned] == [NOT_READY] * len(concerned)
    become(READY, concerned)
    assert [service.died() for service in everybody] == [None] * len(everybody)
    assert [service.pid for service in everybody] == pids


def test_a_replica_is_not_ready(postgres: EmbeddedPostgres) -> None:
    """R15: a server that only follows can't serve, whatever else it answers; the primary can."""
    told: list[bool] = []
    server = BareServer(postgres.bin)

    def ask(engine: sa.Engine) -> list[int]:
        readiness = Readiness(engine.url.render_as_string(hide_password=False), "readiness", told.append)
        try:
            return [readiness.run_once() for _ in range(FAILURES)]
        finally:
            readiness.close()

    try:
        with server.running() as engine:
            assert ask(engine) == [0] * FAILURES
        server.become_replica()
        with server.running() as engine:
            assert ask(engine) == list(range(1, FAILURES + 1))
    finally:
        server.remove()
    assert (told[:FAILURES], told[-1]) == ([True] * FAILURES, False)


def test_one_failure_does_not_count(new_database: Callable[[str], str]) -> None:
    """A connection that breaks once takes no process out; nobody who asks once in vain is heard."""
    told: list[bool] = []
    url = new_database("readiness")
    readiness = Readiness(url, "readiness", told.append)
    engine = create_engine(url, pool_size=1)
    try:
        assert readiness.run_once() == 0
        with engine.connect() as connection:
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'readiness'")
            )
        assert readiness.run_once() == 0, "a connection that has died meanwhile is another one's beginning"
    finally:
        readiness.close()
        engine.dispose()
    nowhere = Readiness("postgresql://nobody@127.0.0.1:1/nothing", "readiness", told.append)
    assert [nowhere.run_once() for _ in range(FAILURES + 1)] == list(range(1, FAILURES + 2))
    assert told == [True, True, *[True] * (FAILURES - 1), False, False]
