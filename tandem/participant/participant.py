"""Prepare, commit and abort: a batch each, one local transaction each, and no RPC inside it.

R7 everywhere: the transactions' rows are changed in one statement, their entities in a later one of the same READ
COMMITTED local transaction, and only for the ids that the first returned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from sqlalchemy.engine import Connection, Engine

from tandem.participant import rows
from tandem.participant.metrics import ParticipantMetrics
from tandem.participant.resource import HeldBy, Refused, Resource, Staging, Write
from tandem.participant.transaction import Act, ResolvedBy, State, Verdict, on_abort, on_commit, on_prepare
from tandem.runtime.batches import redo
from tandem.runtime.database import Limits
from tandem.runtime.digest import differing, transaction_digest, write_digests
from tandem.runtime.errors import MAX_VIOLATIONS, PAGING, InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import Age, TransactionKey, age
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.telemetry import frames, logger, step, unusual
from tandem.runtime.times import Times
from tandem.runtime.tracing import span

log = logger("tandem.participant")

TOGETHER = Limits(lock_timeout_ms=300)
"""For a batch: each of its items waits for the slowest lock."""

IMPATIENT = Limits(lock_timeout_ms=100)
"""For the pieces of a batch in which some rows are locked."""

MAX_ROWS = 10_100
"""Of one transaction: a hundred businesses with a hundred people each. What ends it works on them all at once (R16)."""

MAX_STAGE_ROUNDS = 3
"""How often staging is repeated for those that were in the way of each other inside one batch."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One Prepare. ttl_s and driver_deadline_s in seconds; writes as they came, since their bytes make the digest."""

    key: TransactionKey
    log_id: UUID
    ttl_s: float
    driver_deadline_s: float
    writes: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Yes:
    """A yes vote: a promise, durable before it is given (R15)."""

    digest: bytes


class HeldByAnother(TandemError):
    """A no vote: `holder`, another transaction in progress, holds what this one needs (R8)."""

    def __init__(self, key: TransactionKey, holder: TransactionKey) -> None:
        super().__init__(
            "another transaction in progress holds what this one needs",
            reason=Reason.HELD,
            transaction_id=key.transaction_id,
            retry_after_s=1.0,
            metadata={"held_by_coordinator": holder.coordinator, "held_by_transaction_id": str(holder.transaction_id)},
        )
        self.holder = holder


@dataclass(frozen=True, slots=True)
class _Ready:
    """An Ask whose shape is right."""

    ask: Ask
    digests: bytes
    writes: Sequence[Write]

    @property
    def key(self) -> TransactionKey:
        return self.ask.key

    def row(self) -> rows.New:
        staged = sum(write.rows for write in self.writes)
        return rows.New(self.key, self.ask.log_id, self.digests, staged, self.ask.ttl_s)


