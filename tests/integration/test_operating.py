"""An operator's ways out (R5, R17): each changes what it says, writes down who and why, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from click.testing import Result
from typer.testing import CliRunner

from tandem.coordinator import operating as at_coordinator
from tandem.coordinator.recovery import Recovery
from tandem.coordinator.tables import coordinator_action
from tandem.coordinator.transaction import Outcome
from tandem.participant import operating
from tandem.participant.purge import FINISHED
from tandem.participant.tables import participant_action, prepared_transaction
from tandem.participant.transaction import State
from tandem.runtime.actions import Operator
from tandem.runtime.errors import InvalidRequest, Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.v1 import participant_pb2
from tests.support.house import COORDINATOR, House, built, entry, fresh_name, new_id, own
from tests.support.ledger import account
from tests.support.rules import counted

ME = Operator("ada", "the initiator's database is gone for good")


@pytest.fixture(scope="module")
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database, names=("ledger",)) as house:
        yield house


def actions(house: House, table: sa.Table, transaction_id: UUID | None) -> list[tuple[Any, ...]]:
    engine = house.ledger.engine if table is participant_action else house.engine
    t = table.c
    with engine.connect() as connection:
        found = connection.execute(
            sa.select(t.actor, t.action, t.detail, t.reason)
            .where(t.transaction_id == transaction_id if transaction_id else t.transaction_id.is_(None))
            .order_by(t.action_id)
        ).all()
    return [tuple(row) for row in found]


def decide(house: House, tx: Any) -> None:
    with house.engine.begin() as connection:
        connection.execute(sa.insert(own).values(id=tx.id))
        connection.execute(tx.decision)


def heuristic(house: House, outcome: State) -> float:
    return counted(house.ledger.registry, "tandem_outcomes_total", outcome=outcome.value, via="operator")


@pytest.mark.parametrize("outcome", [State.COMMITTED, State.ABORTED])
def test_r5_a_forced_outcome_that_was_right(house: House, outcome: State) -> None:
    """ "an operator's forced end of a transaction in doubt … stays on the sweeper's list until the coordinator has
    answered: agreement closes it"."""
    name = fresh_name()
    tx = house.left_in_doubt(entry(name))
    if outcome is State.COMMITTED:
        decide(house, tx)
    before = heuristic(house, outcome)
    dry = operating.force(house.ledger.participant, tx.key, outcome, ME, dry_run=True)
    assert (dry.done, dry.found, house.ledger.accounts(name)) == (False, 1, {name: "prepared"})
    assert actions(house, participant_action, tx.id) == []

    assert operating.force(house.ledger.participant, tx.key, outcome, ME).done
    assert heuristic(house, outcome) == before + 1
    assert house.ledger.accounts(name) == ({name: "active"} if outcome is State.COMMITTED else {})
    row: Any = house.ledger.row(tx.id)
    assert (row.state, row.confirmed, row.resolved_by) == (outcome.value, False, "operator")
    assert actions(house, participant_action, tx.id) == [("ada", "force", f"{outcome.value}, 1 rows", ME.reason)]
    with house.ledger.engine.connect() as connection:
        mine = prepared_transaction.c.transaction_id == tx.id
        assert connection.execute(sa.select(FINISHED).where(mine)).scalar_one() is False, "it is not purged (R14)"
    with pytest.raises(InvalidRequest):
        operating.force(house.ledger.participant, tx.key, outcome, ME)

    assert house.ledger.sweeper.run_once() == 1
    row = house.ledger.row(tx.id)
    assert (row.state, row.confirmed, row.parked, row.resolved_by) == (outcome.value, True, None, "operator")
    assert tx.finish() is (Outcome.COMMITTED if outcome is State.COMMITTED else Outcome.ABORTED)


