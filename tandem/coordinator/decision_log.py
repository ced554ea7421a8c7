"""The decision log: decide, look, fence, deliver. Every statement on `twophase.decision` is here.

Write-once (R2): a row comes into being by one INSERT and its outcome never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine import Connection, Engine, Row

from tandem.coordinator.deciding import Deciding, insert_in_block, insert_of, parameters
from tandem.coordinator.tables import decision as d
from tandem.coordinator.tables import log
from tandem.coordinator.transaction import Decided, Outcome, Standing, answer_for
from tandem.runtime import paging
from tandem.runtime.batches import redo
from tandem.runtime.claims import make_due
from tandem.runtime.database import ASIDE, NOW_MS, Limits, ms
from tandem.runtime.errors import ConfigurationError, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import DAY_MS, Age, TransactionKey, age, id_time_ms
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.records import KEY_COLUMNS, arrays, key_arrays, records
from tandem.runtime.statements import Statement
from tandem.runtime.telemetry import logger
from tandem.runtime.times import Times

FENCE_LIMITS = Limits(lock_timeout_ms=300, statement_timeout_ms=2_000, idle_timeout_ms=2_000)
"""A fence waits this long for a committing initiator, then says IN_PROGRESS (R4)."""

IMPATIENT_MS = 20
"""How long the pieces of a batch wait for a lock where one of it is held: however many are, the others get done."""

BUDGET_S = 2.0
"""For one Resolve, however many ids are stalled (R4)."""

MARK_BUDGET_S = 2.0
"""For all marks of a batch, however many rows somebody else holds: a mark may be lost (R12, R16)."""

_keys = records("keys", KEY_COLUMNS)
_FENCED = {**KEY_COLUMNS, "id_ms": sa.BigInteger()}

log_lines = logger("tandem.decision_log")


@dataclass(frozen=True, slots=True)
class Question:
    """What an asker wants to know, with what it must name (R4)."""

    key: TransactionKey
    log_id: UUID
    digest: bytes


Looked = Decided | Standing | TandemError
"""What can be said of an id: its row, or why there is none, or why it can't be read."""


