"""The commands that look: what an operator reads of a transaction that is stuck, and what asking now comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
import typer
from click.testing import Result
from typer.testing import CliRunner

from tandem.coordinator.cli import transactions_cli as at_coordinator
from tandem.coordinator.tables import coordinator_action
from tandem.participant.cli import transactions_cli as at_participant
from tandem.participant.tables import participant_action
from tandem.runtime.cli import age_s
from tandem.runtime.errors import InvalidRequest
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own

SECRET = "ada-lovelace"
"""Stands for what is personal in a write: no command shows it."""


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database, names=("ledger",)) as house:
        yield house


class Commands:
    """Both command lines, over one house."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._participant = at_participant("ledger", self._open_participant)
        self._coordinator = at_coordinator("coordinator", self._open_log, self._open_both)

    @contextmanager
    def _open_participant(self) -> Iterator[Any]:
        yield self._house.ledger.participant, self._house.ledger.resolver

    @contextmanager
    def _open_log(self) -> Iterator[Any]:
        yield self._house.coordinator.log

    @contextmanager
    def _open_both(self) -> Iterator[Any]:
        yield self._house.coordinator.log, self._house.coordinator.participants

    def participant(self, *arguments: object, code: int = 0) -> str:
        return self._run(self._participant, arguments, code)

    def coordinator(self, *arguments: object, code: int = 0) -> str:
        return self._run(self._coordinator, arguments, code)

    def _run(self, cli: typer.Typer, arguments: tuple[object, ...], code: int) -> str:
        result: Result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        assert SECRET not in result.output
        assert "Traceback" not in result.output
        return result.output


