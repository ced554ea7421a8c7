"""Design §3: "Only what also runs behind a transaction-pooling proxy". The tests themselves, behind PgBouncer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pooler import BINARY

ROOT = Path(__file__).resolve().parents[2]
BEHIND = ("tests/test_protocol_decision.py", "tests/test_protocol_rules.py", "tests/integration")
NOT_BEHIND = ("tests/integration/test_embedded_postgres.py",)
"""Tests of the server, not of what uses it."""


@pytest.mark.skipif(BINARY is None, reason="PgBouncer is not installed")
def test_the_protocol_behind_a_pooler() -> None:
    """Transaction mode: every local transaction may get another server session, and none keeps anything."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", *BEHIND]
        + [f"--ignore={path}" for path in NOT_BEHIND],
        cwd=ROOT,
        env={**os.environ, "TANDEM_POOLER": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-3000:]
