"""How an entity is changed: merged, checked as a whole, written if the version is still the one that was read (R8).

The local transaction is one statement: the entity and its audit event. Nothing is open while the entity is checked.
Where an update may create (the design update-or-create), one of version 0 makes what is not there: `first_updates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from profiles_server import first_updates, reading
from profiles_server import tables as t
from profiles_server.checks import check
from profiles_server.mapping import Facts, business_facts, person_facts
from profiles_server.masks import Mask, merged
from profiles_server.publishing import entity_id
from profiles_server.resolving import ENDED, Reader, Resolved, in_doubt_error
from tandem.participant.resolver import Outcome
from tandem.profiles.v1 import business_pb2, person_pb2
from tandem.runtime.batches import redo
from tandem.runtime.database import UNIQUE_VIOLATION, constraint, sqlstate
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction

E = TypeVar("E", person_pb2.Person, business_pb2.Business)


class _Read(Protocol[E]):
    def __call__(self, reader: Reader, ids: Sequence[UUID], /, *, timeout_s: float) -> Resolved[E]: ...


@dataclass(frozen=True, slots=True)
class _Kind(Generic[E]):
    """What differs between persons and businesses."""

    name: str
    table: sa.Table
    read: _Read[E]
    facts: Callable[[E], Facts]
    mask: Mask
    first_mask: Mask


@dataclass(frozen=True, slots=True)
class Update(Generic[E]):
    """What is to be changed: the fields `paths` of the entity, to those of `new`, whose version was read.

    actor: who asks. timeout_s: until then the caller waits. creates: version 0 makes an entity that is not there.
    """

    reader: Reader
    id: UUID
    new: E
    paths: Sequence[str]
    actor: str
    timeout_s: float
    creates: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is to make the entity."""
        return self.creates and self.new.version == 0


class _RegistrationHeld(TandemError):
    """A prepared business has the registration number."""

    def __init__(self, holder: TransactionKey) -> None:
        super().__init__(
            "another transaction in progress holds this registration_number",
            reason=Reason.HELD,
            retry_after_s=1.0,
            metadata={"held_by_coordinator": holder.coordinator, "held_by_transaction_id": str(holder.transaction_id)},
        )
        self.holder = holder


_PERSON_MASK = Mask(frozenset({"person_id", "version"}), nested="name")
_PERSON: _Kind[person_pb2.Person] = _Kind(
    "person", t.person, Reader.persons, person_facts, _PERSON_MASK, first_mask=_PERSON_MASK
)
_BUSINESS: _Kind[business_pb2.Business] = _Kind(
    "business",
    t.business,
    Reader.businesses,
    business_facts,
    Mask(frozenset({"business_id", "people", "version"}), nested="industry"),
    first_mask=Mask(frozenset({"business_id", "version"}), nested="industry"),
)


def update_person(update: Update[person_pb2.Person]) -> person_pb2.Person:
    """The person after its fields `paths` were set to those of `new`, whose version is the one that was read.

    Raises InvalidRequest, or NOT_FOUND, VERSION_MISMATCH (metadata: current_version), HELD or IN_DOUBT where it is
    only prepared (R10). With `creates`, version 0 stands for one that is not there: it is made, version 1.
    """
    return _update(_PERSON, update)


def update_business(update: Update[business_pb2.Business]) -> business_pb2.Business:
    """The business, likewise, with its people. Raises also ALREADY_EXISTS and HELD for a registration that is taken."""
    return _update(_BUSINESS, update)


def _update(kind: _Kind[E], update: Update[E]) -> E:
    new, paths = update.new, update.paths
    wrong = (kind.first_mask if update.is_first else kind.mask).wrong(new, paths)
    if new.version < (0 if update.creates else 1):
        wrong.append(Violation(f"{kind.name}.version", "must be the version that was read, at least 1"))
    if wrong:
        raise InvalidRequest(wrong)
    if update.is_first:
        return _create(kind, update)
    current = _current(kind, update)
    changed = merged(current, new, paths)
    people: list[business_pb2.BusinessRole] = []
    if isinstance(changed, business_pb2.Business):
        people.extend(changed.people)
        changed.ClearField("people")  # not to be changed here, so a limit on a write's people is no limit now
    try:
        check(changed)
    except InvalidRequest as error:
        raise error.below(kind.name) from None
    # Only what differs: what a newer version of this service keeps in another column stays as it is.
    before = kind.facts(current)
    values = {column: value for column, value in kind.facts(changed).items() if value != before[column]}
    (version,) = redo([None], lambda _: [_write(kind, update, changed, values)])
    if isinstance(version, _RegistrationHeld) and _gone(update, version.holder):
        (version,) = redo([None], lambda _: [_write(kind, update, changed, values)])
    if isinstance(version, TandemError):
        raise version
    if version is None:
        _current(kind, update)
        raise TandemError(f"this {kind.name} is being changed: ask again", reason=Reason.IN_PROGRESS, retry_after_s=0.1)
    changed.version = version
    if isinstance(changed, business_pb2.Business):
        changed.people.extend(people)
    return changed