@pytest.mark.parametrize("forced", [State.COMMITTED, State.ABORTED])
def test_r5_a_forced_outcome_that_was_wrong(house: House, forced: State) -> None:
    """ "contradiction pages": it is counted and parked, and stays so until a person closes it."""
    name = fresh_name()
    tx = house.left_in_doubt(entry(name))
    if forced is State.ABORTED:
        decide(house, tx)
    operating.force(house.ledger.participant, tx.key, forced, ME)
    reason = "ALREADY_ABORTED" if forced is State.ABORTED else "ALREADY_COMMITTED"
    before = counted(house.ledger.registry, "tandem_contradictions_total", reason=reason)
    for _ in range(2):
        house.ledger.sweeper.run_once()
    assert counted(house.ledger.registry, "tandem_contradictions_total", reason=reason) == before + 1
    row = house.ledger.row(tx.id)
    assert row is not None
    assert (row.state, row.confirmed, row.parked) == (forced.value, False, reason)
    assert house.ledger.accounts(name) == ({name: "active"} if forced is State.COMMITTED else {})

    operating.close(house.ledger.participant, tx.key, Operator("ada", "the account was opened by hand"))
    row = house.ledger.row(tx.id)
    assert row is not None
    assert (row.state, row.confirmed, row.parked) == (forced.value, True, None)
    assert [action for _, action, _, _ in actions(house, participant_action, tx.id)] == ["force", "close"]
    with pytest.raises(InvalidRequest):
        operating.close(house.ledger.participant, tx.key, ME)


def test_r5_a_coordinator_that_never_answers(house: House) -> None:
    """An operator's way out where nobody will ever answer: found in the list, forced, closed, and off the list."""
    name = fresh_name()
    tx = house.left_in_doubt(entry(name))

    def listed() -> bool:
        request = participant_pb2.ParticipantServiceListTransactionsRequest(unconfirmed=True)
        found = house.ledger.stub.ListTransactions(request, timeout=10).transactions
        return str(tx.id) in {one.key.transaction_id for one in found}

    assert listed()
    with pytest.raises(InvalidRequest):
        operating.close(house.ledger.participant, tx.key, ME)
    operating.force(house.ledger.participant, tx.key, State.ABORTED, ME)
    assert listed(), "no decision stands behind it"
    operating.close(house.ledger.participant, tx.key, ME)
    assert not listed()
    row = house.ledger.row(tx.id)
    assert row is not None
    assert (row.state, row.confirmed, row.next_attempt_at) == ("aborted", True, None)
    tx.finish()


def test_r5_a_commit_confirms_too(house: House) -> None:
    """The decision may arrive by Commit before the sweeper has asked."""
    tx = house.left_in_doubt(entry(fresh_name()))
    decide(house, tx)
    operating.force(house.ledger.participant, tx.key, State.COMMITTED, ME)
    assert tx.finish() is Outcome.COMMITTED
    assert tx.delivered
    row: Any = house.ledger.row(tx.id)
    assert (row.confirmed, row.resolved_by) == (True, "operator")


