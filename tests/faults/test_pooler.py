"""Design §3: "Only what also runs behind a transaction-pooling proxy". The tests themselves, behind PgBouncer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from tandem.runtime.postgres import EmbeddedPostgres
from tests.support.pooler import BINARY, MIN_POOL, Pooler
from tests.support.required import FULL, is_required, needs
from tests.support.rules import eventually

ROOT = Path(__file__).resolve().parents[2]
_BRIEFLY = (
    "backfill", "coalescing", "identity_bulk", "identity_signup", "local_transaction", "profile_updates",
    "profiles_resolving", "profiles_staging", "purge", "reconcile", "sweeping",
)  # fmt: skip
"""What sends each statement of the product at least once."""

_NOT_BEHIND = (
    "embedded_postgres", "console", "console_ordering", "metrics_pages", "migrations", "tracing",
    "kafka", "kafka_processes", "dead_letter_commands", "saga", "hybrid", "designs",
)  # fmt: skip
"""Tests of the server, not of what uses it; of pages; and of what goes by a broker."""

BEHIND = ["tests/test_protocol_decision.py", "tests/test_protocol_rules.py"]
if FULL:
    BEHIND += ["tests/integration", *(f"--ignore=tests/integration/test_{name}.py" for name in _NOT_BEHIND)]
else:
    BEHIND += [f"tests/integration/test_{name}.py" for name in _BRIEFLY]

LEAST_PASSED = 400
LEAST_TRANSACTIONS = 1_000
"""Local transactions through each worker's pooler; tests that went past it would be too few."""

pytestmark = needs("pooler", BINARY is not None, "PgBouncer is not installed")


@contextmanager
def behind(postgres: EmbeddedPostgres) -> Iterator[tuple[Pooler, psycopg2.extensions.connection]]:
    """A client of a database behind a pooler of its own."""
    with tempfile.TemporaryDirectory(prefix="tandem-pooler-") as folder, ExitStack() as stack:
        pooler = Pooler(Path(folder), postgres.tcp_url("postgres"))
        stack.callback(pooler.stop)
        url = make_url(pooler.url(postgres.database_url("behind_a_pooler"))).set(drivername="postgresql")
        yield pooler, stack.enter_context(closing(psycopg2.connect(url.render_as_string())))


def test_one_client_meets_several_sessions(postgres: EmbeddedPostgres) -> None:
    """What the run below stands on: the next local transaction is in another session, and finds no setting there."""
    with behind(postgres) as (pooler, client), client.cursor() as cursor:

        def asked(statement: str) -> str | None:
            cursor.execute(statement)
            (found,) = cursor.fetchone() or (None,)
            client.commit()
            return None if found is None else str(found)

        met: set[str | None] = set()
        eventually(lambda: met.add(asked("SELECT pg_backend_pid()")) or len(met) == MIN_POOL)
        assert len({asked("SELECT pg_backend_pid()") for _ in range(2)}) == 2, "in turn"
        asked("SELECT set_config('tandem.left_behind', 'yes', false)")
        assert asked("SELECT current_setting('tandem.left_behind', true)") != "yes"
        before = pooler.transactions
        asked("SELECT 1")
        eventually(lambda: pooler.transactions > before)


@pytest.mark.skipif(not (FULL or is_required("pooler")), reason="takes minutes: CI and scripts/test --full run it")
def test_the_protocol_behind_a_pooler(tmp_path: Path) -> None:
    """Transaction mode: every local transaction may get another server session, and none keeps anything."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *BEHIND],
        cwd=ROOT,
        env={**os.environ, "TANDEM_POOLER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST_PASSED
    went_through = [int(report.read_text()) for report in tmp_path.glob("*.transactions")]
    print(f"local transactions behind each worker's pooler: {went_through}")
    assert len(went_through) == 2
    assert min(went_through) >= LEAST_TRANSACTIONS