def _create(kind: _Kind[E], update: Update[E]) -> E:
    """The entity as the first update makes it. Of two at the same time one wins; the other is told VERSION_MISMATCH."""
    empty = type(update.new)()
    (id_field,) = (column.name for column in kind.table.primary_key.columns)
    setattr(empty, id_field, str(update.id))
    made = merged(empty, update.new, update.paths)
    try:
        check(made)
    except InvalidRequest as error:
        raise error.below(kind.name) from None
    _absent(kind, update)
    answer = _insert(kind, update, made)
    if isinstance(answer, _RegistrationHeld) and _gone(update, answer.holder):
        answer = _insert(kind, update, made)
    if answer is not None:
        # What stands in the way may be the entity itself: another update has made it meanwhile.
        _absent(kind, update)
        raise answer
    made.version = 1
    return made


def _insert(kind: _Kind[E], update: Update[E], made: E) -> TandemError | None:
    """None where it was made, or what stands in the way."""
    facts = kind.facts(made)
    people = made.people if isinstance(made, business_pb2.Business) else ()
    (answer,) = redo([None], lambda _: [_inserted(kind, update, made, facts, people)])
    return answer


def _inserted(
    kind: _Kind[E], update: Update[E], made: E, facts: Facts, people: Sequence[business_pb2.BusinessRole]
) -> TandemError | None:
    try:
        with local_transaction(update.reader.engine) as connection:
            if first_updates.insert(connection, kind.table, update.id, facts, people, actor=update.actor):
                return None
    except sa.exc.IntegrityError as error:
        if sqlstate(error) == UNIQUE_VIOLATION and constraint(error) == t.REGISTRATION_KEY:
            assert isinstance(made, business_pb2.Business)
            return _taken(update.reader.engine, made)
        raise
    return TandemError(f"this {kind.name} is being made: ask again", reason=Reason.IN_PROGRESS, retry_after_s=0.1)


def _absent(kind: _Kind[E], update: Update[E]) -> None:
    """Raises VERSION_MISMATCH where the entity is there, and HELD or IN_DOUBT where it is only prepared (R10)."""
    if _found(kind, update) is not None:
        raise AssertionError("an entity has version 1 at least")


def _current(kind: _Kind[E], update: Update[E]) -> E:
    """The active entity. Raises NOT_FOUND or VERSION_MISMATCH, and HELD or IN_DOUBT where it is only prepared (R10)."""
    current = _found(kind, update)
    if current is None:
        raise TandemError(f"there is no such {kind.name}", reason=Reason.NOT_FOUND)
    return current


def _found(kind: _Kind[E], update: Update[E]) -> E | None:
    """The active entity in the version that was read; None where there is none. Raises as `_current` does."""
    found, id_ = kind.read(update.reader, [update.id], timeout_s=update.timeout_s), update.id
    if id_ in found.in_doubt:
        raise found.in_doubt[id_]
    if id_ in found.undecided:
        raise TandemError(f"the {kind.name} is just being created: ask again", reason=Reason.HELD, retry_after_s=1.0)
    current = found.active.get(id_)
    if current is not None and current.version != update.new.version:
        raise TandemError(
            f"the {kind.name} was changed meanwhile: read it again",
            reason=Reason.VERSION_MISMATCH,
            metadata={"current_version": str(current.version)},
        )
    return current


def _write(kind: _Kind[E], update: Update[E], changed: E, values: Facts) -> int | None:
    """Writes what is left to write if the version still fits; the new version, or None if it does not."""
    table = kind.table
    (key,) = table.primary_key.columns
    updated = (
        sa.update(table)
        .where(key == update.id, table.c.version == changed.version, table.c.state == t.ACTIVE)
        .values(**values, version=table.c.version + 1, updated_at=sa.func.now())
        .returning(table.c.version, entity_id(table).label("entity_id"))
        .cte("updated")
    )
    event = sa.insert(t.audit_event).from_select(
        ["actor", "action", "entity_kind", "entity_id", "version"],
        sa.select(
            sa.literal(update.actor),
            sa.literal("updated"),
            sa.literal(kind.name),
            updated.c.entity_id,
            updated.c.version,
        ),
    )
    statement = sa.select(updated.c.version).add_cte(event.cte("event"))
    try:
        with local_transaction(update.reader.engine) as connection:
            version: int | None = connection.execute(statement).scalar_one_or_none()
    except sa.exc.IntegrityError as error:
        if sqlstate(error) == UNIQUE_VIOLATION and constraint(error) == t.REGISTRATION_KEY:
            assert isinstance(changed, business_pb2.Business)
            raise _taken(update.reader.engine, changed) from None
        raise
    return version


def _gone(update: Update[E], holder: TransactionKey) -> bool:
    """Whether the holder has ended; an update acts like a reader (R10). Raises IN_DOUBT where nobody can say."""
    outcome = update.reader.resolve(holder, timeout_s=update.timeout_s)
    if outcome in ENDED:
        return True
    if outcome is Outcome.UNDECIDED:
        return False
    raise in_doubt_error(holder)


def _taken(engine: Engine, business: business_pb2.Business) -> TandemError:
    """Another business has the registration number: for good, or as long as its transaction is undecided."""
    held = reading.registration_holder(engine, business.registration_country, business.registration_number)
    if held is None:
        return TandemError("what stood in the way has just gone: ask again", reason=Reason.HELD, retry_after_s=0.1)
    state, key = held
    if state == t.PREPARED:
        return _RegistrationHeld(key)
    return TandemError(
        "there is an active entity with this registration_number already",
        reason=Reason.ALREADY_EXISTS,
        metadata={"field": "registration_number"},
    )
