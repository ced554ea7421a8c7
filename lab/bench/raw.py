"""The same statements without any protocol: by pgbench, a C program, one row at a time; and by psycopg2 in batches.

The three statements that any two-phase commit needs: stage a row, write the decision, publish the row. Each is a local
transaction of its own, on the database where the product has it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import psycopg2
import psycopg2.extras
from sqlalchemy.engine import make_url

from lab.bench.house import House, people

STAGED = """
CREATE SCHEMA IF NOT EXISTS raw;
CREATE TABLE IF NOT EXISTS raw.staged (transaction_id uuid PRIMARY KEY, person_id uuid NOT NULL, state text NOT NULL,
    given_name text, family_name text, display_name text NOT NULL, email_addresses jsonb NOT NULL,
    prepared_at timestamptz NOT NULL DEFAULT now());
"""
DECISION = """
CREATE SCHEMA IF NOT EXISTS raw;
CREATE TABLE IF NOT EXISTS raw.decision (transaction_id uuid PRIMARY KEY, user_id uuid NOT NULL, email text NOT NULL,
    participants jsonb NOT NULL, decided_at timestamptz NOT NULL DEFAULT now());
"""
STAGE_AND_PUBLISH = """
INSERT INTO raw.staged (transaction_id, person_id, state, given_name, family_name, display_name, email_addresses)
VALUES (gen_random_uuid(), gen_random_uuid(), 'prepared', 'Alexandria', 'Ocasio-Cortez', 'Alexandria Ocasio-Cortez',
        '["01a210c5-1cd3-7173-a2e9-f4d246327e8f@example.org"]') RETURNING transaction_id AS id \\gset
UPDATE raw.staged SET state = 'active' WHERE transaction_id = :id;
"""
DECIDE = """
INSERT INTO raw.decision (transaction_id, user_id, email, participants)
VALUES (gen_random_uuid(), gen_random_uuid(), '01a210c5-1cd3-7173-a2e9-f4d246327e8f@example.org',
        '{"profiles": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}');
