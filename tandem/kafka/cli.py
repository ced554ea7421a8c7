"""The operator's commands for dead letters, for any service's command line: `dead-letters list`, `show`, `replay`.

Needs the extra `processes` (typer, rich), too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from tandem.kafka import dead_letters
from tandem.kafka.dead_letters import Graveyard
from tandem.runtime.cli import Actor, AsJson, Why, operator, plainly, print_json, print_page, print_sentences

Place = Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="the letter, as `list` names it")]

MAX_SHOWN = 1_000


def dead_letters_cli(process: str, opened: Callable[[], AbstractContextManager[Graveyard]]) -> typer.Typer:
    """The commands. process: its name in messages. opened: where to look."""
    cli = typer.Typer(
        help="Messages that could not be taken up: look at them, replay them. Their content is not shown.",
        no_args_is_help=True,
    )

    @cli.command("list", help="List the dead letters that nobody has replayed, the oldest of each partition first.")
    def list_(
        all_: Annotated[bool, typer.Option("--all", help="those that were replayed, too")] = False,
        limit: Annotated[int, typer.Option(min=1, max=MAX_SHOWN, help="letters at most")] = 50,
        as_json: AsJson = False,
    ) -> None:
        """Of all topics that the process consumes."""
        with plainly(process), opened() as graveyard:
            found = [
                one for topic in graveyard.topics for one in dead_letters.letters(graveyard.read, topic, replayed=all_)
            ]
            if as_json:
                print_json({"letters": [one.described() for one in found[:limit]], "count": len(found)})
                return
            columns = ("Letter", "Type", "Key", "Reason", "Buried at", "Replayed")
            rows = [(one.place, one.kind, one.message.key, one.reason, one.at, one.replayed) for one in found[:limit]]
            print_page(columns, rows, "")
            if len(found) > limit:
                print_sentences([f"{len(found) - limit} more: --limit shows them"])

    @cli.command(help="Show one dead letter: where it came from, why it was buried, who has replayed it.")
    def show(letter: Place, as_json: AsJson = False) -> None:
        """Everything but its content."""
        with plainly(process), opened() as graveyard:
            described = dead_letters.find(graveyard.read, graveyard.topics, letter).described()
            if as_json:
                print_json(described)
            else:
                print_sentences([f"{name.replace('_', ' ')}: {value}" for name, value in described.items()])

    @cli.command(help="Publish a dead letter again where it came from. What had been done already is not done again.")
    def replay(
        letter: Place,
        reason: Why,
        actor: Actor = "",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    ) -> None:
        """Leaves a note beside it, so that it is no longer listed."""
        with plainly(process), opened() as graveyard:
            by = operator(actor, reason)
            found = dead_letters.find(graveyard.read, graveyard.topics, letter)
            where = found.message.topic.removesuffix(dead_letters.SUFFIX)
            if dry_run:
                print_sentences(
                    [f"it would be published to {where} with its key {found.message.key}: nothing was done"]
                )
                return
            dead_letters.replay(graveyard.publish, found, by)
            print_sentences([f"published to {where} again; recorded beside the letter as of {by.actor}: {by.reason}"])

    return cli
