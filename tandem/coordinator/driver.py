"""The driver: the `with` block, and the three calls it is made of (design §2, steps 1 to 4).

    prepare ──▶ the caller's own rows and the decision, one local commit ──▶ finish

Everything is a batch; one transaction is a batch of one. R1 and R3 decide the order of every line below.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal
from uuid import UUID

from prometheus_client import CollectorRegistry
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from tandem.coordinator import verdicts
from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.delivery import Confirmer, Delivery, Marks
from tandem.coordinator.errors import (
    LocalTransactionEnded,
    OutcomeUnknown,
    Refused,
    TransactionExpired,
    TransactionReused,
    Unavailable,
)
from tandem.coordinator.handle import Batch, Branches, Transaction, packed
from tandem.coordinator.local import LocalBlock
from tandem.coordinator.local import using as local_using
from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.participants import MAX_BATCH_BYTES, Commits, Participants, Preparing
from tandem.coordinator.transaction import Decided, Outcome, Phase, Standing, Vote, tally
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.database import Limits, bound_waits, explained
from tandem.runtime.errors import DatabaseError, InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import frames, logger, step, unusual
from tandem.runtime.times import Times
from tandem.runtime.tracing import about, span

log = logger("tandem.coordinator")

Confirm = Literal["wait", "background"]

MAX_TRANSACTIONS = 1_000
"""In one `transactions([...])`."""

SETTLE_S = 3.0
"""How long R3 tries to read the log before it says OutcomeUnknown."""

CONFIRM_S = 2.0
"""How long the caller waits for Commit to be acknowledged before it leaves it to recovery (R12)."""

ABORT_S = 1.0
"""How long the caller waits for Abort; what is not reached is the sweeper's."""