class DecisionLog:
    """One initiator's decision log, in the initiator's own database.

    engine: the primary. Its answers are only as good as that (R15); a replica is refused in the statement.
    """

    def __init__(self, engine: Engine, times: Times) -> None:
        self.engine = engine
        self.times = times
        self._retention_ms = times.retention_ms
        self._log_id: UUID | None = None

    def log_id(self) -> UUID:
        """The current log's id. Cached: the deciding INSERT checks it again (R17)."""
        found = self._log_id
        if found is None:
            with local_transaction(self.engine, ASIDE) as connection:
                found = connection.execute(sa.select(log.c.log_id).where(log.c.current)).scalar_one_or_none()
            if found is None:
                raise ConfigurationError("the decision log has no current log_id: run the migrations")
            self._log_id = found
        return found

    def forget_log_id(self) -> None:
        """Has it read again: the log may have been renewed (R17)."""
        self._log_id = None

    # --- deciding -------------------------------------------------------------------------------------------

    def decide(self, deciding: Sequence[Deciding], *, log_id: UUID) -> sa.Insert:
        """The INSERT that decides `committed` for all of them, or raises: `deciding.insert_of`."""
        return insert_of(deciding, log_id=log_id, retention_ms=self._retention_ms)

    def decide_in_block(
        self, deciding: Sequence[Deciding], *, log_id: UUID, token: str
    ) -> tuple[sa.Insert, dict[str, object]]:
        """The same for the driver's own block, with its parameters: holds only where `token` was set (R1)."""
        return insert_in_block(self._retention_ms), parameters(deciding, log_id=log_id, token=token)

    # --- looking and fencing --------------------------------------------------------------------------------

    def look(self, keys: Iterable[TransactionKey], *, fence: bool) -> dict[TransactionKey, Looked]:
        """What was decided for each; with `fence`, the undecided ones are aborted first (R3, R4).

        Raises a database error if the log can't be read at all.
        """
        ordered = sorted(set(keys))
        looked: dict[TransactionKey, Looked] = {}
        with local_transaction(self.engine, FENCE_LIMITS) as connection:
            looked.update(self._read(connection, ordered))
        undecided = [key for key, what in looked.items() if what is Standing.UNDECIDED]
        if fence and undecided:
            impatient = partial(self._fence, limits=replace(FENCE_LIMITS, lock_timeout_ms=IMPATIENT_MS))
            fenced = redo(undecided, self._fence, impatient=impatient, budget_s=BUDGET_S)
            for key, what in zip(undecided, fenced, strict=True):
                in_progress = isinstance(what, TandemError) and what.reason is Reason.IN_PROGRESS
                looked[key] = Standing.IN_PROGRESS if in_progress else what
        return looked

    def resolve(
        self, asker: str, questions: Sequence[Question], *, fence: bool
    ) -> list[Outcome | Standing | TandemError]:
        """Answers a participant: what each decision means for it (R4). Makes no RPC."""
        known = self._known_logs({question.log_id for question in questions})
        answerable = [question.key for question in questions if question.log_id in known]
        looked = self.look(answerable, fence=fence) if answerable else {}
        failpoint("coordinator.after_fence")
        answers: list[Outcome | Standing | TandemError] = []
        for question in questions:
            if question.log_id not in known:
                answers.append(Standing.WRONG_LOG)
                continue
            what = looked[question.key]
            answers.append(answer_for(what, asker, question.digest) if isinstance(what, Decided) else what)
        return answers

    def _known_logs(self, log_ids: set[UUID]) -> set[UUID]:
        """Those that are or were this log's own id: former ones are still answered for (R17)."""
        with local_transaction(self.engine, ASIDE) as connection:
            return set(connection.execute(sa.select(log.c.log_id).where(log.c.log_id.in_(log_ids))).scalars())

    def _fence(self, keys: Sequence[TransactionKey], limits: Limits = FENCE_LIMITS) -> list[Looked]:
        """Writes `aborted` where nothing is, then reads in a second statement what is there now (R4)."""
        asked = records("asked", _FENCED)
        chosen = (
            sa.select(
                asked.c.coordinator,
                asked.c.transaction_id,
                sa.literal(Outcome.ABORTED.value),
                sa.literal_column("'{}'::jsonb"),
                sa.literal_column("'{}'::text[]"),
                sa.literal_column("'{}'::jsonb"),
            )
            .where(asked.c.id_ms.between(NOW_MS - ms(self._retention_ms - DAY_MS), NOW_MS + ms(DAY_MS)))
            .order_by(asked.c.coordinator, asked.c.transaction_id)
        )
        statement = (
            insert(d)
            .from_select(["coordinator", "transaction_id", "outcome", "participants", "undelivered", "parked"], chosen)
            .on_conflict_do_nothing()
        )
        rows = [{**key.row(), "id_ms": id_time_ms(key.transaction_id)} for key in keys]
        with local_transaction(self.engine, limits) as connection:
            connection.execute(statement, arrays("asked", _FENCED, rows))
            looked = self._read(connection, keys)
        # Not written and not there: the id is too old, or ahead, or another's row went while we looked.
        return [Standing.IN_PROGRESS if looked[key] is Standing.UNDECIDED else looked[key] for key in keys]

    def _read(self, connection: Connection, keys: Sequence[TransactionKey]) -> dict[TransactionKey, Looked]:
        statement = sa.select(
            _keys.c.coordinator,
            _keys.c.transaction_id,
            d.c.outcome,
            d.c.participants,
            d.c.undelivered,
            NOW_MS.label("now_ms"),
        ).select_from(_keys.outerjoin(d, sa.and_(*_THESE)))
        found: dict[TransactionKey, Looked] = {}
        for row in connection.execute(statement, key_arrays("keys", keys)):
            key = TransactionKey(row.coordinator, row.transaction_id)
            if row.outcome is not None:
                found[key] = _readable(row)
                continue
            match age(key.transaction_id, now_ms=row.now_ms, retention_ms=self._retention_ms):
                case Age.EXPIRED:
                    found[key] = Standing.EXPIRED
                case Age.AHEAD:
                    found[key] = Standing.AHEAD
                case _:
                    found[key] = Standing.UNDECIDED
        return found

    # --- delivering -----------------------------------------------------------------------------------------

    def delivered(self, marks: Mapping[str, Sequence[TransactionKey]]) -> None:
        """Strikes participants that have acknowledged. May be lost: recovery then delivers again."""
        for participant, keys in sorted(marks.items()):
            self._mark_each(keys, partial(_strike, participant=participant), limits=ASIDE)

    def park(self, participant: str, reasons: Mapping[TransactionKey, str]) -> None:
        """Takes a delivery out of automatic work: a contradiction waits for a person (R5)."""
        for reason in sorted(set(reasons.values())):
            self._mark(
                [key for key, its_own in reasons.items() if its_own == reason],
                _waits_for(participant),
                undelivered=sa.func.array_remove(d.c.undelivered, participant),
                parked=d.c.parked.op("||")(sa.func.jsonb_build_object(participant, sa.cast(reason, sa.Text))),
                last_error=reason,
            )

    def failed(self, keys: Sequence[TransactionKey], reason: str) -> None:
        """Notes why a delivery did not come about."""
        self._mark(keys, sa.true(), last_error=reason)

    def retry_now(self, key: TransactionKey) -> None:
        """Makes an undelivered decision due at once, its parked deliveries included."""
        self._mark(
            [key],
            sa.or_(
                d.c.undelivered != sa.literal_column("'{}'::text[]"), d.c.parked != sa.literal_column("'{}'::jsonb")
            ),
            undelivered=sa.func.array_cat(
                d.c.undelivered,
                sa.func.coalesce(_names_in(d.c.parked), sa.literal_column("'{}'::text[]")),
                type_=ARRAY(sa.Text),
            ),
            limits=replace(ASIDE, durable=True),  # a person was told that it is done
            parked=sa.literal_column("'{}'::jsonb"),
            next_attempt_at=sa.func.now(),
        )

    def make_due(self, coordinator: str, participant: str, within_s: float) -> None:
        """A peer that answers again: what waited for it is due now (R11)."""
        waiting = [
            d.c.coordinator == coordinator,
            _waits_for(participant),
            d.c.undelivered != sa.literal_column("'{}'::text[]"),
        ]
        make_due(self.engine, d, waiting=waiting, lease_s=within_s)

    def _mark(
        self, keys: Sequence[TransactionKey], where: sa.ColumnElement[bool], *, limits: Limits = ASIDE, **values: Any
    ) -> None:
        """Changes these rows."""
        statement = sa.update(d).where(*_THESE, where).values(**values)
        self._mark_each(
            keys, lambda connection, some: connection.execute(statement, key_arrays("keys", some)), limits=limits
        )

    def _mark_each(
        self,
        keys: Sequence[TransactionKey],
        work: Callable[[Connection, Sequence[TransactionKey]], object],
        *,
        limits: Limits,
    ) -> None:
        """Has `work` done. A row that is locked keeps no other from its mark. Raises the first error, after all."""

        def mark(within: Limits, some: Sequence[TransactionKey]) -> list[None]:
            with local_transaction(self.engine, within) as connection:
                work(connection, some)
            return [None] * len(some)

        patient, impatient = partial(mark, limits), partial(mark, replace(limits, lock_timeout_ms=IMPATIENT_MS))
        for error in redo(sorted(keys), patient, impatient=impatient, budget_s=MARK_BUDGET_S) if keys else ():
            if error is not None:
                raise error

    # --- for people -----------------------------------------------------------------------------------------

    def get(self, key: TransactionKey) -> Row[Any] | None:
        """The row of one decision."""
        with local_transaction(self.engine, ASIDE) as connection:
            return connection.execute(
                sa.select(d).where(d.c.coordinator == key.coordinator, d.c.transaction_id == key.transaction_id)
            ).one_or_none()

    def page(
        self,
        *,
        outcome: Outcome | None = None,
        undelivered: bool = False,
        parked: bool = False,
        participant: str | None = None,
        older_than_s: float | None = None,
        begun_within_s: float | None = None,
        coordinator: str | None = None,
        size: int = 0,
        token: str = "",
    ) -> tuple[Sequence[Row[Any]], str]:
        """Rows in the order of their keys, and the next page's token.

        undelivered: only those that a participant has not acknowledged, parked ones included. parked: only those with a
        parked delivery. participant: only those that wait for this one, where undelivered or parked is asked for; else
        those that it takes part in. begun_within_s: only those begun at most so long ago, by the time in their id.
        """
        where: list[sa.ColumnElement[bool]] = []
        if outcome is not None:
            where.append(d.c.outcome == outcome.value)
        is_undelivered = d.c.undelivered != sa.literal_column("'{}'::text[]")
        is_parked = d.c.parked != sa.literal_column("'{}'::jsonb")
        if parked:
            where.append(is_parked)
        elif undelivered:
            where.append(sa.or_(is_undelivered, is_parked))
        if participant and parked:
            where.append(d.c.parked.has_key(participant))
        elif participant and undelivered:
            where.append(sa.or_(_waits_for(participant), d.c.parked.has_key(participant)))
        elif participant:
            where.append(d.c.participants.has_key(participant))
        if older_than_s is not None:
            where.append(paging.older_than(d.c.decided_at, older_than_s))
        if begun_within_s is not None:
            where.append(paging.begun_within(d.c.transaction_id, begun_within_s))
        if coordinator:
            where.append(d.c.coordinator == coordinator)
        return paging.page(self.engine, d, where, size=size, token=token)

    def unknown_participants(self, coordinator: str, configured: Iterable[str]) -> set[str]:
        """Names in its undelivered rows, parked deliveries included, that the configuration no longer has (R17)."""
        waiting: sa.Select[tuple[Any]] = sa.select(sa.func.unnest(d.c.undelivered)).where(
            d.c.coordinator == coordinator, d.c.undelivered != sa.literal_column("'{}'::text[]")
        )
        parked: sa.Select[tuple[Any]] = sa.select(sa.func.jsonb_object_keys(d.c.parked)).where(
            d.c.coordinator == coordinator, d.c.parked != sa.literal_column("'{}'::jsonb")
        )
        with local_transaction(self.engine, ASIDE) as connection:
            return set(connection.execute(waiting.union(parked)).scalars()) - set(configured)


