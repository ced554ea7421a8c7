"""The operator's commands at a coordinator, for any service's command line: `transactions list`, `show`, …"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from sqlalchemy.engine import Row

from tandem.coordinator import operating, story
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.participants import Participants
from tandem.coordinator.transaction import Outcome
from tandem.runtime.cli import (
    Actor,
    AsJson,
    Key,
    OfCoordinator,
    OlderThan,
    PageSize,
    PageToken,
    Participant,
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
from tandem.runtime.telling import words

Open = Callable[[], AbstractContextManager[DecisionLog]]
OpenBoth = Callable[[], AbstractContextManager[tuple[DecisionLog, Participants]]]

NO_REASON = "no reason was given"


def transactions_cli(process: str, open_log: Open, open_both: OpenBoth) -> typer.Typer:
    """The commands.

    process: its name in messages. open_log: the decision log that they work on; open_both: with the participants.
    """
    cli = typer.Typer(help="Single transactions: look at them, and what an operator does.", no_args_is_help=True)

    @cli.command("list", help="List decisions, the oldest of each coordinator first.")
    def list_(
        state: Annotated[Outcome | None, typer.Option(help="only those that were decided like this")] = None,
        older_than: OlderThan = "",
        coordinator: OfCoordinator = "",
        participant: Participant = "",
        undelivered: Annotated[
            bool,
            typer.Option("--undelivered", help="only those that a participant has not acknowledged, or parked"),
        ] = False,
        parked: Annotated[bool, typer.Option("--parked", help="only those with a parked delivery")] = False,
        limit: PageSize = 50,
        page: PageToken = "",
        as_json: AsJson = False,
    ) -> None:
        """A page."""
        with plainly(process), open_log() as log:
            rows, following = log.page(
                outcome=state,
                undelivered=undelivered,
                parked=parked,
                participant=participant,
                older_than_s=age_s(older_than),
                coordinator=coordinator,
                size=limit,
                token=page,
            )
            if as_json:
                print_json({"transactions": [dict(row._mapping) for row in rows], "next_page": following})
                return
            now = clock(log.engine)
            columns = ("Transaction", "Decision", "Age", "Undelivered", "Parked", "Next", "Attempts, the last answer")
            print_page(columns, [_columns(row, now) for row in rows], following)

    @cli.command(help="Show one transaction: what was decided, what each participant holds, what comes next and when.")
    def show(transaction: Key, as_json: AsJson = False) -> None:
        """Its story on both sides. Exit status 1 where nothing at all is known of it."""
        with plainly(process), open_both() as (log, participants):
            key = key_of(transaction)
            told = story.gather(log, participants, key)
            if as_json:
                print_json({**asdict(told), "key": str(key), "sentences": told.sentences()})
            else:
                print_sentences(told.sentences())
            if told.decision is None and not any(branch.state or branch.trouble for branch in told.branches):
                raise TandemError("nothing is known of this transaction", reason=Reason.NOT_FOUND)

    @cli.command(help="Deliver a committed decision again at the next recovery, parked deliveries included.")
    def retry(
        transaction: Key,
        reason: Annotated[str, typer.Option("--reason", help="why: it is kept")] = NO_REASON,
        actor: Actor = "",
    ) -> None:
        """Makes it due."""
        with plainly(process), open_log() as log:
            by = operator(actor, reason)
            at = operating.retry(log, key_of(transaction), by)
            print_sentences(["it is due: the next recovery delivers it", recorded(by, at)])

    @cli.command(help="Give up a parked delivery: what it was about was put right by hand. The decision stays.")
    def close(
        transaction: Key,
        participant: Annotated[str, typer.Option(help="whose delivery is parked")],
        reason: Why,
        actor: Actor = "",
    ) -> None:
        """Takes it off the list."""
        with plainly(process), open_log() as log:
            by = operator(actor, reason)
            at = operating.close(log, key_of(transaction), participant, by)
            print_sentences(["closed: the delivery is given up; the decision stays what it is", recorded(by, at)])

    return cli


def _columns(row: Row[Any], now: datetime) -> tuple[str, ...]:
    tried = f"{row.attempts}, {row.last_error}" if row.last_error else str(row.attempts or "")
    following = ""
    if row.undelivered:
        due = row.next_attempt_at
        following = "now" if due is None or due <= now else f"in {words(due - now)}"
    return (
        f"{row.coordinator}/{row.transaction_id}",
        row.outcome,
        words(now - row.decided_at),
        ", ".join(row.undelivered),
        ", ".join(f"{name}: {reason}" for name, reason in sorted(row.parked.items())),
        following,
        tried,
    )
