"""Brings decisions to the participants: now, in the background, or by recovery. Never raises (R12)."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence

from tandem.coordinator.decision_log import DecisionLog
from tandem.coordinator.handle import Transaction
from tandem.coordinator.metrics import CoordinatorMetrics
from tandem.coordinator.participants import Participants
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.errors import CONTRADICTIONS, Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.telemetry import frames, logger
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
        contradictions = {
            key: error.reason.value for key, error in answers.items() if error and error.reason in PARKING
        }
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


class Marks:
    """Acknowledgements on their way into the log: nobody waits for them, and one that gets lost is delivered again.

    The first is written at once, those that come meanwhile together with the next. One thread, from the first one on.
    """

    def __init__(self, decision_log: DecisionLog, metrics: CoordinatorMetrics) -> None:
        self._log = decision_log
        self._metrics = metrics
        self._waiting: queue.Queue[tuple[str, TransactionKey] | None] = queue.Queue(QUEUE_LIMIT)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    def put(self, participant: str, keys: Sequence[TransactionKey]) -> None:
        """To be struck off. A full queue drops: recovery delivers again. Never raises."""
        if self._closed or (self._thread is None and not self._start()):
            self._metrics.marks_dropped.inc(len(keys))
            return
        for key in keys:
            try:
                self._waiting.put_nowait((participant, key))
            except queue.Full:
                self._metrics.marks_dropped.inc()

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, for at most so long."""
        self._closed = True
        if self._thread is not None:
            try:
                self._waiting.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._thread.join(timeout_s)

    def _start(self) -> bool:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="marks", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread to be had; after the commit point nothing raises
                    log.warning("no thread to mark deliveries", exception=frames(error))
                    return False
                self._thread = thread
        return True

    def _run(self) -> None:
        stopping = False
        while not stopping:
            taken = [self._waiting.get()]
            while len(taken) < BATCH and not self._waiting.empty():
                taken.append(self._waiting.get_nowait())
            stopping = None in taken
            marks: dict[str, list[TransactionKey]] = {}
            for participant, key in filter(None, taken):
                marks.setdefault(participant, []).append(key)
            for participant, keys in marks.items():
                try:
                    self._log.delivered({participant: keys})
                except Exception as error:  # whatever it is: recovery has it
                    log.warning("deliveries not marked", participant=participant, exception=frames(error))
            if not stopping:
                time.sleep(MARK_EVERY_S)


PARKING = CONTRADICTIONS | {Reason.TRANSACTION_EXPIRED, Reason.PUBLISHED_NOT_STAGED}
"""Answers to Commit that no repeat can change (design §2, marked ‡)."""


class Confirmer:
    """The driver's confirm: at once, or from a bounded queue by one thread."""

    def __init__(self, delivery: Delivery, metrics: CoordinatorMetrics) -> None:
        self._delivery = delivery
        self._metrics = metrics
        self._waiting: queue.Queue[Transaction] = queue.Queue(QUEUE_LIMIT)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()

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

    def later(self, txs: Sequence[Transaction]) -> None:
        """Confirms in the background. A full queue drops: recovery has it."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="confirm", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no thread to be had; after the commit point nothing raises
                    log.warning("no thread to confirm in the background", exception=frames(error))
                    self._metrics.confirms_dropped.inc(len(txs))
                    return
                self._thread = thread
        for tx in txs:
            try:
                self._waiting.put_nowait(tx)
            except queue.Full:
                self._metrics.confirms_dropped.inc()

    def close(self, timeout_s: float = 5.0) -> None:
        """Confirms what waits, for at most so long."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._waiting.empty()):
            try:
                batch = [self._waiting.get(timeout=0.2)]
            except queue.Empty:
                continue
            while len(batch) < BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            self.now(batch, until=time.monotonic() + BACKGROUND_S)