def test_r5_parked_is_asked_for_again(house: House) -> None:
    """What waits for a person, since its id had expired, is asked for again once a person says so."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    decide(house, tx)
    longer_ago = sa.func.now() - timedelta(seconds=house.times.push_after_s)
    house.ledger.set(tx.id, parked="expired", next_attempt_at=None, prepared_at=longer_ago)
    assert house.ledger.sweeper.run_once() == 0
    operating.retry(house.ledger.participant, tx.key, ME)
    assert house.ledger.sweeper.run_once() == 1
    assert house.ledger.accounts(name) == {name: "active"}
    with pytest.raises(InvalidRequest):
        operating.retry(house.ledger.participant, tx.key, ME)


def test_r5_nothing_is_forced_that_is_not_there(house: House) -> None:
    """NOT_FOUND for what was never prepared; a reason is never optional; the prepared state is no outcome."""
    key = TransactionKey(COORDINATOR, new_id())
    for act in (operating.retry, operating.close):
        with pytest.raises(TandemError) as caught:
            act(house.ledger.participant, key, ME)
        assert caught.value.reason is Reason.NOT_FOUND
    with pytest.raises(TandemError) as caught:
        operating.force(house.ledger.participant, key, State.ABORTED, ME)
    assert caught.value.reason is Reason.NOT_FOUND
    with pytest.raises(InvalidRequest):
        operating.force(house.ledger.participant, key, State.PREPARED, ME)
    for actor, reason in (("", "why"), ("me", " "), ("me", "x" * 501), ("me", "a\nb"), ("m\x1b", "why")):
        with pytest.raises(InvalidRequest):
            Operator(actor, reason)


def test_r5_a_delivery_is_given_up(house: House) -> None:
    """A participant lost what it had promised: the delivery is parked, retried by hand, parked again, given up. The
    decision stays what it was (R2)."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    decide(house, tx)
    with house.ledger.engine.begin() as connection:
        connection.execute(sa.delete(prepared_transaction).where(prepared_transaction.c.transaction_id == tx.id))
    assert tx.finish() is Outcome.COMMITTED
    log = house.coordinator.log
    recovery = Recovery(house.coordinator)

    def parked() -> object:
        row = log.get(tx.key)
        assert row is not None
        return row.outcome, row.undelivered, row.parked

    lost = ("committed", [], {"ledger": "TRANSACTION_UNKNOWN"})
    assert parked() == lost
    at_coordinator.retry(log, tx.key, ME)
    assert parked() == ("committed", ["ledger"], {})
    recovery.run_once()
    assert parked() == lost
    with pytest.raises(InvalidRequest):
        at_coordinator.close(log, tx.key, "another", ME)
    at_coordinator.close(log, tx.key, "ledger", ME)
    assert parked() == ("committed", [], {})
    assert actions(house, coordinator_action, tx.id) == [
        ("ada", "retry", "ledger", ME.reason),
        ("ada", "close", "ledger: TRANSACTION_UNKNOWN", ME.reason),
    ]
    with pytest.raises(InvalidRequest):
        at_coordinator.retry(log, tx.key, ME)
    for call in (
        lambda key: at_coordinator.retry(log, key, ME),
        lambda key: at_coordinator.close(log, key, "ledger", ME),
    ):
        with pytest.raises(TandemError) as caught:
            call(TransactionKey(COORDINATOR, new_id()))
        assert caught.value.reason is Reason.NOT_FOUND


def test_r17_a_log_is_renewed(new_database: Callable[[str], str]) -> None:
    """R17: "After a restore a command renews it …; former ids are kept and still answered"."""
    with built(new_database, names=("ledger",)) as house:
        former = house.coordinator.log.log_id()
        name = fresh_name()
        tx = house.coordinator.prepare({"ledger": [entry(name)]})
        decide(house, tx)
        renewed = at_coordinator.renew_log_id(house.engine, ME)
        assert renewed != former
        assert actions(house, coordinator_action, None) == [("ada", "renew log_id", str(renewed), ME.reason)]
        late = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
        with pytest.raises(sa.exc.IntegrityError, match="wrong_log"):
            decide(house, late)
        house.ledger.make_due(tx.id)
        assert house.ledger.sweeper.run_once() == 1
        assert house.ledger.accounts(name) == {name: "active"}, "the former id is still answered for"


# --- by command -------------------------------------------------------------------------------------------------------


