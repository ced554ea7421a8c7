"""Fixtures for every test: a PostgreSQL of our own for each worker, and databases in it."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tandem.runtime.postgres import EmbeddedPostgres


@pytest.fixture(scope="session", autouse=True)
def quiet_logs() -> None:
    """What fails says so by its assertion; log lines of thousands of races would bury it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the worker, fsync on, gone with it."""
    with tempfile.TemporaryDirectory(prefix="tandem-pg-") as folder:
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder) / "data").start()
        try:
            yield server
        finally:
            server.close()


_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres) -> Callable[[str], str]:
    """Makes an empty database and gives its URL."""

    def make(name: str) -> str:
        return postgres.database_url(f"{name}_{next(_numbers)}")

    return make
