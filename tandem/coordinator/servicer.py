"""CoordinatorService over a Coordinator: validates, translates, delegates, and nothing else.

It runs in the coordinator process, or in the initiator's own gRPC server beside its services.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.engine import Row

from tandem.coordinator.decision_log import DecisionLog, Question
from tandem.coordinator.driver import Coordinator
from tandem.coordinator.handle import Transaction
from tandem.coordinator.transaction import Outcome, Standing
from tandem.runtime.batches import DATABASE_ERRORS
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server
from tandem.runtime.status import ok, to_status
from tandem.runtime.telemetry import debugging, frames, logger, step, unusual
from tandem.runtime.tracing import about
from tandem.runtime.validation import validate
from tandem.runtime.wire import key_from, key_to, timestamp
from tandem.v1 import coordinator_pb2 as pb
from tandem.v1 import coordinator_pb2_grpc, transaction_pb2

log = logger("tandem.coordinator.servicer")

RESOLVERS = 8
RESERVED: dict[tuple[str, ...], int] = {("/tandem.v1.CoordinatorService/Resolve",): RESOLVERS}
"""For `Server(reserved=…)`: Resolve has workers of its own, so that Execute can't starve it (R4)."""

_ANSWERS: dict[Outcome | Standing, pb.ResolveResult.Outcome.ValueType] = {
    Outcome.COMMITTED: pb.ResolveResult.OUTCOME_COMMITTED,
    Outcome.ABORTED: pb.ResolveResult.OUTCOME_ABORTED,
    Standing.UNDECIDED: pb.ResolveResult.OUTCOME_UNDECIDED,
    Standing.IN_PROGRESS: pb.ResolveResult.OUTCOME_IN_PROGRESS,
    Standing.EXPIRED: pb.ResolveResult.OUTCOME_EXPIRED,
    Standing.WRONG_LOG: pb.ResolveResult.OUTCOME_WRONG_LOG,
}
_DECISIONS = {
    Outcome.COMMITTED: transaction_pb2.DECISION_COMMITTED,
    Outcome.ABORTED: transaction_pb2.DECISION_ABORTED,
}
_DECISIONS_BACK = {value: outcome for outcome, value in _DECISIONS.items()}


class CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """The gRPC face of a coordinator.

    resolving: a decision log on an engine of its own, so that nothing else can take Resolve's connections (R4).
    """

    def __init__(self, coordinator: Coordinator, resolving: DecisionLog) -> None:
        self._coordinator = coordinator
        self._resolving = resolving

    def add_to(self, server: Server) -> None:
        """Adds the service to a server, which should be made with RESERVED."""
        server.add(
            pb.DESCRIPTOR.services_by_name["CoordinatorService"],
            self,
            coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server,
        )

    def Resolve(self, request: pb.ResolveRequest, context: grpc.ServicerContext) -> pb.ResolveResponse:
        """What was decided, for one asker. Makes no RPC."""
        questions: list[Question] = []
        results: list[pb.ResolveResult | None] = []
        seen: set[TransactionKey] = set()
        for position, item in enumerate(request.items):
            try:
                question = self._question(item, seen)
            except InvalidRequest as error:
                results.append(pb.ResolveResult(status=to_status(error.below(f"items[{position}]"))))
            else:
                seen.add(question.key)
                questions.append(question)
                results.append(None)
        about(questions)
        answered = self._resolving.resolve(request.participant, questions, fence=request.fence) if questions else ()
        if request.fence or debugging():
            _tell(request, questions, answered)
        answers = iter(answered)
        return pb.ResolveResponse(
            results=[self._result(next(answers)) if result is None else result for result in results]
        )

    def _question(self, item: pb.ResolveItem, seen: set[TransactionKey]) -> Question:
        validate(item)
        question = Question(key_from(item.key), UUID(item.log_id), item.digest)
        self._check_name(question.key)
        if question.key in seen:
            raise InvalidRequest([Violation("key", "appears twice in the batch")], reason=Reason.DUPLICATE_IN_BATCH)
        return question

    def _result(self, answer: Outcome | Standing | TandemError) -> pb.ResolveResult:
        if answer is Standing.AHEAD:
            answer = TandemError(
                "the transaction_id lies more than a day in the future: check the initiator's clock",
                reason=Reason.TRANSACTION_AHEAD,
            )
        if isinstance(answer, TandemError):
            self._coordinator.metrics.resolves.labels(answer.reason.value).inc()
            return pb.ResolveResult(status=to_status(answer))
        self._coordinator.metrics.resolves.labels(answer.value.upper()).inc()
        return pb.ResolveResult(status=ok(), outcome=_ANSWERS[answer])

    def Execute(self, request: pb.ExecuteRequest, context: grpc.ServicerContext) -> pb.ExecuteResponse:
        """A whole transaction; OK means committed."""
        key = key_from(request.key)
        about([key])
        self._check_name(key)
        executed = self._coordinator.execute(
            key.transaction_id,
            {branch.participant: list(branch.writes) for branch in request.branches},
            ttl_s=request.ttl.ToTimedelta().total_seconds() if request.HasField("ttl") else None,
        )
        try:
            return pb.ExecuteResponse(decision=_record(self._row(key)))
        except DATABASE_ERRORS as error:  # it is committed, and that is what has to be said (R12)
            log.warning("the decision can't be read now", exception=frames(error))
            return pb.ExecuteResponse(decision=_record_of(executed))

    def GetTransaction(
        self, request: pb.CoordinatorServiceGetTransactionRequest, context: grpc.ServicerContext
    ) -> pb.CoordinatorServiceGetTransactionResponse:
        """One decision; NOT_FOUND where none was written."""
        return pb.CoordinatorServiceGetTransactionResponse(decision=_record(self._row(key_from(request.key))))

    def ListTransactions(
        self, request: pb.CoordinatorServiceListTransactionsRequest, context: grpc.ServicerContext
    ) -> pb.CoordinatorServiceListTransactionsResponse:
        """A page of decisions."""
        rows, token = self._coordinator.log.page(
            outcome=_DECISIONS_BACK.get(request.decision),
            undelivered=request.undelivered,
            older_than_s=request.older_than.ToTimedelta().total_seconds() if request.HasField("older_than") else None,
            coordinator=request.coordinator,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.CoordinatorServiceListTransactionsResponse(decisions=_records(rows), next_page_token=token)

    def RetryNow(self, request: pb.RetryNowRequest, context: grpc.ServicerContext) -> pb.RetryNowResponse:
        """Makes an undelivered decision due at once."""
        key = key_from(request.key)
        self._coordinator.log.retry_now(key)
        return pb.RetryNowResponse(decision=_record(self._row(key)))

    def _check_name(self, key: TransactionKey) -> None:
        if key.coordinator != self._coordinator.name:
            raise InvalidRequest(
                [Violation("key.coordinator", f"this service answers for {self._coordinator.name} only")],
                reason=Reason.COORDINATOR_UNKNOWN,
            )

    def _row(self, key: TransactionKey) -> Row[Any]:
        row = self._coordinator.log.get(key)
        if row is None:
            raise TandemError(
                "no decision was written for this transaction",
                reason=Reason.NOT_FOUND,
                transaction_id=key.transaction_id,
            )
        return row


def _tell(
    request: pb.ResolveRequest, questions: Sequence[Question], answers: Sequence[Outcome | Standing | TandemError]
) -> None:
    """What was answered. A question with a fence comes after a crash, one without from any reader."""
    told: dict[str, list[TransactionKey]] = {}
    for question, answer in zip(questions, answers, strict=True):
        word = answer.reason.value if isinstance(answer, TandemError) else answer.value
        told.setdefault(word, []).append(question.key)
    for word, keys in told.items():
        (unusual if request.fence else step)(log, "asked", keys, by=request.participant, answer=word)


def _records(rows: Sequence[Row[Any]]) -> list[transaction_pb2.DecisionRecord]:
    return [_record(row) for row in rows]


def _record_of(tx: Transaction) -> transaction_pb2.DecisionRecord:
    """What the driver knows of a committed transaction by itself."""
    return transaction_pb2.DecisionRecord(
        key=key_to(tx.key),
        decision=transaction_pb2.DECISION_COMMITTED,
        branches=[
            transaction_pb2.DecisionBranch(participant=name, digest=digest, delivered=name not in tx.undelivered)
            for name, digest in sorted(tx.digests.items())
        ],
    )


def _record(row: Row[Any]) -> transaction_pb2.DecisionRecord:
    return transaction_pb2.DecisionRecord(
        key=key_to(TransactionKey(row.coordinator, row.transaction_id)),
        decision=_DECISIONS[Outcome(row.outcome)],
        branches=[
            transaction_pb2.DecisionBranch(
                participant=name,
                digest=bytes.fromhex(digest),
                delivered=name not in row.undelivered and name not in row.parked,
                parked=row.parked.get(name, ""),
            )
            for name, digest in sorted(row.participants.items())
        ],
        decide_time=timestamp(row.decided_at),
        attempts=row.attempts,
        next_attempt_time=timestamp(row.next_attempt_at) if row.undelivered else None,
        last_error=row.last_error or "",
    )