class Participant:
    """One service's participant: prepares, commits and aborts batches of transactions.

    name: its configured name, which the vote returns and coordinators know it by.
    coordinators: the names it believes. Every function answers each item by itself, in the order asked, and may be
    called again with the same items, in any order, any number of times.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        resource: Resource,
        coordinators: Collection[str],
        times: Times,
        metrics: ParticipantMetrics,
    ) -> None:
        self.engine = engine
        self.name = name
        self.coordinators = frozenset(coordinators)
        self.times = times.check()
        self.metrics = metrics
        self._resource = resource

    def __repr__(self) -> str:
        return f"Participant({self.name!r}, coordinators={sorted(self.coordinators)})"

    def prepare(self, asks: Sequence[Ask]) -> list[Yes | TandemError]:
        """Stages what is asked, durably; a yes vote or the reason of a no vote each (R6). Pushes nobody (R10)."""
        ready: dict[TransactionKey, _Ready] = {}
        answers: list[Yes | TandemError | None] = []
        for ask in asks:
            try:
                if ask.key in ready:
                    raise InvalidRequest(
                        [Violation("key", "appears twice in the batch")], reason=Reason.DUPLICATE_IN_BATCH
                    )
                ready[ask.key] = self._ready(ask)
                answers.append(None)
            except InvalidRequest as error:
                answers.append(error)
            except Exception as error:  # a plug's mistake over one write must not fail the neighbours
                log.error("a write could not be read", transaction=str(ask.key), exception=frames(error))
                answers.append(TandemError("a write could not be read", transaction_id=ask.key.transaction_id))
        order = sorted(ready)
        asked = [ready[key] for key in order]
        impatient = partial(self._prepare, limits=IMPATIENT)
        done = dict(zip(order, redo(asked, self._prepare, impatient=impatient), strict=True))
        return [done[ask.key] if answer is None else answer for ask, answer in zip(asks, answers, strict=True)]

    def commit(self, keys: Sequence[TransactionKey], by: ResolvedBy) -> list[TandemError | None]:
        """Publishes what was staged; None where that is done, now or before."""
        return self._end(keys, by, self._commit)

    def abort(self, keys: Sequence[TransactionKey], by: ResolvedBy) -> list[TandemError | None]:
        """Discards what was staged, or leaves a tombstone; None where that is done, now or before."""
        return self._end(keys, by, self._abort)

    # --- prepare ------------------------------------------------------------------------------------------

    def _ready(self, ask: Ask) -> _Ready:
        """Everything that needs no database. Raises InvalidRequest."""
        self._check_coordinator(ask.key)
        if not ask.ttl_s > self.times.push_after_s:
            raise InvalidRequest([Violation("ttl", f"must be above push_after, {self.times.push_after_s:g} s")])
        if not ask.driver_deadline_s < self.times.push_after_s:
            raise InvalidRequest(
                [Violation("driver_deadline", f"must be below push_after, {self.times.push_after_s:g} s")]
            )
        if not ask.writes:
            raise InvalidRequest([Violation("writes", "must hold at least one write")])
        writes = self._parsed(ask.writes)
        return _Ready(ask, write_digests(ask.writes), writes)

    def _parsed(self, asked: Sequence[Any]) -> list[Write]:
        """The writes. Raises InvalidRequest, which says of each write all that is wrong with it, so that nobody has to
        mend and ask anew for each; of so many that these are MAX_VIOLATIONS at most, for the reason of the first.
        """
        writes: list[Write] = []
        wrong: list[InvalidRequest] = []
        for position, write in enumerate(asked):
            try:
                writes.append(self._resource.parse(write))
            except InvalidRequest as error:
                wrong.append(error.below(f"writes[{position}]"))
            except (DecodeError, UnicodeDecodeError):
                malformed = [Violation(f"writes[{position}].value", "is not a message of its type")]
                wrong.append(InvalidRequest(malformed, reason=Reason.MALFORMED_MESSAGE))
            if len(wrong) == MAX_VIOLATIONS:
                break
        if len(wrong) == 1:
            raise wrong[0]
        if wrong:
            found = list(wrong[0].violations)
            for other in wrong[1:]:
                if other.reason is wrong[0].reason and len(found) + len(other.violations) <= MAX_VIOLATIONS:
                    found += other.violations
            raise InvalidRequest(found, reason=wrong[0].reason)
        staging = sum(write.rows for write in writes)
        if staging > MAX_ROWS:
            raise InvalidRequest(
                [Violation("writes", f"are {staging:,} rows; a transaction stages at most {MAX_ROWS:,}")],
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        return writes

    def _prepare(self, batch: Sequence[_Ready], *, limits: Limits | None = None) -> list[Yes | TandemError]:
        """One local transaction: the transactions' rows, then their entities (R7)."""
        answers: dict[TransactionKey, Yes | TandemError] = {}
        with span("tandem.stage", batch), local_transaction(self.engine, limits or _limits(batch)) as connection:
            inserted = rows.insert(connection, [r.row() for r in batch], retention_ms=self.times.retention_ms)
            read = rows.read(connection, [r.key for r in batch if r.key not in inserted])
            for r in batch:
                if r.key not in inserted:
                    answers[r.key] = self._answer_again(r, read)
            fresh = [r for r in batch if r.key in inserted]
            if fresh:
                failpoint("participant.before_stage")
                answers |= self._stage(connection, fresh)
                failpoint("participant.after_stage")
        failpoint("participant.after_prepare")
        return [answers[r.key] for r in batch]

    def _answer_again(self, ready: _Ready, read: rows.Read) -> Yes | TandemError:
        """The answer for a transaction whose row was not ours to write."""
        held = read.held.get(ready.key)
        verdict = on_prepare(held, self._age(ready.key, read), log_id=ready.ask.log_id, digests=ready.digests)
        if verdict is Act.ANSWER_OK:
            return Yes(transaction_digest(ready.digests))
        if isinstance(verdict, Act):
            return _in_progress(ready.key)
        metadata: dict[str, str] = {}
        message = _SENTENCES[verdict]
        if verdict is Reason.TRANSACTION_REUSED and held is not None:
            differ = differing(held.digests, ready.digests)
            positions = ",".join(map(str, differ[:MAX_VIOLATIONS]))
            metadata = {"writes": positions}
            more = f" and {len(differ) - MAX_VIOLATIONS:,} more" if len(differ) > MAX_VIOLATIONS else ""
            message += f": writes {positions}{more} differ" if positions else ": it belongs to another decision log"
        return TandemError(message, reason=verdict, transaction_id=ready.key.transaction_id, metadata=metadata)

    def _stage(self, connection: Connection, fresh: Sequence[_Ready]) -> Mapping[TransactionKey, Yes | TandemError]:
        """Stages the entities; of a transaction that gets a no vote nothing stays, its own row included."""
        answers: dict[TransactionKey, Yes | TandemError] = {}
        pending = list(fresh)
        for _ in range(MAX_STAGE_ROUNDS):
            staged = self._resource.stage(connection, [Staging(r.key, r.writes) for r in pending])
            refused: set[TransactionKey] = set()
            for r, answer in zip(pending, staged, strict=True):
                match answer:
                    case Refused(error):
                        answers[r.key] = _of(error, r.key)
                        refused.add(r.key)
                    case HeldBy(holder):
                        answers[r.key] = HeldByAnother(r.key, holder)
                        refused.add(r.key)
                    case _:
                        answers[r.key] = Yes(transaction_digest(r.digests))
            if not refused:
                break
            self._resource.discard(connection, sorted(refused))
            # What a refused neighbour held is free again: those that it was in the way of get another chance.
            again = {
                r.key
                for r, answer in zip(pending, staged, strict=True)
                if isinstance(answer, HeldBy) and answer.key in refused
            }
            if not again:
                break
            pending = [r for r in pending if r.key in again]
        no = [key for key, answer in answers.items() if not isinstance(answer, Yes)]
        if no:
            rows.remove(connection, no)
        return answers

    # --- commit and abort -----------------------------------------------------------------------------------

    def _end(
        self,
        keys: Sequence[TransactionKey],
        by: ResolvedBy,
        work: Callable[[Sequence[TransactionKey], ResolvedBy, Limits], list[TandemError | None]],
    ) -> list[TandemError | None]:
        wrong: dict[TransactionKey, TandemError] = {}
        for key in keys:
            try:
                self._check_coordinator(key)
            except TandemError as error:
                wrong[key] = error
        rest = sorted({key for key in keys if key not in wrong})
        ended = redo(
            rest, lambda batch: work(batch, by, _limits(batch)), impatient=lambda batch: work(batch, by, IMPATIENT)
        )
        done = dict(zip(rest, ended, strict=True))
        answers = [wrong[key] if key in wrong else done[key] for key in keys]
        for key, answer in zip(keys, answers, strict=True):
            if answer is not None and answer.reason in PAGING:
                self._page(key, answer.reason, by)
        return answers

    def _commit(self, keys: Sequence[TransactionKey], by: ResolvedBy, limits: Limits) -> list[TandemError | None]:
        with span("tandem.publish", keys), local_transaction(self.engine, limits) as connection:
            changed = rows.resolve(connection, keys, State.COMMITTED, by)
            rest = [key for key in keys if key not in changed]
            if rest:
                rows.confirm(connection, rest, State.COMMITTED)
            read = rows.read(connection, rest)
            if changed:
                failpoint("participant.before_publish")
                for key, found in self.apply(connection, changed, State.COMMITTED).items():
                    if found != changed[key].staged:
                        raise TandemError(
                            f"staged {changed[key].staged} rows, found {found}",
                            reason=Reason.PUBLISHED_NOT_STAGED,
                            transaction_id=key.transaction_id,
                        )
        self._tell(State.COMMITTED, changed, by)
        failpoint("participant.after_commit")
        if changed:
            self.metrics.ended(State.COMMITTED.value, by.value, (ended.in_doubt_s for ended in changed.values()))
        return [
            None if key in changed else self._ended(key, on_commit(read.held.get(key), self._age(key, read)))
            for key in keys
        ]

    def _abort(self, keys: Sequence[TransactionKey], by: ResolvedBy, limits: Limits) -> list[TandemError | None]:
        found: dict[TransactionKey, int] = {}
        with span("tandem.discard", keys), local_transaction(self.engine, limits) as connection:
            changed = rows.resolve(connection, keys, State.ABORTED, by)
            rest = [key for key in keys if key not in changed]
            if rest:
                rows.confirm(connection, rest, State.ABORTED)
            buried = rows.bury(connection, rest, by, retention_ms=self.times.retention_ms) if rest else set()
            read = rows.read(connection, [key for key in rest if key not in buried])
            if changed:
                found = self.apply(connection, changed, State.ABORTED)
        self._tell(State.ABORTED, changed, by)
        for key in (key for key, count in found.items() if count != changed[key].staged):
            # What was to go is gone, and to hold on to the rest would help nobody; but somebody has been at the data.
            self._page(key, Reason.PUBLISHED_NOT_STAGED, by)
        if changed:
            self.metrics.ended(State.ABORTED.value, by.value, (ended.in_doubt_s for ended in changed.values()))
        return [
            None
            if key in changed or key in buried
            else self._ended(key, on_abort(read.held.get(key), self._age(key, read)))
            for key in keys
        ]

    def apply(
        self, connection: Connection, changed: Collection[TransactionKey], outcome: State
    ) -> dict[TransactionKey, int]:
        """Publishes or discards the rows of transactions whose own rows were changed in this local transaction (R7).

        changed: how many rows each has staged. Returns how many were found.
        """
        work = self._resource.publish if outcome is State.COMMITTED else self._resource.discard
        counts = work(connection, sorted(changed))
        return {key: counts.get(key, 0) for key in changed}

    def _tell(self, outcome: State, keys: Collection[TransactionKey], by: ResolvedBy) -> None:
        (step if by in _USUAL else unusual)(log, outcome.value, keys, by=by.value)

    def _page(self, key: TransactionKey, reason: Reason, by: ResolvedBy) -> None:
        self.metrics.contradictions.labels(reason.value).inc()
        log.error("contradiction", transaction=str(key), reason=reason.value, by=by.value)

    def _ended(self, key: TransactionKey, verdict: Verdict) -> TandemError | None:
        """The answer for a transaction that no statement changed."""
        if verdict is Act.ANSWER_OK:
            return None
        if isinstance(verdict, Act):
            # Prepared now, but not when the UPDATE looked: another one is working on it.
            return _in_progress(key)
        return TandemError(_SENTENCES[verdict], reason=verdict, transaction_id=key.transaction_id)

    # --- shared ---------------------------------------------------------------------------------------------

    def _check_coordinator(self, key: TransactionKey) -> None:
        if key.coordinator not in self.coordinators:
            raise InvalidRequest(
                [Violation("key.coordinator", f"is not a coordinator that {self.name} is configured to believe")],
                reason=Reason.COORDINATOR_UNKNOWN,
            )

    def _age(self, key: TransactionKey, read: rows.Read) -> Age:
        return age(key.transaction_id, now_ms=read.now_ms, retention_ms=self.times.retention_ms)


