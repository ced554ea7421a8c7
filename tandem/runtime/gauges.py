"""Metrics that a database knows: read when the page is asked for, so they are right at once after a restart.

Every replica tells the same number. Whoever adds them up takes `max`, never `sum`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.engine import URL, Connection, Engine

from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.database import Limits, create_engine
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import frames, logger

log = logger("tandem.gauges")

QUICK = Limits(lock_timeout_ms=500, statement_timeout_ms=1_000, idle_timeout_ms=1_000, durable=False, give_up_ms=1_500)
"""A look, and a connection for it, well within the time that a scrape has: a database that says nothing must not take
what the process counts with it."""

MAX_COUNTED = 100_000
"""Rows that one look counts at most: with more of them, the count stays at this. It bounds what a scrape costs."""

OTHER = "other"
"""A label's value for what is not among the known ones: no label takes whatever a row holds."""


def gauges_engine(url: str | URL, *, name: str) -> Engine:
    """With one connection of its own: load does not keep scrapes waiting, nor many scrapes the load.

    name: what the database shows of it.
    """
    return create_engine(url, pool_size=1, pool_timeout_s=1, connect_timeout_s=2, name=name)


class DatabaseCollector(Collector, ABC):
    """Reads its metrics from a database in one local transaction.

    engine: best one that `gauges_engine` has made.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @abstractmethod
    def describe(self) -> Iterable[Metric]:
        """The metrics, without a value."""

    @abstractmethod
    def read(self, connection: Connection) -> Iterable[Metric]:
        """The metrics as they are now."""

    def collect(self) -> Iterable[Metric]:
        """The metrics; none of them where the database can't be asked, so that an alert can see the absence."""
        try:
            with local_transaction(self._engine, QUICK) as connection:
                return self.read(connection)
        except DATABASE_ERRORS as error:
            log.warning("gauges not read", exception=frames(error))
            return []