_THESE = (d.c.coordinator == _keys.c.coordinator, d.c.transaction_id == _keys.c.transaction_id)
_PARTICIPANT = sa.bindparam("participant", type_=sa.Text)
_STRIKE = Statement(
    sa.update(d)
    .where(*_THESE, sa.any_(d.c.undelivered) == _PARTICIPANT)
    .values(undelivered=sa.func.array_remove(d.c.undelivered, _PARTICIPANT), last_error=None)
)


def _strike(connection: Connection, keys: Sequence[TransactionKey], *, participant: str) -> None:
    _STRIKE(connection, {**key_arrays("keys", keys), "participant": participant})


def _waits_for(participant: str) -> sa.ColumnElement[bool]:
    return sa.literal(participant) == sa.any_(d.c.undelivered)


def _readable(row: Row[Any]) -> Decided | TandemError:
    """A row as a value; one that somebody has damaged is nobody else's trouble."""
    try:
        participants = {name: bytes.fromhex(digest) for name, digest in row.participants.items()}
        return Decided(Outcome(row.outcome), participants, tuple(row.undelivered))
    except (ValueError, TypeError, AttributeError):
        log_lines.error("a decision's row can't be read", transaction=f"{row.coordinator}/{row.transaction_id}")
        return TandemError("the decision's row can't be read", transaction_id=row.transaction_id)


def _names_in(document: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
    """The keys of a JSON object as an array; null where it has none."""
    keys = sa.func.jsonb_object_keys(document).table_valued("name")
    return sa.select(sa.func.array_agg(keys.c.name, type_=ARRAY(sa.Text))).select_from(keys).scalar_subquery()
