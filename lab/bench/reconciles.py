"""The reconciliation of persons by its own command, and the same rows merely read, by psycopg2, without any RPC."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from identity_stub import tables
from lab import processes
from lab.bench.backfills import Backfills
from lab.bench.house import House

TOGETHER = 1_000
"""Rows that the yardstick fetches at once, as many as a page of the product's."""


class Reconciles:
    """Reconciliations over one house. backfills: makes the accounts and their profiles."""

    def __init__(self, house: House, backfills: Backfills) -> None:
        self._house = house
        self._backfills = backfills
        self._environment = next(one.environment for one in house.services if one.module == "identity_stub")

    def prepare(self, users: int) -> None:
        """So many accounts with their profiles, and nobody else."""
        self._backfills.per_second(users)

    def per_second(self, users: int) -> float:
        """Accounts compared in a second, from the first id that is listed to the last answer. They must be equal."""
        said = processes.run(
            "identity_stub", "reconcile", "--json", "--migrating", "--only", "users",
            environment=self._environment, timeout_s=600.0,
        )  # fmt: skip
        report = json.loads(said)
        assert (report["equal"], report["compared"]) == (True, {"users": users}), report
        return float(users / report["seconds"])

    def merely_read(self, users: int) -> float:
        """Accounts a second whose rows are fetched from both databases, one after the other, and not looked at."""
        old = ", ".join(f"old_{fact}" for fact in tables.OLD_USER_FACTS)
        began = time.perf_counter()
        fetched = self._fetched("identity", f"SELECT user_id, profile_status, {old} FROM identity.users")
        self._fetched("profiles", "SELECT * FROM profiles.person")
        assert fetched == users
        return users / (time.perf_counter() - began)

    def _fetched(self, name: str, statement: str) -> int:
        """Rows of a statement, through a cursor of the server's."""
        url = make_url(self._house.databases[name].database_url(name)).set(drivername="postgresql")
        connection: Any = psycopg2.connect(url.render_as_string(hide_password=False))
        rows = 0
        with connection, connection.cursor(name="read") as cursor:
            cursor.execute(statement)
            while some := cursor.fetchmany(TOGETHER):
                rows += len(some)
        connection.close()
        return rows
