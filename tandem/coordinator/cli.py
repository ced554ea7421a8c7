"""The operator's commands at a coordinator, for any service's command line: `transactions retry | close`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from tandem.coordinator import operating
from tandem.coordinator.decision_log import DecisionLog
from tandem.runtime.cli import Actor, Key, Why, key_of, operator, plainly

Open = Callable[[], AbstractContextManager[DecisionLog]]


def transactions_cli(process: str, open_log: Open) -> typer.Typer:
    """The commands. process: its name in messages. open_log: gives the decision log that they work on."""
    cli = typer.Typer(help="What an operator does about single transactions.", no_args_is_help=True)

    @cli.command(help="Deliver a committed decision again at the next recovery, parked deliveries included.")
    def retry(transaction: Key) -> None:
        """Makes it due."""
        with plainly(process), open_log() as log:
            operating.retry(log, key_of(transaction))
            print("it is due: the next recovery delivers it")

    @cli.command(help="Give up a parked delivery: what it was about was put right by hand. The decision stays.")
    def close(
        transaction: Key,
        participant: Annotated[str, typer.Option(help="whose delivery is parked")],
        reason: Why,
        actor: Actor = "",
    ) -> None:
        """Takes it off the list."""
        with plainly(process), open_log() as log:
            operating.close(log, key_of(transaction), participant, operator(actor, reason))
            print("closed")

    return cli
