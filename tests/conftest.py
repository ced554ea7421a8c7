"""Fixtures for every test: a PostgreSQL of our own for each worker, and databases in it."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from lab.broker import Broker
from tandem.runtime.postgres import EmbeddedPostgres
from tests.support.pooler import Pooler

LONGEST_FIRST = (
    "test_pooler", "test_torture", "test_mutants", "test_compare", "test_protocol_races", "test_crashes",
    "test_rolling_restart", "test_kafka_crashes", "test_designs", "test_readiness", "test_protocol_rules",
)  # fmt: skip
"""Files that would keep one worker busy while the others have nothing left, if they came last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first. Behind a pooler, tests that look at a server's sessions by themselves have nothing
    to look at."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    if os.environ.get("TANDEM_POOLER"):
        for item in items:
            if item.get_closest_marker("direct"):
                item.add_marker(pytest.mark.skip(reason="needs sessions of its own"))


def _quiet() -> None:
    structlog.reset_defaults()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """What fails says so by its assertion; log lines of thousands of races would bury it.

    A process' own logging, which a test has started in here, ends with the test: its stream may be gone afterwards.
    """
    _quiet()
    yield
    _quiet()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the worker, fsync on, gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="tandem-pg-"))
    folder.chmod(0o755)
    # A pooler keeps sessions for every database that there ever was.
    settings = {"max_connections": "600"} if os.environ.get("TANDEM_POOLER") else None
    server = EmbeddedPostgres(folder / "data", settings=settings).start()
    try:
        yield server
    finally:
        server.close()
        # Hundreds of databases have a hundred thousand files: nobody waits for their end.
        subprocess.run(["sh", "-c", 'rm -rf "$0" >/dev/null 2>&1 &', folder], start_new_session=True, check=False)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """One broker for the worker, or the one that KAFKA_BOOTSTRAP_SERVERS names; each test has topics of its own."""
    with tempfile.TemporaryDirectory(prefix="tandem-kafka-") as folder:
        started = Broker(Path(folder)).start()
        yield started
        started.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """One that a test may stop and kill."""
    started = Broker(tmp_path / "broker")
    if not started.is_ours:
        pytest.skip("KAFKA_BOOTSTRAP_SERVERS names a broker that is not ours to stop")
    yield started.start()
    started.stop()


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def pooler(postgres: EmbeddedPostgres) -> Iterator[Pooler | None]:
    """With TANDEM_POOLER set: a PgBouncer in transaction mode, before every database of the tests.

    TANDEM_POOLER names a folder, where a file says in the end how many local transactions have gone through it.
    """
    reports = os.environ.get("TANDEM_POOLER")
    if not reports:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="tandem-pooler-") as folder:
        started = Pooler(Path(folder), postgres.tcp_url("postgres"))
        try:
            yield started
            (Path(reports) / f"{os.getpid()}.transactions").write_text(str(started.transactions))
        finally:
            started.stop()


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres, pooler: Pooler | None) -> Callable[[str], str]:
    """Makes an empty database and gives its URL."""

    def make(name: str) -> str:
        url = postgres.database_url(f"{name}_{next(_numbers)}")
        return url if pooler is None else pooler.url(url)

    return make
