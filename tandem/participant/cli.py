"""The operator's commands at a participant, for any service's command line: `transactions list`, `show`, …"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy.engine import Row

from tandem.participant import inspection, operating
from tandem.participant.participant import Participant
from tandem.participant.resolver import Outcome as Answer
from tandem.participant.resolver import Resolver
from tandem.participant.tables import participant_action
from tandem.participant.transaction import State
from tandem.runtime import actions, telling
from tandem.runtime.cli import (
    Actor,
    AsJson,
    Key,
    OfCoordinator,
    OlderThan,
    PageSize,
    PageToken,
    Why,
    age_s,
    key_of,
    operator,
    plainly,
    print_json,
    print_page,
    print_sentences,
    recorded,
)
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.paging import clock

Open = Callable[[], AbstractContextManager[tuple[Participant, Resolver]]]


class Outcome(StrEnum):
    """What can be forced."""

    COMMITTED = "committed"
    ABORTED = "aborted"


def transactions_cli(process: str, open_participant: Open) -> typer.Typer:
    """The commands. process: its name in messages. open_participant: the participant that they work on."""
    cli = typer.Typer(help="Single transactions: look at them, and what an operator does.", no_args_is_help=True)

    @cli.command("list", help="List transactions, the oldest of each coordinator first.")
    def list_(
        state: Annotated[State | None, typer.Option(help="only those in this state")] = None,
        older_than: OlderThan = "",
        coordinator: OfCoordinator = "",
        parked: Annotated[bool, typer.Option("--parked", help="only those that wait for a person")] = False,
        unconfirmed: Annotated[
            bool, typer.Option("--unconfirmed", help="only those that no decision stands behind: prepared, or forced")
        ] = False,
        limit: PageSize = 50,
        page: PageToken = "",
        as_json: AsJson = False,
    ) -> None:
        """A page."""
        with plainly(process), open_participant() as (participant, _):
            rows, following = inspection.page(
                participant.engine,
                state=state,
                unconfirmed=unconfirmed,
                parked=parked,
                older_than_s=age_s(older_than),
                coordinator=coordinator,
                size=limit,
                token=page,
            )
            if as_json:
                print_json({"transactions": [_as_json(row) for row in rows], "next_page": following})
                return
            now = clock(participant.engine)
            columns = ("Transaction", "State", "Age", "Rows", "By", "Next", "Parked, or the last answer")
            print_page(columns, [_columns(inspection.branch(row, ""), row, now) for row in rows], following)

    @cli.command(help="Show one transaction: what its state means, what comes next and when, what operators did.")
    def show(transaction: Key, as_json: AsJson = False) -> None:
        """Its story, seen from here."""
        with plainly(process), open_participant() as (participant, _):
            key = key_of(transaction)
            row = inspection.get(participant.engine, key)
            if row is None:
                raise TandemError("nothing is known of this transaction here", reason=Reason.NOT_FOUND)
            branch = inspection.branch(row, participant.name)
            by_hand = actions.of(participant.engine, participant_action, key)
            told = list(telling.at_participant(branch, key.coordinator, clock(participant.engine)))
            told += [action.sentence() for action in by_hand]
            if as_json:
                done = [{"at": a.at, "actor": a.actor, "action": a.action, "reason": a.reason} for a in by_hand]
                print_json({**_as_json(row), "actions": done, "sentences": told})
            else:
                print_sentences([f"{key} at {participant.name}: {row.state}.", *told])

    @cli.command(help="Ask the coordinator for the decision now, parked or not, and apply what it answers.")
    def resolve(transaction: Key, reason: Why, actor: Actor = "") -> None:
        """Exit status 1 where it could not be ended."""
        with plainly(process), open_participant() as (participant, resolver):
            by = operator(actor, reason)
            resolved = operating.resolve(participant, resolver, key_of(transaction), by)
            print_sentences([telling.came_of(resolved.word), recorded(by, resolved.at)])
            if resolved.answer not in (Answer.COMMITTED, Answer.ABORTED):
                raise typer.Exit(1)

    @cli.command(help="Ask the coordinator for the decision at the next sweep, parked or not.")
    def retry(transaction: Key, reason: Why, actor: Actor = "") -> None:
        """Makes it due."""
        with plainly(process), open_participant() as (participant, _):
            by = operator(actor, reason)
            at = operating.retry(participant, key_of(transaction), by)
            print("it is due: the next sweep asks for its decision, unless its driver may still be at work")
            print_sentences([recorded(by, at)])

    @cli.command(help="End a prepared transaction by hand. It may be the wrong way: ask the coordinator first.")
    def force(
        transaction: Key,
        outcome: Annotated[Outcome, typer.Option(help="which way")],
        reason: Why,
        actor: Actor = "",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it all, and take it back.")] = False,
    ) -> None:
        """A heuristic outcome: recorded, counted, and checked against the decision once that can be had."""
        with plainly(process), open_participant() as (participant, _):
            by, to = operator(actor, reason), State(outcome.value)
            forced = operating.force(participant, key_of(transaction), to, by, dry_run=dry_run)
            deed = "published" if to is State.COMMITTED else "discarded"
            said = "is" if forced.done else "would be"
            print(f"it {said} {to.value} by your hand: {forced.found} row{'' if forced.found == 1 else 's'} {deed}")
            if forced.found != forced.staged:
                print(f"beware: {forced.staged} rows were promised, so somebody has changed them by hand")
            if forced.at is None:
                print("nothing was changed, nothing recorded: leave --dry-run away to do it")
            else:
                print("the sweeper goes on asking for the decision: if that is another, it is parked and counted")
                print_sentences([recorded(by, forced.at)])

    @cli.command(help="Ask no more about a forced transaction: it was put right by hand, or nobody will ever answer.")
    def close(transaction: Key, reason: Why, actor: Actor = "") -> None:
        """Takes it off the list."""
        with plainly(process), open_participant() as (participant, _):
            by = operator(actor, reason)
            at = operating.close(participant, key_of(transaction), by)
            print_sentences(["closed: nobody is asked about it any more; its outcome here stays", recorded(by, at)])

    return cli


def _columns(b: telling.Branch, row: Row[Any], now: Any) -> tuple[str, ...]:
    forced = b.state != State.PREPARED and not b.confirmed
    if b.parked_there or b.confirmed:
        following = ""
    else:
        following = "now" if b.asks_at is None or b.asks_at <= now else f"in {telling.words(b.asks_at - now)}"
    return (
        f"{row.coordinator}/{row.transaction_id}",
        f"{b.state}{', unconfirmed' if forced else ''}",
        telling.words(now - b.prepared_at) if b.prepared_at else "",
        str(b.rows),
        b.resolved_by,
        following,
        f"parked: {b.parked_there}" if b.parked_there else b.last_answer,
    )


def _as_json(row: Row[Any]) -> dict[str, object]:
    shown = dict(row._mapping)
    del shown["digests"]
    return shown