class Coordinator:
    """One initiator's coordinator: makes its own rows and the participants' come into being together, or not at all.

    engine: the initiator's database, where the decision log lies (`python -m coordinator migrate` makes it).
    name: the coordinator's configured name, never reused for another log.
    participants: name → gRPC target. times: see `Times`. registry: where its metrics go.
    commits: what brings participants the decision committed, if not Commit by RPC; "acknowledged" is then its word.
    Thread-safe; one a process.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str,
        participants: Mapping[str, str],
        times: Times | None = None,
        registry: CollectorRegistry | None = None,
        log_engine: Engine | None = None,
        commits: Commits | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.times = (times or Times()).check()
        self.metrics = CoordinatorMetrics(registry or CollectorRegistry())
        self.log = DecisionLog(log_engine or engine, self.times)
        bound_waits(self.log.engine)  # the block's own Engine is looked at with the block
        self.participants = Participants(participants, calls=self.metrics.calls, commits=commits)
        self._marks = Marks(self.log, self.metrics)
        self._delivery = Delivery(self.log, self.participants, self.metrics, self._marks)
        self._confirmer = Confirmer(self._delivery, self.metrics)

    def __repr__(self) -> str:
        return f"Coordinator({self.name!r}, participants={sorted(self.participants.names)})"

    # --- the with block -------------------------------------------------------------------------------------

    @contextmanager
    def transaction(
        self,
        branches: Branches,
        *,
        using: Engine | Session | None = None,
        transaction_id: UUID | None = None,
        ttl_s: float | None = None,
        confirm: Confirm = "wait",
    ) -> Iterator[Transaction]:
        """Prepares, runs the block in the local transaction that also holds the decision, commits, confirms.

        using: an Engine (default: the coordinator's; `tx.connection` is then inside) or an ORM Session (flushed by us).
        transaction_id: a UUIDv7 of the caller's, for a call that may be repeated; default: a new one.
        ttl_s: seconds in doubt before a participant asks; default: that of `times`.
        confirm: "wait" for the participants' acknowledgement, or leave it to the "background".
        Raises Refused, Unavailable, Fenced, TransactionReused, TransactionExpired (not committed), OutcomeUnknown
        (perhaps), LocalTransactionRefused (before any RPC), LocalTransactionEnded, or what the block raised.
        """
        asked = [(transaction_id, branches)]
        with (
            span("tandem.transaction"),
            self._run(asked, using=using, ttl_s=ttl_s, confirm=confirm, all_or_none=True) as batch,
        ):
            yield batch.transactions[0]

    @contextmanager
    def transactions(
        self,
        many: Sequence[Branches],
        *,
        using: Engine | Session | None = None,
        ttl_s: float | None = None,
        confirm: Confirm = "wait",
    ) -> Iterator[Batch]:
        """Many transactions with one local commit: all decisions or none. A refused vote takes only its own out.

        Inside the block `batch.accepted` are those that will be decided, and `tx.error` says why another is not.
        """
        if not 1 <= len(many) <= MAX_TRANSACTIONS:
            raise InvalidRequest([Violation("transactions", f"must hold 1 to {MAX_TRANSACTIONS}")])
        asked = [(None, branches) for branches in many]
        with (
            span("tandem.transactions"),
            self._run(asked, using=using, ttl_s=ttl_s, confirm=confirm, all_or_none=False) as batch,
        ):
            yield batch

    @contextmanager
    def _run(
        self,
        asked: Sequence[tuple[UUID | None, Branches]],
        *,
        using: Engine | Session | None,
        ttl_s: float | None,
        confirm: Confirm,
        all_or_none: bool,
    ) -> Iterator[Batch]:
        source = local_using(using if using is not None else self.engine)
        with _available(asked[0][0]):
            source.check()
        started = time.monotonic()
        txs = self._prepare(asked, ttl_s=ttl_s, all_or_none=all_or_none)
        batch = Batch(txs)
        block = LocalBlock(source, self._limits(started), txs[0].id)
        if not batch.accepted:
            done = [tx for tx in txs if tx.phase is Phase.COMMITTED]
            if done:
                yield from self._rehearse(block, batch, done)
            else:
                yield batch
            self._confirm(done, confirm)
            return
        try:
            with _available(own=batch.accepted[0].id):
                batch.use(block.begin())
            yield batch
            failpoint("driver.after_block")
            block.finish_block()
            if time.monotonic() - started > self.times.driver_deadline_s:
                raise Unavailable(
                    "the block took longer than the driver's deadline", transaction_id=batch.accepted[0].id
                )
            failpoint("driver.after_votes")
            statement, parameters = self.log.decide_in_block(
                [tx.deciding for tx in batch.accepted], log_id=batch.accepted[0].log_id, token=block.token
            )
            # From here on only the log can say what happened (R3): whatever is raised goes there.
            for tx in batch.accepted:
                tx.become(Phase.DECIDING)
                tx.sent = True
            with span("tandem.local_commit", batch.accepted):
                block.decide(statement, parameters)
                failpoint("driver.after_insert")
                block.commit()
        except BaseException as error:
            if isinstance(error, Exception):
                block.close(committed=False)
            else:
                block.abandon()
            batch.use(None)
            self._after_failure(batch.accepted, error)
        else:
            # The server said COMMIT: from here on nothing raises (R12).
            try:
                for tx in batch.accepted:
                    tx.become(Phase.COMMITTED)
            finally:
                block.close(committed=True)  # an interruption here, too, leaves no connection behind
                batch.use(None)
        failpoint("driver.after_local_commit")
        self._confirm(batch.accepted, confirm)

    def _limits(self, started: float) -> Limits:
        """The block's. A server that says nothing is given up soon after the driver's deadline, `started` included."""
        block_ms = int(self.times.block_timeout_s * 1000)
        left_s = max(0.0, started + self.times.driver_deadline_s - time.monotonic())
        return Limits(block_ms, block_ms, block_ms, give_up_ms=int(left_s * 1000) + 1_000)

    def _rehearse(self, block: LocalBlock, batch: Batch, done: Sequence[Transaction]) -> Iterator[Batch]:
        """The block of an id that another call has already committed: it runs, and is rolled back."""
        try:
            connection = block.begin()
        except DATABASE_ERRORS as error:  # committed it is, but this call can't go through its block
            raise verdicts.unknown(done[0]) from error
        try:
            for tx in done:
                tx.use(connection)
            yield batch
        except Exception as error:  # its own rows exist, so it may well fail; the answer is: committed
            log.info("the block of a committed transaction failed", exception=frames(error))
        except BaseException:
            block.abandon()
            raise
        finally:
            for tx in done:
                tx.use(None)
            block.close(committed=False)

    # --- the three calls ------------------------------------------------------------------------------------

    def prepare(
        self, branches: Branches, *, transaction_id: UUID | None = None, ttl_s: float | None = None
    ) -> Transaction:
        """The first of the three calls: stages everything, or raises as `transaction` does.

        Then, in a local transaction of any driver: own rows, and `tx.decision` as its last statement. Then
        `tx.finish()`, whatever happened.
        """
        (tx,) = self._prepare([(transaction_id, branches)], ttl_s=ttl_s, all_or_none=True)
        tx.decision = self.log.decide([tx.deciding], log_id=tx.log_id)
        return tx

    def finish(self, tx: Transaction) -> Outcome:
        """Reads the log (R3), then confirms or aborts. Raises OutcomeUnknown; can be repeated."""
        if tx.phase not in (Phase.COMMITTED, Phase.ABORTED, Phase.REUSED):
            self._settle([tx])
        self._count([tx])
        if tx.phase is Phase.COMMITTED:
            self._confirm([tx], "wait")
            return Outcome.COMMITTED
        if tx.phase is not Phase.ABORTED:
            raise verdicts.of_phase(tx) or verdicts.unknown(tx)
        self._send_abort([tx])
        return Outcome.ABORTED

    # --- a whole transaction --------------------------------------------------------------------------------

    def execute(self, transaction_id: UUID, branches: Branches, *, ttl_s: float | None = None) -> Transaction:
        """The `with` block with nothing in it, under an id that the caller keeps: a repeat gets the same decision.

        Returns the transaction when it is committed; raises as `transaction` does.
        """
        _check_id(transaction_id)
        key = TransactionKey(self.name, transaction_id)
        with _available(transaction_id):
            found = self.log.look([key], fence=False)[key]
        if isinstance(found, Decided):
            with _available(transaction_id):
                log_id = self.log.log_id()
            tx = Transaction(key, packed(branches), log_id=log_id, own_id=False, finish=self.finish)
            tx.settle(found)
            if tx.phase is not Phase.COMMITTED:
                raise verdicts.mark_spent(tx, verdicts.of_phase(tx) or verdicts.unknown(tx))
            tx.undelivered = found.undelivered
            return tx
        if found in verdicts.AGED:
            raise TransactionExpired(verdicts.AGED[found], transaction_id=transaction_id)
        with self.transaction(branches, transaction_id=transaction_id, ttl_s=ttl_s) as tx:
            pass
        return tx

    def close(self) -> None:
        """Drains what confirms in the background, closes the channels."""
        self._confirmer.close()
        self._marks.close()
        self.participants.close()

    # --- voting ---------------------------------------------------------------------------------------------

    def _prepare(
        self, asked: Sequence[tuple[UUID | None, Branches]], *, ttl_s: float | None, all_or_none: bool
    ) -> list[Transaction]:
        """Asks every participant at once. With `all_or_none` a missing vote raises; else it is the tx's `error`."""
        for given, branches in asked:
            _check_id(given)
            self._check_branches(branches)
        with _available(asked[0][0]):
            log_id = self.log.log_id()
        txs = [
            Transaction(
                TransactionKey(self.name, given or uuid7()),
                packed(branches),
                log_id=log_id,
                own_id=given is None,
                finish=self.finish,
            )
            for given, branches in asked
        ]
        for tx in txs:
            _check_size(tx)
        step(log, "preparing", [tx.key for tx in txs])
        about(txs)
        failpoint("driver.before_prepare")
        ttl = self.times.ttl_s if ttl_s is None else ttl_s
        preparing: dict[str, list[Preparing]] = {}
        owners: dict[str, list[Transaction]] = {}
        for tx in txs:
            for name, writes in tx.writes.items():
                preparing.setdefault(name, []).append(
                    Preparing(tx.key, log_id, ttl, self.times.driver_deadline_s, writes)
                )
                owners.setdefault(name, []).append(tx)
        try:
            with span("tandem.prepare", txs):
                votes = self.participants.prepare(preparing, until=time.monotonic() + self.times.prepare_deadline_s)
        except BaseException:
            # Interrupted while others vote: nothing is decided, and with ids of our own nothing ever will be (R3).
            self._give_up([tx for tx in txs if tx.own_id])
            raise
        by_tx: dict[UUID, dict[str, Vote]] = {tx.id: {} for tx in txs}
        for name, answers in votes.items():
            for tx, vote in zip(owners[name], answers, strict=True):
                by_tx[tx.id][name] = vote
        refused: list[Transaction] = []
        for tx in txs:
            counted = tally(tx.digests, by_tx[tx.id])
            if counted.unanimous:
                tx.become(Phase.PREPARED)
            else:
                tx.error = verdicts.of_tally(tx, counted)
                refused.append(tx)
        self._after_refusal(refused)
        if all_or_none:
            for tx in refused:
                if tx.error is not None:
                    raise tx.error
        return txs

    def _check_branches(self, branches: Branches) -> None:
        unknown = sorted(set(branches) - self.participants.names)
        if unknown:
            raise InvalidRequest(
                [Violation("branches", f"{self.name} has no participant called {', '.join(unknown)}")],
                reason=Reason.PARTICIPANT_UNKNOWN,
            )
        if not branches or not all(branches.values()):
            raise InvalidRequest([Violation("branches", "needs a participant, and each of them a write")])

    def _after_refusal(self, refused: Sequence[Transaction]) -> None:
        """Takes back what the others have staged; not where the id is another's, or too old (R6)."""
        mine = [tx for tx in refused if not isinstance(tx.error, TransactionReused | TransactionExpired)]
        self._give_up([tx for tx in mine if tx.own_id])
        self._settle([tx for tx in mine if not tx.own_id])
        self._send_abort([tx for tx in mine if not tx.own_id and tx.phase is Phase.ABORTED])
        for tx in mine:
            if tx.phase is Phase.COMMITTED:
                tx.error = None
            elif tx.phase is not Phase.ABORTED:
                tx.error = verdicts.of_phase(tx)
        for tx in refused:
            verdicts.mark_spent(tx, tx.error)
        self._count(refused)

    # --- settling (R3) --------------------------------------------------------------------------------------

    def _after_failure(self, txs: Sequence[Transaction], error: BaseException) -> None:
        """The block, the INSERT or COMMIT failed: finds out what holds, tells the participants, raises what is true.

        Returns only where everything is committed after all.
        """
        self._give_up([tx for tx in txs if tx.own_id and not tx.sent])
        self._settle([tx for tx in txs if tx.phase is not Phase.ABORTED])
        self._send_abort([tx for tx in txs if tx.phase is Phase.ABORTED and (tx.sent or not tx.own_id)])
        raised = verdicts.of_failure(txs, error)
        if raised is None:
            return
        verdicts.mark_spent(txs[0], raised)
        self._count(txs)
        self._confirm([tx for tx in txs if tx.phase is Phase.COMMITTED], "wait")
        if isinstance(raised, LocalTransactionEnded):
            self.metrics.ended.inc()
            log.error("a block ended its local transaction by itself", transactions=[str(tx.key) for tx in txs])
        if raised is error:
            raise error
        raise raised from error

    def _give_up(self, txs: Sequence[Transaction]) -> None:
        """Ids of our own whose INSERT was never sent: nobody can decide them, so Abort needs no reading (R3)."""
        for tx in txs:
            tx.become(Phase.ABORTED)
        self._send_abort(txs)

    def _settle(self, txs: Sequence[Transaction]) -> None:
        """Reads the log; where it is undecided, fences and reads (R3). Leaves UNKNOWN what can't be read."""
        if txs:
            self.log.forget_log_id()  # a renewed log may be why they have to be settled
        pending = {tx.key: tx for tx in txs}
        until = time.monotonic() + SETTLE_S
        while pending:
            try:
                looked = self.log.look(pending, fence=True)
            except Exception as error:  # whatever it is: nobody knows the outcome, and that is what has to be said
                log.warning("decision log can't be read", reason=explained(error).reason.value, exception=frames(error))
                looked = {}
            for key, what in looked.items():
                if isinstance(what, Decided):
                    pending.pop(key).settle(what)
                elif what in (Standing.EXPIRED, Standing.AHEAD):
                    pending.pop(key).become(Phase.UNKNOWN)
            if not pending or time.monotonic() > until:
                break
            time.sleep(0.1)
        for tx in pending.values():
            tx.become(Phase.UNKNOWN)
        unusual(log, "outcome unknown", pending)

    # --- telling the participants -----------------------------------------------------------------------------

    def _send_abort(self, txs: Sequence[Transaction]) -> None:
        """Best effort, to every participant that was sent a Prepare (R6); the sweeper has the rest."""
        asked: dict[str, list[TransactionKey]] = {}
        for tx in txs:
            for name in tx.writes:
                asked.setdefault(name, []).append(tx.key)
        if not asked:
            return
        with span("tandem.abort", txs):
            self._delivery.abort(asked, until=time.monotonic() + ABORT_S)

    def _confirm(self, txs: Sequence[Transaction], confirm: Confirm) -> None:
        """Brings Commit to everybody, now or in the background. Never raises (R12)."""
        self._count(txs)
        if confirm == "background":
            self._confirmer.later(txs)
            return
        with span("tandem.confirm", txs):
            self._confirmer.now(txs, until=time.monotonic() + CONFIRM_S)

    def _count(self, txs: Sequence[Transaction]) -> None:
        """Each transaction once, when its end is known."""
        for tx in txs:
            if not tx.counted and tx.phase not in (Phase.NEW, Phase.PREPARED, Phase.DECIDING, Phase.UNKNOWN):
                tx.counted = True
                told = tx.error.reason.value if tx.error is not None else tx.phase.value.upper()
                self.metrics.transactions.labels(told).inc()
                usual = tx.phase is Phase.COMMITTED or isinstance(tx.error, Refused)
                (step if usual else unusual)(log, "ended", [tx.key], outcome=tx.phase.value, told=told)


@contextmanager
def _available(given: UUID | None = None, *, own: UUID | None = None) -> Iterator[None]:
    """A database that can't serve is Unavailable: nothing is decided yet.

    But under an id `given` by the caller an earlier call may have decided: as long as the log was not read, that is
    OutcomeUnknown (R3).
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        if isinstance(error, TandemError) and not isinstance(error, DatabaseError):
            raise
        if given is not None:
            raise OutcomeUnknown(
                f"{explained(error).message}: an earlier call may have committed", transaction_id=given
            ) from error
        raise Unavailable(explained(error).message, transaction_id=own) from error


def _check_id(given: object) -> None:
    """Its own time is what says how old a transaction is (R14)."""
    if given is not None and not (isinstance(given, UUID) and given.version == 7):
        raise InvalidRequest([Violation("transaction_id", "must be a UUIDv7")])


def _check_size(tx: Transaction) -> None:
    """What no message can carry would fail at every repeat."""
    for name, writes in tx.writes.items():
        size = sum(write.ByteSize() + 8 for write in writes)
        if size > MAX_BATCH_BYTES:
            raise InvalidRequest(
                [Violation(f"branches[{name}]", f"is {size:,} bytes; {MAX_BATCH_BYTES:,} can be staged at once")]
            )
