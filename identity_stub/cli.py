"""The command line of the identity process."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated
from uuid import UUID, uuid4

import typer
from google.type import date_pb2
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from identity_stub import app, importing
from identity_stub import explain as explaining
from identity_stub.client import PATIENCE_S, Identity
from identity_stub.config import Settings
from identity_stub.migration import cli as migration
from identity_stub.migration import reconcile_cli
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.kafka.cli import dead_letters_cli
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.cli import plainly, process_cli
from tandem.runtime.config import load
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation

cli = process_cli(
    "identity_stub",
    "Users and businesses as accounts: the initiator that makes each together with its profile.",
    Settings,
    lambda: app.serve(load(Settings)),
)
cli.add_typer(dead_letters_cli("identity_stub", lambda: app.graveyard(load(Settings))), name="dead-letters")

migration.add_to(cli)
reconcile_cli.add_to(cli)

Server = Annotated[
    str | None, typer.Option("--server", help="gRPC name of the running service.", show_default="IDENTITY_LISTEN")
]
EntityType = Enum(  # type: ignore[misc]
    "EntityType",
    {
        name: name.lower().replace("_", "-")
        for name in (key.removeprefix("ENTITY_TYPE_") for key in business_pb2.EntityType.keys()[1:])
    },
)


@cli.command(help="Bring the database to this code's revisions. Can be run again, by several at once.")
def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Print what would be run on an empty database instead.")] = False,
) -> None:
    """Runs or prints the migrations, the decision log's included."""
    with plainly("identity_stub"):
        if sql:
            print(app.migrations_sql())
        else:
            for package, revision in app.migrate(load(Settings)):
                print(f"{package} is at revision {revision}")


@cli.command("sign-up", help="Sign one person up, with a business or without; prints the ids.")
def sign_up(
    email: Annotated[str, typer.Option(help="The address to sign in with.")],
    given_name: Annotated[str, typer.Option(help="The person's given name.")] = "",
    family_name: Annotated[str, typer.Option(help="The person's family name.")] = "",
    name: Annotated[str, typer.Option(help="The full name as it is shown; default: both parts.")] = "",
    birthday: Annotated[str, typer.Option(help="Like 1990-12-31.")] = "",
    nationality: Annotated[list[str] | None, typer.Option(help="ISO 3166 country; can be repeated.")] = None,
    business_name: Annotated[str, typer.Option(help="Legal name of a business to own; none: the user only.")] = "",
    entity_type: Annotated[EntityType, typer.Option(help="The business's legal form.")] = EntityType.CORPORATION,  # type: ignore[attr-defined]
    registration_country: Annotated[str, typer.Option(help="ISO 3166 country of the register.")] = "",
    registration_number: Annotated[str, typer.Option(help="The business's number there.")] = "",
    request_id: Annotated[str, typer.Option(help="To repeat a call that got no answer; default: a new one.")] = "",
    server: Server = None,
) -> None:
    """Calls SignUp or CreateUser, repeated until there is an answer."""
    with plainly("identity_stub"):
        request_id = request_id or f"cli-{uuid4()}"
        person = person_pb2.Person(
            name=person_pb2.PersonName(
                given_name=given_name,
                family_name=family_name,
                display_name=name or " ".join(filter(None, (given_name, family_name))),
            ),
            date_of_birth=_date(birthday),
            nationalities=nationality or [],
        )
        business = business_pb2.Business(
            legal_name=business_name,
            entity_type=business_pb2.EntityType.Value(f"ENTITY_TYPE_{entity_type.name}"),
            registration_country=registration_country,
            registration_number=registration_number,
        )
        target = server or _listen()
        with Identity(target) as identity:
            try:
                if business_name:
                    both = pb.SignUpRequest(request_id=request_id, email=email, person=person, business=business)
                    answer = identity.call(identity.stub.SignUp, both, retried=_saying_so(target))
                else:
                    alone = pb.CreateUserRequest(request_id=request_id, email=email, person=person)
                    answer = identity.call(identity.stub.CreateUser, alone, retried=_saying_so(target))
            except TandemError as error:
                if error.retry_after_s is not None or error.reason in (Reason.UNAVAILABLE, Reason.DEADLINE_PASSED):
                    print(f"to find out or to go on: the same with --request-id {request_id}", file=sys.stderr)
                raise
        table = Table.grid("", "", padding=(0, 2))
        table.add_row("user", answer.user.user_id)
        table.add_row("person", answer.user.person_id)
        if business_name:
            table.add_row("business", answer.business.business_id)
            table.add_row("profile of the business", answer.business.profile_business_id)
        table.add_row("request", request_id)
        Console().print(table)


