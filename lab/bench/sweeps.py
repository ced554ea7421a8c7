"""A sweep of ten thousand transactions that are due, among few or many that are stored."""

from __future__ import annotations

import time

import psycopg2.extras
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from uuid_utils.compat import uuid7

from lab.bench.house import House
from lab.bench.signups import empty
from profiles_server.profiles import ProfilesResource
from tandem.participant import Participant, ParticipantMetrics, Resolver, Sweeper
from tandem.runtime.digest import transaction_digest
from tandem.runtime.local_transaction import owned
from tandem.runtime.times import Times

DUE = 10_000
CHUNK = 250_000

_STORED = """
WITH ids AS MATERIALIZED (SELECT gen_random_uuid() AS id FROM generate_series(1, :count)),
persons AS (
    INSERT INTO profiles.person (person_id, display_name, coordinator, transaction_id, state)
    SELECT gen_random_uuid(), 'Ada Lovelace', 'identity', id, 'active' FROM ids)
INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, log_id, digests, staged, state, confirmed,
    resolved_at, resolved_by)
SELECT 'identity', id, id, decode(repeat('00', 32), 'hex'), 1, 'committed', true, now(), 'coordinator' FROM ids
"""


class Swept:
    """A house's profiles, and a sweeper of our own over them. stored: finished transactions that lie there."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._log_id = house.coordinator.log.log_id()
        metrics = ParticipantMetrics(CollectorRegistry())
        self.participant = Participant(
            house.profiles_engine,
            name="profiles",
            resource=ProfilesResource(),
            coordinators=["identity"],
            times=Times(),
            metrics=metrics,
        )
        self._resolver = Resolver(self.participant, {"identity": house.coordinator_address})
        self._sweeper = Sweeper(house.profiles_engine, self._resolver, metrics)

    def close(self) -> None:
        """Closes its channels."""
        self._resolver.close()

    def store(self, rows: int) -> None:
        """Fills the tables with so many finished transactions, from nothing."""
        empty(self._house)
        for first in range(0, rows, CHUNK):
            with self._house.profiles_engine.begin() as connection:
                connection.execute(sa.text(_STORED), {"count": min(CHUNK, rows - first)})
        with owned(self._house.profiles_engine) as connection:
            connection.exec_driver_sql("VACUUM ANALYZE twophase.prepared_transaction, profiles.person")

    def seconds(self) -> float:
        """Makes DUE transactions due, half of them committed and half undecided, and sweeps them."""
        self._make_due()
        began = time.perf_counter()
        ended = self._sweeper.run_once()
        took = time.perf_counter() - began
        assert ended == DUE, f"{ended} were ended"
        return took

    def _make_due(self) -> None:
        ids = [uuid7() for _ in range(DUE)]
        values = psycopg2.extras.execute_values
        profiles = self._house.profiles_engine.raw_connection()
        psycopg2.extras.register_uuid(conn_or_curs=profiles.cursor())  # type: ignore[no-untyped-call]
        cursor = profiles.cursor()
        values(
            cursor,
            "INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, log_id, digests, staged, state,"
            " confirmed, prepared_at, next_attempt_at) VALUES %s",
            [("identity", str(id_), str(self._log_id), b"\0" * 32) for id_ in ids],
            template="(%s, %s, %s, %s, 1, 'prepared', false, now() - interval '1 min', now())",
            page_size=1_000,
        )
        values(
            cursor,
            "INSERT INTO profiles.person (person_id, display_name, coordinator, transaction_id, state) VALUES %s",
            [("Ada Lovelace", "identity", str(id_)) for id_ in ids],
            template="(gen_random_uuid(), %s, %s, %s, 'prepared')",
            page_size=1_000,
        )
        profiles.commit()
        profiles.close()
        digest = transaction_digest(b"\0" * 32).hex()
        identity = self._house.engine.raw_connection()
        values(
            identity.cursor(),
            "INSERT INTO twophase.decision (coordinator, transaction_id, outcome, participants, undelivered, parked)"
            " VALUES %s",
            [("identity", str(id_), psycopg2.extras.Json({"profiles": digest})) for id_ in ids[: DUE // 2]],
            template="(%s, %s, 'committed', %s, '{}', '{}')",
            page_size=1_000,
        )
        identity.commit()
        identity.close()
