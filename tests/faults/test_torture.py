"""The torture itself, for half a minute, and of another design; and that its judge can tell: the control groups leave
orphans."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.broker import VARIABLE
from lab.torture.designs import designs
from lab.torture.faults import Family
from lab.torture.house import TTL_S
from lab.torture.plan import LONGEST_PAUSE_S
from tests.support.required import SLOW

ROOT = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get("TANDEM_FULL"))
SEED = int(os.environ.get("TANDEM_SEED") or random.randrange(1_000_000))
"""Of all runs: a plan is made of its seed alone, so product and control groups meet the same faults."""

SECONDS = 150 if FULL else 30
CONTROL_SECONDS = {"dual-write": 6, "sweep-by-age": 20}
"""Until after the planned fault that this naive code can't survive: see `lab.torture.plan._opening`."""

OTHERS_SECONDS = 60 if FULL else 6
INVARIANTS = {"hybrid": 8, "saga": 10, "update-or-create": 9}

KINDS = (
    "sign_up", "create_user", "invite", "accept", "read_person", "read_business", "read_user", "read_account",
    "update_person", "update_business",
)  # fmt: skip


def torture(seconds: int, folder: Path, *more: str) -> tuple[int, str]:
    """Its exit status, and what it printed."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "lab.torture",
            "--seconds",
            str(seconds),
            "--seed",
            str(SEED),
            "--folder",
            str(folder),
            *more,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 180,
        check=False,
        env={name: value for name, value in os.environ.items() if name != VARIABLE},  # its broker is broken
    )
    print(done.stdout)
    return done.returncode, done.stdout + done.stderr


def cells(said: str, *first: str) -> list[str]:
    """The cells of the one row of a table that begins so."""
    rows = [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in said.splitlines() if "│" in line]
    (row,) = [row for row in rows if row[: len(first)] == list(first)]
    return row[len(first) :]


def number(said: str, *first: str) -> float:
    """The first number after them in that row."""
    return float(cells(said, *first)[0].split()[0].rstrip(","))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which is closed to the unprivileged user that PostgreSQL runs under if we are root."""
    with tempfile.TemporaryDirectory(prefix="tandem-torture-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_torture(folder: Path) -> None:
    """I0 to I6 hold after faults of each family; each of them had something to judge; the seed is printed."""
    status, said = torture(SECONDS, folder)
    assert status == 0, said
    assert said.count("holds") == 7, said
    assert "not quiet" not in said, said
    for kind in KINDS:
        assert number(said, kind, "ok") > 0, f"no {kind} was acknowledged:\n{said}"
    for kind in ("sign_up", "create_user"):
        assert number(said, kind, "refused") > 0, f"no {kind} was refused:\n{said}"
    for invariant in ("I0", "I1", "I2", "I3", "I4", "I5", "I6"):
        assert int(cells(said, invariant)[-1]) > 0, f"{invariant} judged nothing:\n{said}"
    for family in designs()["two-phase"].targets.families:
        assert number(said, f"faults: {family}") > 0, said
    assert int(cells(said, "faults, kills among them")[0].split()[1]) > 0, said
    assert number(said, "longest pause of a process") >= (LONGEST_PAUSE_S if FULL else TTL_S), said
    assert int(cells(said, "starts of identity, confirming in the background")[0].split()[1]) > 0, said


@pytest.mark.parametrize(
    "design", ["saga", pytest.param("hybrid", marks=SLOW), pytest.param("update-or-create", marks=SLOW)]
)
def test_another_design(design: str, folder: Path) -> None:
    """What it promises holds, for shorter: each kind of call was answered; processes, wires, the broker were broken."""
    status, said = torture(OTHERS_SECONDS, folder, "--design", design)
    assert status == 0, said
    assert said.count("holds") == INVARIANTS[design], said
    assert "not quiet" not in said, said
    for kind in KINDS:
        if not kind.startswith("update"):  # there may be nothing yet that could be updated
            assert number(said, kind, "ok") > 0, f"no {kind} was acknowledged:\n{said}"
    assert number(said, "create_user", "refused") > 0, said
    for invariant in ("I0", "I1", "I2", "I3", "I4", "I5"):
        assert int(cells(said, invariant)[-1]) > 0, f"{invariant} judged nothing:\n{said}"
    met = {family for family in designs()[design].targets.families if number(said, f"faults: {family}") > 0}
    assert met >= {Family.KILL, Family.WIRE}, said
    assert Family.BROKER in met or not designs()[design].targets.has_broker, said
    assert number(said, "orphans") == 0, said


@SLOW
@pytest.mark.parametrize("control", ["dual-write", "sweep-by-age"])
def test_the_control_groups_leave_orphans(control: str, folder: Path) -> None:
    """The naive code under the same faults: the judge finds what is on one side only, and says so with its history."""
    status, said = torture(CONTROL_SECONDS[control], folder, "--control", control)
    assert status == 1, said
    assert re.search(r"I1 │.*│ broken \d+ times", said), said
    assert re.search(r"I1: .* is on one side only", said), said
    assert "participant's row of " in said, said
    assert re.search(r"    fault .*(kill -9|cut)", said), said
    assert number(said, "orphans") > 0, said