@pytest.fixture
def commands(house: House, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """As somebody runs them who has logged in as grace."""
    monkeypatch.setenv("LOGNAME", "grace")
    return Commands(house)


def prepared(house: House, *, age_s: float = 0.0) -> Any:
    """A transaction in doubt, prepared so long ago."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name(SECRET))]})
    house.ledger.set(tx.id, prepared_at=sa.func.now() - timedelta(seconds=age_s))
    return tx


def decide(house: House, tx: Any) -> None:
    with house.engine.begin() as connection:
        connection.execute(sa.insert(own).values(id=tx.id))
        connection.execute(tx.decision)


def taken(house: House, table: sa.Table) -> list[tuple[str, str, str]]:
    engine = house.ledger.engine if table is participant_action else house.engine
    with engine.connect() as connection:
        rows = connection.execute(sa.select(table.c.action, table.c.actor, table.c.reason).order_by(table.c.action_id))
        return [(row.action, row.actor, row.reason) for row in rows]


def keys(output: str) -> list[str]:
    found = json.loads(output)["transactions"]
    return [f"{row['coordinator']}/{row['transaction_id']}" for row in found]


def test_a_participant_lists(house: House, commands: Commands) -> None:
    """Each filter keeps what it says; pages join without a gap; a table says ages in words."""
    assert commands.participant("list").strip() == "none"
    old, new, parked, done = (prepared(house, age_s=200), prepared(house), prepared(house), prepared(house))
    house.ledger.set(parked.id, parked="expired", next_attempt_at=None)
    decide(house, done)
    done.finish()
    forced = prepared(house, age_s=100)
    commands.participant("force", forced.key, "--outcome", "aborted", "--reason", "the disk is gone")
    for arguments, expected in (
        ((), [old, new, parked, done, forced]),
        (("--state", "prepared"), [old, new, parked]),
        (("--state", "committed"), [done]),
        (("--older-than", "3m"), [old]),
        (("--older-than", "4m"), []),
        (("--parked",), [parked]),
        (("--unconfirmed",), [old, new, parked, forced]),
        (("--unconfirmed", "--state", "aborted"), [forced]),
        (("--coordinator", COORDINATOR, "--state", "committed"), [done]),
        (("--coordinator", "another"), []),
    ):
        assert sorted(keys(commands.participant("list", "--json", *arguments))) == sorted(
            str(tx.key) for tx in expected
        ), arguments
    seen: list[str] = []
    page = ""
    for _ in range(3):
        output = commands.participant("list", "--json", "--limit", 2, *(("--page", page) if page else ()))
        seen += keys(output)
        page = json.loads(output)["next_page"]
    assert page == ""
    assert seen == keys(commands.participant("list", "--json"))
    table = commands.participant("list", "--limit", 3)
    assert "3 minutes" in table
    assert "--page" in table
    assert "parked: expired" in commands.participant("list", "--parked")
    assert "aborted, unconfirmed" in commands.participant("list", "--unconfirmed")
    assert "like 90s, 5m" in commands.participant("list", "--older-than", "a while", code=1)
    assert "page_token" in commands.participant("list", "--page", "nonsense", code=1)


def test_a_coordinator_lists(house: House, commands: Commands) -> None:
    """Each filter keeps what it says; "undelivered" holds the parked ones, too."""
    waiting, parked, done, aborted = (prepared(house) for _ in range(4))
    for tx in (waiting, parked, done):
        decide(house, tx)
    done.finish()
    house.coordinator.log.delivered({"ledger": [done.key]})
    house.coordinator.log.park("ledger", {parked.key: "TRANSACTION_UNKNOWN"})
    aborted.finish()
    for arguments, expected in (
        ((), [waiting, parked, done, aborted]),
        (("--state", "committed"), [waiting, parked, done]),
        (("--undelivered",), [waiting, parked]),
        (("--undelivered", "--participant", "ledger"), [waiting, parked]),
        (("--undelivered", "--participant", "other"), []),
        (("--parked",), [parked]),
        (("--parked", "--participant", "other"), []),
        (("--participant", "ledger"), [waiting, parked, done]),
        (("--older-than", "1h"), []),
    ):
        assert sorted(keys(commands.coordinator("list", "--json", *arguments))) == sorted(
            str(tx.key) for tx in expected
        ), arguments
    table = commands.coordinator("list", "--undelivered")
    assert "ledger: TRANSACTION_UNKNOWN" in table
    assert "less than a second" in table or "second" in table


def test_a_stuck_transaction_is_told_and_ended(house: House, commands: Commands) -> None:
    """In doubt, undecided: both sides say what that is and what comes next; `resolve` asks now and ends it."""
    tx = prepared(house, age_s=200)
    told = commands.participant("show", tx.key)
    assert "It is in doubt: ledger has promised that it can commit" in told
    assert f"The sweeper asks {COORDINATOR} for the decision at " in told
    assert "if it is undecided still, it is aborted for good" in told
    told = commands.coordinator("show", tx.key)
    assert "No decision was written for it: it is not committed." in told
    assert "ledger holds 1 row prepared since" in told

    said = commands.participant("resolve", tx.key, "--reason", "the user waits", "--actor", "ada")
    assert "it was decided aborted: discarded" in said
    assert "recorded: ada, " in said
    assert taken(house, participant_action) == [("resolve", "ada", "the user waits")]
    told = commands.participant("show", tx.key)
    assert "Nothing is left to do." in told
    assert "ada did `resolve` (prepared) by hand at " in told
    shown = json.loads(commands.participant("show", tx.key, "--json"))
    assert (shown["state"], shown["actions"][0]["actor"]) == ("aborted", "ada")
    assert "there is nothing of the kind to be done" in commands.participant(
        "resolve", tx.key, "--reason", "again", code=1
    )


def test_r3_resolve_fences_nobody_whose_driver_is_at_work(house: House, commands: Commands) -> None:
    """It asks without a fence then: undecided stays undecided, and the driver may commit."""
    tx = prepared(house)
    said = commands.participant("resolve", tx.key, "--reason", "impatience", code=1)
    assert "undecided, and its driver may still be at work" in said
    assert house.outcome(tx.id) is None
    decide(house, tx)
    assert "published" in commands.participant("resolve", tx.key, "--reason", "now?")


def test_r5_resolve_confirms_what_was_forced(house: House, commands: Commands) -> None:
    """Agreement ends the asking; contradiction is said, and stays due for the sweeper, which parks it."""
    right, wrong = prepared(house, age_s=200), prepared(house, age_s=200)
    decide(house, right)
    decide(house, wrong)
    dry = commands.participant("force", right.key, "--outcome", "committed", "--reason", "x", "--dry-run")
    assert "nothing was changed, nothing recorded" in dry
    assert taken(house, participant_action) == []
    for tx, outcome in ((right, "committed"), (wrong, "aborted")):
        said = commands.participant("force", tx.key, "--outcome", outcome, "--reason", "the log is lost")
        assert "recorded: grace, " in said
    assert "published" in commands.participant("resolve", right.key, "--reason", "it is back")
    said = commands.participant("resolve", wrong.key, "--reason", "it is back", code=1)
    assert "ALREADY_ABORTED" in said
    house.ledger.sweeper.run_once()
    told = commands.participant("show", wrong.key)
    assert "it is aborted there, and the decision is committed" in told
    assert "`close` ends the asking" in told
    commands.participant("close", wrong.key, "--reason", "opened by hand")
    assert "Nothing is left to do." in commands.participant("show", wrong.key)


@pytest.mark.parametrize("login", ["root", "tandem", "nobody", None])
def test_somebody_acts(house: House, commands: Commands, monkeypatch: pytest.MonkeyPatch, login: str | None) -> None:
    """A login name that is everybody's, or none, is not written down as who did it: --actor is asked for."""

    def user() -> str:
        if login is None:
            raise KeyError("getpwuid(): uid not found: 10001")
        return login

    monkeypatch.setattr("tandem.runtime.cli.getpass.getuser", user)
    tx = prepared(house)
    decide(house, tx)
    house.coordinator.log.park("ledger", {tx.key: "TRANSACTION_UNKNOWN"})
    for command, arguments in (
        (commands.participant, ("force", tx.key, "--outcome", "aborted", "--reason", "x")),
        (commands.participant, ("resolve", tx.key, "--reason", "x")),
        (commands.coordinator, ("retry", tx.key)),
        (commands.coordinator, ("close", tx.key, "--participant", "ledger", "--reason", "x")),
    ):
        said = command(*arguments, code=2)
        assert "--actor" in said
        assert "say who you are" in said
    assert taken(house, participant_action) == taken(house, coordinator_action) == []
    commands.coordinator("retry", tx.key, "--actor", "ada")
    assert [actor for _, actor, _ in taken(house, coordinator_action)] == ["ada"]


def test_what_is_kept_is_one_line(house: House, commands: Commands) -> None:
    """A name or a reason can neither write on an operator's terminal nor look like another line."""
    tx = prepared(house)
    for name, other in (("actor", "reason"), ("reason", "actor")):
        for text in ("x\ny", "x\ry", "\x1b[2Jx", "x\x07", "x\x7f", "x\u0085y", "x\u2028y", "x\ud800"):
            said = commands.participant("retry", tx.key, f"--{name}", text, f"--{other}", "ada", code=1)
            assert f"{name}: must be one line without control characters" in said
    assert taken(house, participant_action) == []
    commands.participant("retry", tx.key, "--actor", "Åsa Çelik-O’Neill", "--reason", "naïve: 50 % «lost» 😀")
    assert "naïve: 50 % «lost» 😀" in commands.participant("show", tx.key)


def test_a_parked_delivery_is_told_retried_and_given_up(house: House, commands: Commands) -> None:
    """Each deed is recorded with who and why, and shown; the decision is never rewritten (R2)."""
    tx = prepared(house)
    decide(house, tx)
    house.coordinator.log.park("ledger", {tx.key: "TRANSACTION_UNKNOWN"})
    told = commands.coordinator("show", tx.key)
    assert "The delivery to ledger is parked (TRANSACTION_UNKNOWN)" in told
    assert "recorded: ada, " in commands.coordinator("retry", tx.key, "--actor", "ada", "--reason", "restored")
    assert "ledger has not acknowledged it: recovery delivers it as soon as it runs" in commands.coordinator(
        "show", tx.key
    )
    house.coordinator.log.park("ledger", {tx.key: "TRANSACTION_UNKNOWN"})
    given_up = ("close", tx.key, "--participant", "ledger", "--actor", "ada", "--reason", "written by hand")
    assert "the decision stays what it is" in commands.coordinator(*given_up)
    assert [action for action, _, _ in taken(house, coordinator_action)] == ["retry", "close"]
    shown = json.loads(commands.coordinator("show", tx.key, "--json"))
    assert shown["decision"]["outcome"] == "committed"
    assert [action["reason"] for action in shown["actions"]] == ["restored", "written by hand"]
    commands.coordinator(*given_up, code=1)
    commands.coordinator("retry", tx.key, code=1)


def test_what_nobody_knows(commands: Commands) -> None:
    """Exit status 1 and one line; a name that is none, too."""
    key = f"{COORDINATOR}/{new_id()}"
    assert "nothing is known of this transaction here" in commands.participant("show", key, code=1)
    assert "nothing is known of this transaction" in commands.coordinator("show", key, code=1)
    assert "coordinator/transaction_id" in commands.participant("show", "nonsense", code=1)
    for no_time in (uuid4(), UUID(int=(0xFFFF_FFFF_FFFF << 80) | (new_id().int & ((1 << 80) - 1)))):
        assert "no UUIDv7 of our time" in commands.coordinator("show", f"{COORDINATOR}/{no_time}", code=1)
    commands.participant("force", key, "--outcome", "aborted", code=2)


def test_ages_as_they_are_written() -> None:
    """Seconds, minutes, hours, days; anything else is refused."""
    assert [age_s(text) for text in ("", "90", "90s", "5m", "2h", "3d")] == [None, 90, 90, 300, 7200, 259_200]
    for text in ("m", "-5m", "5 weeks", "1.5h"):
        with pytest.raises(InvalidRequest):
            age_s(text)
