"""The checkers are checked: each of these mistakes, planted in the shipped code, turns tests red.

A copy of the project gets the mistake, and the unmodified tests run there. What is replaced must be there to be
replaced, so a mistake can't silently become none; and without the mistake the same tests pass in a copy.
"""

from __future__ import annotations

import os
import re
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
        "tandem/coordinator/deciding.py",
        "    return sa.insert(d).from_select(\n"
        '        ["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked",'
        ' "next_attempt_at"],\n'
        "        chosen,\n"
        "    )\n",
        "    from sqlalchemy.dialects.postgresql import insert\n\n"
        "    return insert(d).from_select(\n"
        '        ["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked",'
        ' "next_attempt_at"],\n'
        "        chosen,\n"
        "    ).on_conflict_do_nothing()\n",
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


BROKEN = re.compile(
    r"^E +(\w+\.)*(NameError|ImportError|ModuleNotFoundError|SyntaxError|AttributeError|TypeError)\b", re.MULTILINE
)
"""What a test says of a mistake that was planted wrongly: such code doesn't run, so nobody had to notice anything."""


def copied(folder: Path) -> Path:
    """A copy of the project."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def tried(copy: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The copy's tests, on the copy's code."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=4 * WITHIN_S,
        check=False,
    )


def noticed_by(said: str) -> list[str]:
    """The tests that have failed by themselves: not in what they stand on, and not because the code doesn't run."""
    if BROKEN.search(said):
        return []
    return re.findall(r"^FAILED (.+?)(?: - .*)?$", said, re.MULTILINE)


@pytest.fixture(scope="module")
def noticed() -> dict[str, list[str]]:
    """Which tests have noticed which mistake."""
    return {}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_mistake_is_noticed(mutant: Mutant, noticed: dict[str, list[str]], tmp_path: Path) -> None:
    """Within a minute, by a test that fails (and not by one that can't be collected, or finds no house)."""
    target = copied(tmp_path) / mutant.file
    source = target.read_text()
    assert source.count(mutant.right) == 1, f"{mutant.file} no longer holds what {mutant.name} replaces"
    target.write_text(source.replace(mutant.right, mutant.wrong))

    file, expression = mutant.tests
    started = time.monotonic()
    done = tried(tmp_path, "-x", file, "-k", expression)
    said = done.stdout[-3000:]
    assert done.returncode == 1, f"nobody noticed {mutant.name}:\n{said}"
    noticed[mutant.name] = noticed_by(done.stdout)
    assert noticed[mutant.name], f"no test noticed {mutant.name} by itself:\n{said}"
    assert time.monotonic() - started < WITHIN_S


def test_without_a_mistake_nothing_is_noticed(noticed: dict[str, list[str]], tmp_path: Path) -> None:
    """The control: each test that has just noticed a mistake passes in a copy without one."""
    if not noticed:
        pytest.skip("no mistake was planted in this run")
    tests = sorted({test for found in noticed.values() for test in found})
    print("\n".join(tests))
    done = tried(copied(tmp_path), *tests)
    said = done.stdout[-3000:]
    assert done.returncode == 0, said
    assert f"{len(tests)} passed" in said


def test_code_that_does_not_run_is_no_mistake_noticed() -> None:
    """An error in a fixture, and a name that isn't there, are told from a test's own failure."""
    failed = "E   AssertionError: waited in vain\nFAILED tests/a.py::test_b - AssertionError: waited in vain\n"
    assert noticed_by(failed) == ["tests/a.py::test_b"]
    assert noticed_by("ERROR tests/a.py::test_b - OperationalError\n") == []
    assert noticed_by("E   NameError: name 'x' is not defined\nFAILED tests/a.py::test_b - NameError\n") == []
