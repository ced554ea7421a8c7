"""scripts/compare in its short form: what it says of two-phase commit, and of naive dual write, is told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_the_comparison_tells_the_control_apart() -> None:
    """Killed between the writes, dual write leaves profiles without accounts for good, two-phase commit nothing; and of
    two clients that overwrite each other one update is lost, where one of those that merge is told.
    """
    options = ("--seconds", "1.5", "--rate", "10", "--seed", "1", "--json")
    chosen = ("--design", "two-phase", "--design", "dual write (control)")
    scenarios = ("--scenario", "identity killed", "--scenario", "two updates")
    done = subprocess.run(
        [sys.executable, "-m", "lab.compare", *options, *chosen, *scenarios],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[tuple[str, str], dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        row = json.loads(line)
        told[row["design"].partition(" (")[0], row["scenario"]] = row
    ours, control = told["two-phase", "identity killed"], told["dual write", "identity killed"]
    assert ours["signups"] > 5
    assert ours["is_quiet"], "something is still in doubt"
    assert ours["after_quiet"] == [0, 0]
    assert (ours["saw_none"], ours["never_readable"]) == (0, 0), "an acknowledged user without a profile"
    accounts, profiles = control["after_quiet"]
    assert accounts == 0
    assert profiles >= 2, "the control leaves orphans, or it would prove nothing"
    assert told["two-phase", "two updates"]["lost_updates"] == 0
    assert told["two-phase", "two updates"]["told_to_lose"] > 0
    assert told["dual write", "two updates"]["lost_updates"] > 0
