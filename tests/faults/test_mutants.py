"""The checkers are checked: each of these mistakes, planted in the shipped code, turns tests red.

A copy of the project gets the mistake, and the unmodified tests run there. What is replaced must be there to be
replaced, so a mistake can't silently become none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tandem", "coordinator", "profiles_server", "identity_stub", "lab", "tests")
WITHIN_S = 60.0

RULES = "tests/test_protocol_rules.py"
DECISION = "tests/test_protocol_decision.py"


@dataclass(frozen=True)
class Mutant:
    """A mistake: in `file`, `right` becomes `wrong`; `tests` (a file and a -k expression) must notice."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, str]


MUTANTS = (
    Mutant(
        "a sweeper that deletes by age",
        "tandem/participant/sweeper.py",
        "self._resolver.settle(pieces, by=ResolvedBy.SWEEPER, timeout_s=timeout_s)",
        "[(peer, piece, self._resolver._participant.abort([one.key for one in piece], ResolvedBy.SWEEPER)"
        " and {one.key: Outcome.ABORTED for one in piece}) for peer, piece in pieces.items()]",
        (RULES, "r9"),
    ),
    Mutant(
        "Resolve without fence",
        "tandem/coordinator/decision_log.py",
        "fenced = redo(undecided, self._fence, impatient=impatient, budget_s=BUDGET_S)",
        "fenced = [Decided(Outcome.ABORTED, {}, ()) for _ in undecided]",
        (DECISION, "r4 or r3"),
    ),
    Mutant(
        "a decision INSERT with ON CONFLICT DO NOTHING",
        "tandem/coordinator/decision_log.py",
        "        return sa.insert(d).from_select(\n"
        '            ["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked",'
        ' "next_attempt_at"],\n'
        "            chosen,\n"
        "        )\n",
        "        return insert(d).from_select(\n"
        '            ["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked",'
        ' "next_attempt_at"],\n'
        "            chosen,\n"
        "        ).on_conflict_do_nothing()\n",
        (DECISION, "r1 or r2 or r3 or decide"),
    ),
    Mutant(
        "any exception sends Abort",
        "tandem/coordinator/driver.py",
        "self._give_up([tx for tx in txs if tx.own_id and not tx.sent])",
        "self._give_up(list(txs))",
        (DECISION, "r3"),
    ),
    Mutant(
        "a Commit that publishes again what was published",
        "tandem/participant/rows.py",
        "        .where(*_same(locked), t.c.state == State.PREPARED.value)\n        .values(\n"
        '            state=sa.bindparam("to", type_=sa.Text),\n            confirmed=True,',
        "        .where(*_same(_keys), t.c.state != State.ABORTED.value)\n        .values(\n"
        '            state=sa.bindparam("to", type_=sa.Text),\n            confirmed=True,',
        (RULES, "participant_table"),
    ),
    Mutant(
        "a Resolve that ignores who asks",
        "tandem/coordinator/transaction.py",
        "if decided.outcome is Outcome.COMMITTED and decided.participants.get(asker) == digest:",
        "if decided.outcome is Outcome.COMMITTED:",
        (DECISION, "r4"),
    ),
    Mutant(
        "a reader that ignores prepared rows",
        "profiles_server/resolving.py",
        "            found = read(self.engine, ids)\n",
        "            found = Found(read(self.engine, ids).active, {})\n",
        ("tests/integration/test_profiles_resolving.py", "r10"),
    ),
    Mutant(
        "a Prepare that is accepted after Abort",
        "tandem/participant/participant.py",
        "buried = rows.bury(connection, rest, by, retention_ms=self.times.retention_ms) if rest else set()",
        "buried = set(rest) - rows.read(connection, rest).held.keys()",
        (RULES, "participant_table"),
    ),
    Mutant(
        "a purge of unfinished rows",
        "tandem/participant/purge.py",
        "finished=FINISHED,",
        "finished=sa.true(),",
        ("tests/integration/test_purge.py", "r14"),
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_mistake_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    """Within a minute, by a test that fails (and not by one that can't be collected)."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / mutant.file
    source = target.read_text()
    assert source.count(mutant.right) == 1, f"{mutant.file} no longer holds what {mutant.name} replaces"
    target.write_text(source.replace(mutant.right, mutant.wrong))

    file, expression = mutant.tests
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", expression],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=4 * WITHIN_S,
        check=False,
    )
    said = done.stdout[-3000:]
    assert done.returncode == 1, f"nobody noticed {mutant.name}:\n{said}"
    assert "FAILED" in said, said
    assert time.monotonic() - started < WITHIN_S