_USUAL = frozenset({ResolvedBy.COORDINATOR, ResolvedBy.READER})
"""Who brings outcomes where nothing has gone wrong: a reader, too, where the initiator confirms in the background."""

_SENTENCES = {
    Reason.TRANSACTION_UNKNOWN: "nothing was ever prepared here for this transaction",
    Reason.TRANSACTION_REUSED: "the transaction was prepared with other content",
    Reason.TRANSACTION_ABORTED: "the transaction is aborted here",
    Reason.TRANSACTION_EXPIRED: "the transaction_id is older than the retention allows",
    Reason.TRANSACTION_AHEAD: "the transaction_id lies more than a day in the future: check the initiator's clock",
    Reason.ALREADY_COMMITTED: "the transaction is committed here",
    Reason.ALREADY_ABORTED: "the transaction is aborted here",
}


def _limits(batch: Sequence[object]) -> Limits:
    return TOGETHER if len(batch) > 1 else Limits()


def _in_progress(key: TransactionKey) -> TandemError:
    return TandemError(
        "another call is working on this transaction: ask again",
        reason=Reason.IN_PROGRESS,
        transaction_id=key.transaction_id,
        retry_after_s=0.1,
    )


def _of(error: TandemError, key: TransactionKey) -> TandemError:
    error.transaction_id = key.transaction_id
    return error