def test_the_commands(new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both command lines, on databases of their own: exit code 0 and a plain sentence, or 1 or 2 and the reason."""
    from coordinator import cli as coordinator_cli
    from profiles_server import cli as profiles_cli

    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("PROFILES_DATABASE_URL", new_database("commands_profiles"))
    monkeypatch.setenv("COORDINATOR_DATABASE_URL", new_database("commands_coordinator"))

    for app in ("profiles_server.app", "coordinator.app"):  # the runner's stream is closed after it
        monkeypatch.setattr(f"{app}.configure_logging", lambda *_, **__: None)

    def run(cli: Any, *arguments: str) -> Result:
        return CliRunner().invoke(cli.cli, list(arguments))

    key = f"identity/{new_id()}"
    for cli in (profiles_cli, coordinator_cli):
        assert run(cli, "migrate").exit_code == 0
    forcing = ("transactions", "force", key, "--reason", "because", "--outcome")
    for cli, arguments, code, said in (
        (profiles_cli, (*forcing, "aborted", "--dry-run"), 1, "nothing is known of this transaction here"),
        (profiles_cli, (*forcing, "perhaps"), 2, "perhaps"),
        (profiles_cli, ("transactions", "retry", "nonsense", "--reason", "x"), 1, "coordinator/transaction_id"),
        (profiles_cli, ("transactions", "close", key), 2, "--reason"),
        (profiles_cli, ("purge",), 0, "forgot 0 transactions"),
        (coordinator_cli, ("transactions", "retry", key), 1, "no decision was written"),
        (coordinator_cli, ("transactions", "close", key, "--participant", "p", "--reason", "x"), 1, "no decision"),
        (coordinator_cli, ("purge",), 0, "forgot 0 transactions"),
        (coordinator_cli, ("log-id", "renew", "--reason", "restored"), 2, "--old-primary-is-gone"),
        (coordinator_cli, ("log-id", "renew", "--reason", "restored", "--old-primary-is-gone"), 0, "is the log's id"),
    ):
        result = run(cli, *arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert said in result.output, (arguments, result.output)
    lines = run(coordinator_cli, "log-id", "show").output.splitlines()
    assert [" current, " in line for line in lines] == [True, False]


@pytest.mark.parametrize("outcome", [State.COMMITTED, State.ABORTED])
def test_r5_what_was_damaged_by_hand_can_be_forced(house: House, outcome: State) -> None:
    """R7 keeps a Commit from publishing half of it, for good: a person sees how much is there, and decides."""
    kept, lost = fresh_name(), fresh_name()
    tx = house.left_in_doubt(entry(kept), entry(lost))
    decide(house, tx)
    with house.ledger.engine.begin() as connection:
        connection.execute(sa.delete(account).where(account.c.name == lost))
    house.ledger.make_due(tx.id)
    house.ledger.sweeper.run_once()
    row = house.ledger.row(tx.id)
    assert row is not None
    assert (row.state, row.parked) == ("prepared", "PUBLISHED_NOT_STAGED")

    forced = operating.force(house.ledger.participant, tx.key, outcome, ME)
    assert (forced.staged, forced.found) == (2, 1)
    assert actions(house, participant_action, tx.id)[0][2] == f"{outcome.value}, 1 of 2 rows"
    assert house.ledger.accounts(kept, lost) == ({kept: "active"} if outcome is State.COMMITTED else {})


def test_r3_what_is_young_is_not_forced(house: House) -> None:
    """Its driver may be at work: to end it now could only split what is about to commit."""
    name = fresh_name()
    tx = house.coordinator.prepare({"ledger": [entry(name)]})
    for dry_run in (True, False):
        with pytest.raises(InvalidRequest, match="younger than push_after"):
            operating.force(house.ledger.participant, tx.key, State.ABORTED, ME, dry_run=dry_run)
    assert actions(house, participant_action, tx.id) == []
    decide(house, tx)
    assert tx.finish() is Outcome.COMMITTED
    assert house.ledger.accounts(name) == {name: "active"}


def test_r3_nobody_is_fenced_by_a_retry(house: House) -> None:
    """An operator's retry asks, and to ask is to fence: not while the driver may be at work."""
    tx = house.coordinator.prepare({"ledger": [entry(fresh_name())]})
    operating.retry(house.ledger.participant, tx.key, ME)
    house.ledger.sweeper.run_once()
    assert house.outcome(tx.id) is None
    old = sa.func.now() - timedelta(seconds=house.times.push_after_s)
    house.ledger.set(tx.id, prepared_at=old)
    operating.retry(house.ledger.participant, tx.key, ME)
    assert house.ledger.sweeper.run_once() == 1
    assert house.outcome(tx.id) == "aborted"
    assert tx.finish() is Outcome.ABORTED
