"""What the console says can be done about a transaction: neither more than helps, nor less."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from coordinator.console.remedies import Remedies, remedies
from tandem.coordinator.story import Story
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telling import Branch, Decision

NOW = datetime(2026, 5, 1, 10, 0, 30, tzinfo=UTC)
KEY = TransactionKey("identity", UUID("0190a5a0-0000-7000-8000-000000000000"))
COMMITTED = Decision("committed", NOW, 0, None, "")
LATER = NOW + timedelta(seconds=30)


def of(*branches: Branch, decision: Decision | None = None, ordered: frozenset[str] = frozenset()) -> Remedies:
    return remedies(Story(KEY, NOW, NOW, False, decision, branches, []), ordered)


def prepared(**changes: object) -> Branch:
    about = {"state": "prepared", "confirmed": False, "prepared_at": NOW, "asks_at": LATER, **changes}
    return Branch("profiles", **about)  # type: ignore[arg-type]


def test_nothing_is_to_be_done() -> None:
    """Finished on both sides."""
    done = Branch("profiles", listed=True, acknowledged=True, state="committed")
    assert of(done, decision=COMMITTED) == Remedies(False, [], [], "Nothing needs to be.")


def test_nothing_is_known() -> None:
    """A participant that can't be asked: that nothing needs to be done would be a guess."""
    away = Branch("profiles", listed=True, acknowledged=True, trouble="UNAVAILABLE")
    assert of(away, decision=COMMITTED).nothing == (
        "What profiles can be helped with is not known: look again once it can be asked."
    )


@pytest.mark.parametrize(
    ("decision", "branch"),
    [
        (COMMITTED, Branch("profiles", listed=True, acknowledged=True, state="aborted")),
        (Decision("aborted", NOW, 0, None, ""), Branch("profiles", state="committed")),
    ],
)
def test_a_contradiction(decision: Decision, branch: Branch) -> None:
    """Both sides are finished, and can't both be right: no button helps, and it is not said that all is well."""
    assert "contradict each other" in of(branch, decision=decision).nothing


def test_what_is_young_is_not_to_be_forced() -> None:
    """Its sweeper has not asked yet: it can be asked for now, and no more."""
    (there,) = of(prepared()).there
    assert there.commands == [
        f"python -m profiles_server transactions resolve {KEY} --actor '…' --reason '…'",
    ]
    (there,) = of(prepared(), ordered=frozenset({"profiles"})).there
    assert (there.takes_orders, there.stuck, there.commands) == (True, False, [])


@pytest.mark.parametrize(
    "changes", [{"asks_at": NOW}, {"asked": 1}, {"parked_there": "expired"}, {"asks_at": None}], ids=str
)
def test_what_is_stuck_may_be_forced(changes: dict[str, object]) -> None:
    """As it was decided, where that is known; else aborted."""
    for decision, outcome in ((None, "aborted"), (COMMITTED, "committed")):
        (there,) = of(prepared(**changes), decision=decision).there
        assert [command.split()[4] for command in there.commands] == ["resolve", "force"]
        assert f"--outcome {outcome} --actor '…' --reason '…' --dry-run" in there.commands[1]
    (there,) = of(prepared(**changes), ordered=frozenset({"profiles"})).there
    assert (there.stuck, there.commands) == (True, [])


@pytest.mark.parametrize("takes_orders", [True, False])
def test_what_was_forced_can_be_closed(takes_orders: bool) -> None:
    """By its own command line in any case; it is not forced twice."""
    forced = Branch("other", state="aborted", confirmed=False, asks_at=NOW, asked=3)
    (there,) = of(forced, ordered=frozenset({"other"} if takes_orders else ())).there
    assert not there.stuck
    assert not there.prepared
    assert [command.split()[4] for command in there.commands] == ([] if takes_orders else ["resolve"]) + ["close"]
    assert there.commands[-1].startswith("python -m … transactions close")


def test_deliveries() -> None:
    """What was not acknowledged is delivered again; what is parked may be closed, too."""
    waiting = Branch("profiles", listed=True, state="committed")
    assert of(waiting, decision=COMMITTED) == Remedies(True, [], [], "")
    parked = Branch("profiles", listed=True, parked="TRANSACTION_UNKNOWN")
    assert of(parked, decision=COMMITTED) == Remedies(True, ["profiles"], [], "")
