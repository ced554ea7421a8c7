"""How an operator deletes entities that nothing stands behind: what a reconciliation of their initiator calls extra.

The protocol only creates (R8), and no client may delete. This is by hand, one entity and one local transaction at a
time, with who did it and why. Only active entities, and only those that the named coordinator's transactions have made:
what another service has made is not its initiator's to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from profiles_server import tables as t
from profiles_server.publishing import entity_id
from tandem.participant.tables import participant_action
from tandem.profiles import ids
from tandem.runtime.actions import Operator, record
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction

MAX_EXTRAS = 10_000
"""In one list: as many as a reconciliation lists."""

EXTRA = "extra"


@dataclass(frozen=True, slots=True)
class Extra:
    """One entity, by its primary key."""

    table: sa.Table
    key: tuple[object, ...]

    def __str__(self) -> str:
        return f"{self.table.name} {'/'.join(map(str, self.key))}"

    def among(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Its row, or of a business the rows of its roles."""
        columns = list(table.primary_key.columns)[: len(self.key)]
        return sa.and_(*(column == value for column, value in zip(columns, self.key, strict=True)))


class _DryRun(Exception):
    pass


def read(lines: Iterable[str]) -> Iterator[Extra]:
    """What is extra in the lines that `reconcile` prints (what, extra, id; tabs between); others are passed over.

    Raises InvalidRequest for a line that says extra and names nothing, and for more than MAX_EXTRAS.
    """
    found = 0
    for number, line in enumerate(lines, start=1):
        what, is_, name = [*line.split(), "", "", ""][:3]
        if is_ != EXTRA or what == "transactions":
            continue
        found += 1
        if found > MAX_EXTRAS:
            raise InvalidRequest([Violation("list", f"names more than {MAX_EXTRAS} entities")])
        try:
            yield _extra(what, name)
        except (KeyError, ValueError):
            raise InvalidRequest([Violation(f"line {number}", "is not as reconcile prints it")]) from None


def _extra(what: str, name: str) -> Extra:
    if what == "roles":
        account, person, role = name.split("/")
        return Extra(t.business_person, (ids.business_id(UUID(account)), UUID(person), role))
    return Extra({"users": t.person, "businesses": t.business}[what], (UUID(name),))


def delete(engine: Engine, extra: Extra, *, coordinator: str, operator: Operator, dry_run: bool = False) -> bool:
    """Deletes one entity, a business with its roles; whether it was there, and this coordinator's.

    dry_run: does it and takes it back. Raises HELD where a role of the business is just being made.
    """
    try:
        with local_transaction(engine) as connection:
            if extra.table is t.business:
                _rows(connection, t.business_person, extra, operator)
            made_by = _rows(connection, extra.table, extra, operator, coordinator=coordinator)
            if made_by is None or dry_run:
                raise _DryRun
            record(connection, participant_action, operator, "delete", made_by, str(extra))
    except _DryRun:
        return made_by is not None
    except sa.exc.IntegrityError:
        raise TandemError(f"a role of it is just being made: {extra}", reason=Reason.HELD) from None
    return True


def _rows(
    connection: Connection, table: sa.Table, extra: Extra, operator: Operator, *, coordinator: str | None = None
) -> TransactionKey | None:
    """Deletes the active rows, each with an audit event; the transaction that made the last of them."""
    conditions = [extra.among(table), table.c.state == t.ACTIVE]
    if coordinator is not None:
        conditions.append(table.c.coordinator == coordinator)
    deleted = connection.execute(
        sa.delete(table)
        .where(*conditions)
        .returning(table.c.coordinator, table.c.transaction_id, entity_id(table).label("entity_id"))
    ).all()
    for row in deleted:
        connection.execute(
            sa.insert(t.audit_event).values(
                actor=operator.actor, action="deleted", entity_kind=table.name, entity_id=row.entity_id
            )
        )
    return TransactionKey(deleted[-1].coordinator, deleted[-1].transaction_id) if deleted else None