@cli.command("import", help="Import persons and businesses from two CSV files. Can be interrupted and run again.")
def import_(
    persons_csv: Annotated[Path, typer.Argument(help="bioguide, given_name, …")],
    businesses_csv: Annotated[Path, typer.Argument(help="Symbol, Security, …")],
    clients: Annotated[int, typer.Option(min=1, max=256, help="Calls at the same time.")] = 8,
    server: Server = None,
) -> None:
    """Runs the import with a progress bar, then lists what did not come in. Exit code 1 where something failed."""
    with plainly("identity_stub"):
        persons = importing.read_persons(persons_csv)
        businesses = importing.read_businesses(businesses_csv)
        console = Console()
        plan = importing.plan(persons, businesses)
        rows = (row for row in (*persons, *businesses) if isinstance(row, importing.Row))
        notes = Counter(note for row in rows for note in row.notes)
        bar = (
            TextColumn("importing"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[what]}"),
        )
        with Progress(*bar, console=console) as progress:
            task = progress.add_task("importing", total=len(plan.jobs), what="")
            retries = 0

            def show(done: importing.Done) -> None:
                nonlocal retries
                retries += done.retries
                progress.update(task, completed=done.finished, what=f"{retries} retries" if retries else "")

            result = importing.run_import(server or _listen(), plan, clients=clients, on_done=show)
        _print_result(console, result, notes)
    if result.stopped or result.failed:
        raise typer.Exit(1)


@cli.command(help="Tell one signup's story on both sides: what was decided, who knows it, what is left to do.")
def explain(
    asked: Annotated[str, typer.Argument(metavar="EMAIL|USER_ID|REQUEST_ID|TRANSACTION_ID")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all that is known.")] = False,
) -> None:
    """Reads identity's database and asks the participants."""
    with plainly("identity_stub"):
        with app.sources(load(Settings)) as sources:
            stories = explaining.explain(sources, asked)
        if as_json:
            told = [{**asdict(story), "sentences": story.sentences()} for story in stories]
            print(json.dumps(told, default=_plain, indent=2))
            return
        console = Console(highlight=False)
        for number, story in enumerate(stories):
            if number:
                console.print()
            for sentence in story.sentences():
                console.print(escape(sentence), soft_wrap=True)


def _print_result(console: Console, result: importing.Result, notes: Counter[str]) -> None:
    console.print(
        f"{result.users} users and {result.businesses} businesses are in, after {result.seconds:.1f} s "
        f"and {result.retries} repeated calls"
    )
    for name, field in result.refused:
        console.print(
            f"refused: {escape(name)}: {field} exists already"
            if field != "owner"
            else f"refused: {escape(name)}: its owner is not in"
        )
    for file, row in result.rejected:
        console.print(f"rejected: {file} line {row.line}: {escape(row.reason)}")
    for name, reason in result.failed:
        console.print(f"failed: {escape(name)}: {reason}")
    for note, rows in notes.most_common():
        console.print(f"noted: {escape(note)}: {rows} row{'' if rows == 1 else 's'}")
    if result.stopped:
        console.print(f"{result.left} left: {escape(result.stopped)}. Run the same import again to go on.")


def _saying_so(target: str) -> Callable[[], None]:
    """Says once that a call is repeated: whoever waits for a minute and a half wants to know what for."""
    sayings = iter([f"no answer from {target} yet: trying again for up to {PATIENCE_S:.0f} s"])

    def retried() -> None:
        for saying in sayings:
            print(saying, file=sys.stderr)

    return retried


def _listen() -> str:
    return load(Settings).listen


def _date(text: str) -> date_pb2.Date | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest([Violation("birthday", "must be a date like 1990-12-31")]) from None
    return date_pb2.Date(year=day.year, month=day.month, day=day.day)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value) if isinstance(value, UUID) else repr(value)
