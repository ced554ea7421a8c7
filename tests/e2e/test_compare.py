"""scripts/compare in its short form: what it says of two-phase commit, and of naive dual write, is told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.required import SLOW

ROOT = Path(__file__).resolve().parents[2]

Rows = dict[tuple[str, str], dict[str, Any]]
"""(design, scenario) → what was told of it."""


def compare(*arguments: str) -> str:
    """What it says."""
    command = [sys.executable, "-m", "lab.compare", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows_of(said: str) -> Rows:
    """What it says with --json."""
    rows = [json.loads(line) for line in said.splitlines()]
    return {(row["design"].partition(" (")[0], row["scenario"]): row for row in rows}


def test_the_comparison_tells_the_control_apart() -> None:
    """Killed between the writes, dual write leaves profiles without accounts for good, two-phase commit nothing; and of
    two clients that overwrite each other one update is lost, where one of those that merge is told.
    """
    options = ("--seconds", "1.5", "--rate", "10", "--seed", "1", "--json")
    chosen = ("--design", "two-phase", "--design", "dual write (control)")
    scenarios = ("--scenario", "identity killed", "--scenario", "two updates")
    told = rows_of(compare(*options, *chosen, *scenarios))
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


@SLOW
def test_the_other_designs_are_told_by_what_they_promise(tmp_path: Path) -> None:
    """What profiles refuses is told at once or later, nothing is there twice, and no update is lost; and what was told
    can be shown as a table and plotted.
    """
    designs = ("hybrid", "saga", "update-or-create")
    options = ["--seconds", "1.5", "--rate", "8", "--seed", "2", "--json"]
    for design in designs:
        options += ["--design", design]
    scenarios = ("profile rejected", "two updates", "delivered twice")
    for scenario in scenarios:
        options += ["--scenario", scenario]
    said = compare(*options)
    told = rows_of(said)
    assert len(told) == len(designs) * len(scenarios)
    for row in told.values():
        assert row["is_quiet"], row
        assert row["after_quiet"] in (None, [0, 0]), row
        assert not row["lost_updates"], row
        assert not row["doubled"], row
    for design in designs:
        assert told[design, "two updates"]["told_to_lose"] > 0
        refused = told[design, "profile rejected"]
        assert bool(refused["refused"]) == (design == "hybrid"), refused
        assert bool(refused["rejected_later"]) == (design != "hybrid"), refused
    kept, plot = tmp_path / "told.json", tmp_path / "designs.png"
    kept.write_text(said)
    table = compare("--told", str(kept), "--plot", str(plot))
    assert all(design in table for design in designs)
    assert plot.read_bytes().startswith(b"\x89PNG")