"""
SCRIPTS = {"profiles": STAGE_AND_PUBLISH, "identity": DECIDE}
SHARE = {"profiles": 2 / 3, "identity": 1 / 3}
"""Of the connections: two of the three statements are on profiles, and each signup has one on its way at a time."""


class Raw:
    """pgbench against both servers of a house."""

    def __init__(self, house: House) -> None:
        self._urls = {name: make_url(server.database_url(name)) for name, server in house.databases.items()}
        self._bin = house.databases["identity"].bin
        self._folder = Path(tempfile.mkdtemp(prefix="tandem-raw-"))
        for name, script in SCRIPTS.items():
            (self._folder / f"{name}.sql").write_text(script.replace("\n\\gset", " \\gset"))
        for name, tables in (("profiles", STAGED), ("identity", DECISION)):
            connection = psycopg2.connect(self._urls[name].set(drivername="postgresql").render_as_string(False))
            with connection, connection.cursor() as cursor:
                cursor.execute(tables)
            connection.close()

    def close(self) -> None:
        """Removes its files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def latency_ms(self, count: int) -> float:
        """One signup's three statements, one after the other on one connection each: the sum of the medians."""
        total = 0.0
        for name in SCRIPTS:
            prefix = self._folder / f"log-{name}"
            self._wait([self._start(name, 1, count, "--log", f"--log-prefix={prefix}")])
            times = sorted(
                int(line.split()[2])
                for path in self._folder.glob(f"{prefix.name}*")
                for line in path.read_text().splitlines()
            )
            for path in self._folder.glob(f"{prefix.name}*"):
                path.unlink()
            total += times[len(times) // 2] / 1e3
        return total

    def per_second(self, connections: int, count: int) -> float:
        """So many signups' statements by so many connections at once, both servers at the same time."""
        clients = {name: max(1, round(connections * share)) for name, share in SHARE.items()}
        began = time.perf_counter()
        self._wait([self._start(name, clients[name], max(1, count // clients[name])) for name in SCRIPTS])
        return count / (time.perf_counter() - began)

    def _start(self, name: str, clients: int, each: int, *more: str) -> subprocess.Popen[str]:
        url = self._urls[name]
        host = str(url.query["host"]) if "host" in url.query else str(url.host)
        port = str(url.query.get("port", url.port))
        return subprocess.Popen(
            [
                str(self._bin / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2)),
                "-t", str(each), "-f", str(self._folder / f"{name}.sql"), "-h", host, "-p", port,
                "-U", str(url.username), *more, str(url.database),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._folder,
        )  # fmt: skip

    @staticmethod
    def _wait(running: Sequence[subprocess.Popen[str]]) -> None:
        for process in running:
            said, _ = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(f"pgbench failed:\n{said[-2000:]}")


class Batched:
    """psycopg2's execute_values: the product's own statements' work, many rows in each, without RPC or validation."""

    def __init__(self, house: House) -> None:
        self._connections = {}
        for name, server in house.databases.items():
            url = make_url(server.database_url(name)).set(drivername="postgresql")
            self._connections[name] = psycopg2.connect(url.render_as_string(hide_password=False))
            psycopg2.extras.register_uuid(conn_or_curs=self._connections[name])  # type: ignore[no-untyped-call]
        self._people = people()

    def close(self) -> None:
        """Closes the connections."""
        for connection in self._connections.values():
            connection.close()

    def sign_up(self, size: int) -> None:
        """So many signups: staged, decided with the users, published, each in one local transaction."""
        some = [next(self._people) for _ in range(size)]
        ids = [uuid4() for _ in some]
        values, digests = psycopg2.extras.execute_values, psycopg2.extras.Json({"profiles": "00" * 32})
        profiles, identity = self._connections["profiles"], self._connections["identity"]
        with profiles, profiles.cursor() as cursor:
            values(
                cursor,
                "INSERT INTO twophase.prepared_transaction (coordinator, transaction_id, log_id, digests, staged,"
                " state, confirmed, next_attempt_at) VALUES %s",
                [("identity", id_, id_, b"\0" * 32, 1, "prepared", False) for id_ in ids],
                template="(%s, %s, %s, %s, %s, %s, %s, now() + interval '60 s')",
                page_size=size,
            )
            values(
                cursor,
                "INSERT INTO profiles.person (person_id, given_name, middle_name, family_name, suffix, display_name,"
                " email_addresses, nationalities, coordinator, transaction_id, state) VALUES %s",
                [
                    (p.person_id, p.name.given_name, p.name.middle_name, p.name.family_name, p.name.suffix,
                     p.name.display_name, psycopg2.extras.Json(list(p.email_addresses)),
                     psycopg2.extras.Json(list(p.nationalities)), "identity", id_, "prepared")
                    for (_, _, p), id_ in zip(some, ids, strict=True)
                ],
                page_size=size,
            )  # fmt: skip
        with identity, identity.cursor() as cursor:
            values(
                cursor,
                "INSERT INTO users (user_id, email) VALUES %s",
                [(user_id, email) for user_id, email, _ in some],
                page_size=size,
            )
            values(
                cursor,
                "INSERT INTO twophase.decision (coordinator, transaction_id, outcome, participants, undelivered,"
                " parked, next_attempt_at) VALUES %s",
                [("identity", id_, "committed", digests, "{}", "{}") for id_ in ids],
                template="(%s, %s, %s, %s, %s, %s, now())",
                page_size=size,
            )
        with profiles, profiles.cursor() as cursor:
            cursor.execute(
                "UPDATE twophase.prepared_transaction SET state = 'committed', confirmed = true, resolved_at = now(),"
                " resolved_by = 'coordinator', next_attempt_at = NULL WHERE coordinator = 'identity'"
                " AND transaction_id = ANY(%s)",
                (ids,),
            )
            cursor.execute(
                "WITH published AS (UPDATE profiles.person SET state = 'active', updated_at = now() WHERE coordinator ="
                " 'identity' AND transaction_id = ANY(%s) AND state = 'prepared' RETURNING person_id, transaction_id)"
                " INSERT INTO profiles.audit_event (actor, action, entity_kind, entity_id, version, coordinator,"
                " transaction_id) SELECT 'batched', 'created', 'person', person_id, 1, 'identity', transaction_id"
                " FROM published",
                (ids,),
            )
