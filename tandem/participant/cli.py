"""The operator's commands at a participant, for any service's command line: `transactions retry | force | close`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Annotated

import typer

from tandem.participant import operating
from tandem.participant.participant import Participant
from tandem.participant.transaction import State
from tandem.runtime.cli import Actor, Key, Why, key_of, operator, plainly

Open = Callable[[], AbstractContextManager[Participant]]


class Outcome(StrEnum):
    """What can be forced."""

    COMMITTED = "committed"
    ABORTED = "aborted"


def transactions_cli(process: str, open_participant: Open) -> typer.Typer:
    """The commands. process: its name in messages. open_participant: gives the participant that they work on."""
    cli = typer.Typer(help="What an operator does about single transactions.", no_args_is_help=True)

    @cli.command(help="Ask the coordinator for the decision at the next sweep, parked or not.")
    def retry(transaction: Key, reason: Why, actor: Actor = "") -> None:
        """Makes it due."""
        with plainly(process), open_participant() as participant:
            operating.retry(participant, key_of(transaction), operator(actor, reason))
            print("it is due: the next sweep asks for its decision, unless its driver may still be at work")

    @cli.command(help="End a prepared transaction by hand. It may be the wrong way: ask the coordinator first.")
    def force(
        transaction: Key,
        outcome: Annotated[Outcome, typer.Option(help="which way")],
        reason: Why,
        actor: Actor = "",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Do it all, and take it back.")] = False,
    ) -> None:
        """A heuristic outcome: recorded, counted, and checked against the decision once that can be had."""
        with plainly(process), open_participant() as participant:
            to = State(outcome.value)
            forced = operating.force(participant, key_of(transaction), to, operator(actor, reason), dry_run=dry_run)
            deed = "published" if to is State.COMMITTED else "discarded"
            said = "is" if forced.done else "would be"
            print(f"it {said} {to.value} by your hand: {forced.found} rows {deed}")
            if forced.found != forced.staged:
                print(f"beware: {forced.staged} rows were promised, so somebody has changed them by hand")
            if forced.done:
                print("the sweeper goes on asking for the decision: if that is another, it is parked and counted")

    @cli.command(help="Ask no more about a forced transaction: it was put right by hand, or nobody will ever answer.")
    def close(transaction: Key, reason: Why, actor: Actor = "") -> None:
        """Takes it off the list."""
        with plainly(process), open_participant() as participant:
            operating.close(participant, key_of(transaction), operator(actor, reason))
            print("closed")

    return cli
