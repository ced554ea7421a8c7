"""Brings decisions to the participants: now, in the background, or by recovery. Never raises (R12)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.handle import Transaction
from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.participants import Participants
from tandem.runtime.background import Background
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.errors import CONTRADICTIONS, PAGING, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import frames, logger, step, unusual
from tandem.runtime.tracing import span
from tandem.v1 import transaction_pb2

log = logger("tandem.delivery")

QUEUE_LIMIT = 10_000
"""Transactions that wait to be confirmed in the background; a further one is recovery's."""

BATCH = 500

MARK_EVERY_S = 0.05
"""Between two UPDATEs of marks: far below what recovery waits before it takes up a decision (R11)."""

BACKGROUND_S = 2.0

Answers = dict[str, dict[TransactionKey, TandemError | None]]


class Delivery:
    """Sends Commit and Abort, and keeps the log's `undelivered` true."""

    def __init__(
        self,
        decision_log: DecisionLog,
        participants: Participants,
        metrics: CoordinatorMetrics,
        marks: Marks | None = None,
    ) -> None:
        """marks: where acknowledgements go that may get lost; None: they are written before `deliver` returns."""
        self._log = decision_log
        self._participants = participants
        self._metrics = metrics
        self._marks = marks

    def deliver(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> Answers:
        """Commits at each participant, strikes those that acknowledged, parks contradictions (R5).

        until: on time.monotonic(). The answers are given back; a mark that gets lost is delivered again by recovery.
        """
        answered = {
            name: dict(zip(asked[name], errors, strict=True))
            for name, errors in self._participants.commit(asked, by=by, until=until).items()
        }
        failpoint("driver.after_commit" if by == transaction_pb2.RESOLVED_BY_COORDINATOR else "recovery.after_commit")
        for name, some in answered.items():
            _tell(name, some, by)
            try:
                self._mark(name, some)
            except DATABASE_ERRORS as error:
                log.warning("deliveries not marked", participant=name, exception=frames(error))
        return answered

    def abort(self, asked: Mapping[str, Sequence[TransactionKey]], *, until: float) -> None:
        """Sends Abort, as well as it can be done by then: the sweeper has what is not reached."""
        try:
            answers = self._participants.abort(asked, by=transaction_pb2.RESOLVED_BY_COORDINATOR, until=until)
        except Exception as error:  # R12's twin: an Abort that gets lost changes nothing
            log.warning("abort not delivered", exception=frames(error))
            return
        for name, errors in answers.items():
            for key, answer in zip(asked[name], errors, strict=True):
                if answer is not None and answer.reason in CONTRADICTIONS:
                    self._metrics.contradictions.labels(answer.reason.value).inc()
                    log.error("contradiction", transaction=str(key), participant=name, reason=answer.reason.value)

    def _mark(self, name: str, answers: Mapping[TransactionKey, TandemError | None]) -> None:
        contradictions = {key: error.reason.value for key, error in answers.items() if error and error.reason in PAGING}
        for key, reason in contradictions.items():
            self._metrics.contradictions.labels(reason).inc()
            log.error("contradiction: delivery to be parked", transaction=str(key), participant=name, reason=reason)
        acknowledged = [key for key, error in answers.items() if error is None]
        if self._marks is None:
            self._log.delivered({name: acknowledged})
        else:
            self._marks.put(name, acknowledged)
        if contradictions:
            self._log.park(name, contradictions)


def _tell(
    name: str, answers: Mapping[TransactionKey, TandemError | None], by: transaction_pb2.ResolvedBy.ValueType
) -> None:
    """What became of each delivery. Contradictions are told as such."""
    failed = {key: error.reason for key, error in answers.items() if error is not None}
    for reason in sorted(set(failed.values()) - PAGING):
        unusual(log, "not delivered", [key for key in failed if failed[key] is reason], participant=name, reason=reason)
    usual = by == transaction_pb2.RESOLVED_BY_COORDINATOR
    done = [key for key in answers if key not in failed] if failed else answers
    (step if usual else unusual)(log, "delivered", done, participant=name)


class Marks:
    """Acknowledgements on their way into the log: nobody waits for them, and one that gets lost is delivered again.

    The first is written at once, those that come meanwhile together with the next.
    """

    def __init__(self, decision_log: DecisionLog, metrics: CoordinatorMetrics) -> None:
        self._log = decision_log
        self._writing: Background[tuple[str, TransactionKey]] = Background(
            "marks",
            self._write,
            limit=QUEUE_LIMIT,
            batch=BATCH,
            dropped=metrics.marks_dropped.inc,
            every_s=MARK_EVERY_S,
        )

    def put(self, participant: str, keys: Sequence[TransactionKey]) -> None:
        """To be struck off. A full queue drops: recovery delivers again. Never raises."""
        self._writing.put([(participant, key) for key in keys])

    def close(self) -> None:
        """Writes what waits."""
        self._writing.close()

    def _write(self, taken: Sequence[tuple[str, TransactionKey]]) -> None:
        marks: dict[str, list[TransactionKey]] = {}
        for participant, key in taken:
            marks.setdefault(participant, []).append(key)
        for participant, keys in marks.items():
            try:
                self._log.delivered({participant: keys})
            except Exception as error:  # whatever it is: recovery has it
                log.warning("deliveries not marked", participant=participant, exception=frames(error))


class Confirmer:
    """The driver's confirm: at once, or from a bounded queue by one thread."""

    def __init__(self, delivery: Delivery, metrics: CoordinatorMetrics) -> None:
        self._delivery = delivery
        self._confirming: Background[Transaction] = Background(
            "confirm",
            self._in_background,
            limit=QUEUE_LIMIT,
            batch=BATCH,
            dropped=metrics.confirms_dropped.inc,
        )

    def now(self, txs: Sequence[Transaction], *, until: float) -> None:
        """Confirms, waiting for the acknowledgements at most until then."""
        asked: dict[str, list[TransactionKey]] = {}
        for tx in txs:
            for name in tx.undelivered:
                asked.setdefault(name, []).append(tx.key)
        if not asked:
            return
        try:
            answers = self._delivery.deliver(asked, by=transaction_pb2.RESOLVED_BY_COORDINATOR, until=until)
        except Exception as error:  # after the commit point nothing raises; recovery has it
            log.warning("confirm failed", exception=frames(error))
            return
        for tx in txs:
            tx.undelivered = tuple(
                name for name in tx.undelivered if name not in answers or answers[name].get(tx.key) is not None
            )

    def _in_background(self, txs: Sequence[Transaction]) -> None:
        with span("tandem.confirm", txs):
            self.now(txs, until=time.monotonic() + BACKGROUND_S)

    def later(self, txs: Sequence[Transaction]) -> None:
        """Confirms in the background. A full queue drops: recovery has it."""
        self._confirming.put(txs)

    def close(self) -> None:
        """Confirms what waits."""
        self._confirming.close()
