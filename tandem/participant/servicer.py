"""ParticipantService over a Participant: validates, translates, delegates, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from sqlalchemy.engine import Row

from tandem.participant import inspection, pushing
from tandem.participant.participant import Ask, Participant, Yes
from tandem.participant.resolver import Resolver
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.digest import SIZE, transaction_digest
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server
from tandem.runtime.status import ok, to_status
from tandem.runtime.validation import validate
from tandem.runtime.wire import key_from, key_to, timestamp
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc, transaction_pb2

M = TypeVar("M", bound=Message)
E = TypeVar("E", pb.CommitRequest, pb.AbortRequest)
T = TypeVar("T")
A = TypeVar("A")

_SERVICE = "/tandem.v1.ParticipantService"
RESERVED = {
    tuple(f"{_SERVICE}/{method}" for method in ("Prepare", "BatchPrepare")): 16,
    tuple(f"{_SERVICE}/{method}" for method in ("Commit", "BatchCommit", "Abort", "BatchAbort")): 16,
}
"""For `Server(reserved=…)`: reads that wait for a coordinator can't starve votes, nor can votes starve endings."""

_STATES = {
    State.PREPARED: transaction_pb2.TRANSACTION_STATE_PREPARED,
    State.COMMITTED: transaction_pb2.TRANSACTION_STATE_COMMITTED,
    State.ABORTED: transaction_pb2.TRANSACTION_STATE_ABORTED,
}
_STATES_BACK = {value: state for state, value in _STATES.items()}
_RESOLVED_BY: dict[str, transaction_pb2.ResolvedBy.ValueType] = {
    by.value: transaction_pb2.ResolvedBy.Value(f"RESOLVED_BY_{by.name}") for by in ResolvedBy
}
_RESOLVED_BY_BACK = {value: ResolvedBy(name) for name, value in _RESOLVED_BY.items()}


class ParticipantServicer(participant_pb2_grpc.ParticipantServiceServicer):
    """The gRPC face of a participant."""

    def __init__(self, participant: Participant, resolver: Resolver) -> None:
        self._participant = participant
        self._resolver = resolver

    def add_to(self, server: Server) -> None:
        """Adds the service to a server, which should be made with RESERVED."""
        server.add(
            pb.DESCRIPTOR.services_by_name["ParticipantService"],
            self,
            participant_pb2_grpc.add_ParticipantServiceServicer_to_server,
        )

    # --- unary: batches of one --------------------------------------------------------------------------------

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:
        """A vote: the answer is yes, an error is no."""
        (answer,) = self._prepare([_ask(request)])
        if isinstance(answer, TandemError):
            raise answer
        return self._vote(answer)

    def Commit(self, request: pb.CommitRequest, context: grpc.ServicerContext) -> pb.CommitResponse:
        """Publishes."""
        (error,) = self._participant.commit([key_from(request.key)], _RESOLVED_BY_BACK[request.resolved_by])
        if error is not None:
            raise error
        return pb.CommitResponse()

    def Abort(self, request: pb.AbortRequest, context: grpc.ServicerContext) -> pb.AbortResponse:
        """Discards."""
        (error,) = self._participant.abort([key_from(request.key)], _RESOLVED_BY_BACK[request.resolved_by])
        if error is not None:
            raise error
        return pb.AbortResponse()

    # --- batches ----------------------------------------------------------------------------------------------

    def BatchPrepare(self, request: pb.BatchPrepareRequest, context: grpc.ServicerContext) -> pb.BatchPrepareResponse:
        """A vote each."""
        answers = _each(request.requests, _ask, self._prepare, key=lambda ask: ask.key)
        return pb.BatchPrepareResponse(
            results=[
                pb.BatchPrepareResult(status=to_status(answer))
                if isinstance(answer, TandemError)
                else pb.BatchPrepareResult(status=ok(), response=self._vote(answer))
                for answer in answers
            ]
        )

    def BatchCommit(self, request: pb.BatchCommitRequest, context: grpc.ServicerContext) -> pb.BatchCommitResponse:
        """Publishes each."""
        return pb.BatchCommitResponse(results=self._end(request.requests, self._participant.commit))

    def BatchAbort(self, request: pb.BatchAbortRequest, context: grpc.ServicerContext) -> pb.BatchAbortResponse:
        """Discards each."""
        return pb.BatchAbortResponse(results=self._end(request.requests, self._participant.abort))

    def _end(
        self,
        requests: Sequence[E],
        work: Callable[[Sequence[TransactionKey], ResolvedBy], list[TandemError | None]],
    ) -> list[status_pb2.Status]:
        def each(asked: Sequence[tuple[TransactionKey, ResolvedBy]]) -> list[TandemError | None]:
            answers: dict[TransactionKey, TandemError | None] = {}
            for by in {by for _, by in asked}:
                keys = [key for key, other in asked if other is by]
                answers.update(zip(keys, work(keys, by), strict=True))
            return [answers[key] for key, _ in asked]

        answers = _each(
            requests, lambda r: (key_from(r.key), _RESOLVED_BY_BACK[r.resolved_by]), each, key=lambda asked: asked[0]
        )
        return [ok() if answer is None else to_status(answer) for answer in answers]

    # --- looking ----------------------------------------------------------------------------------------------

    def GetTransaction(
        self, request: pb.ParticipantServiceGetTransactionRequest, context: grpc.ServicerContext
    ) -> pb.ParticipantServiceGetTransactionResponse:
        """One transaction; NOT_FOUND where nothing is known of it."""
        key = key_from(request.key)
        row = inspection.get(self._participant.engine, key)
        if row is None:
            raise TandemError(
                "nothing is known of this transaction here",
                reason=Reason.NOT_FOUND,
                transaction_id=key.transaction_id,
            )
        return pb.ParticipantServiceGetTransactionResponse(transaction=_transaction(row))

    def ListTransactions(
        self, request: pb.ParticipantServiceListTransactionsRequest, context: grpc.ServicerContext
    ) -> pb.ParticipantServiceListTransactionsResponse:
        """A page of transactions."""
        rows, token = inspection.page(
            self._participant.engine,
            state=_STATES_BACK.get(request.state),
            unconfirmed=request.unconfirmed,
            older_than_s=request.older_than.ToTimedelta().total_seconds() if request.HasField("older_than") else None,
            coordinator=request.coordinator,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ParticipantServiceListTransactionsResponse(
            transactions=[_transaction(row) for row in rows], next_page_token=token
        )

    def _prepare(self, asks: Sequence[Ask]) -> list[Yes | TandemError]:
        return pushing.prepare(self._participant, self._resolver, asks)

    def _vote(self, yes: Yes) -> pb.PrepareResponse:
        return pb.PrepareResponse(participant=self._participant.name, digest=yes.digest)


def _ask(request: pb.PrepareRequest) -> Ask:
    return Ask(
        key=key_from(request.key),
        log_id=UUID(request.log_id),
        ttl_s=request.ttl.ToTimedelta().total_seconds(),
        driver_deadline_s=request.driver_deadline.ToTimedelta().total_seconds(),
        writes=list(request.writes),
    )


def _each(
    requests: Sequence[M],
    translate: Callable[[M], T],
    work: Callable[[Sequence[T]], Sequence[A | TandemError]],
    *,
    key: Callable[[T], TransactionKey],
) -> list[A | TandemError]:
    """An answer a request: the well-formed ones are worked on together, the others told what is wrong with them."""
    answers: list[A | TandemError | None] = []
    asked: list[T] = []
    seen: set[TransactionKey] = set()
    for position, request in enumerate(requests):
        try:
            validate(request)
            item = translate(request)
            if key(item) in seen:
                raise InvalidRequest([Violation("key", "appears twice in the batch")], reason=Reason.DUPLICATE_IN_BATCH)
        except InvalidRequest as error:
            answers.append(error.below(f"requests[{position}]"))
        else:
            seen.add(key(item))
            asked.append(item)
            answers.append(None)
    done = iter(work(asked) if asked else ())
    result: list[A | TandemError] = []
    for position, answer in enumerate(answers):
        item_answer = next(done) if answer is None else answer
        if answer is None and isinstance(item_answer, InvalidRequest):
            item_answer = item_answer.below(f"requests[{position}]")
        result.append(item_answer)
    return result


def _transaction(row: Row[Any]) -> transaction_pb2.PreparedTransaction:
    digests = bytes(row.digests)
    return transaction_pb2.PreparedTransaction(
        key=key_to(TransactionKey(row.coordinator, row.transaction_id)),
        log_id=str(row.log_id or ""),
        state=_STATES[State(row.state)],
        digest=transaction_digest(digests) if digests else b"",
        writes=len(digests) // SIZE,
        staged=row.staged,
        confirmed=row.confirmed,
        prepare_time=timestamp(row.prepared_at),
        resolve_time=timestamp(row.resolved_at),
        resolved_by=_RESOLVED_BY.get(row.resolved_by or "", transaction_pb2.RESOLVED_BY_UNSPECIFIED),
        parked=row.parked or "",
        attempts=row.attempts,
        next_attempt_time=timestamp(row.next_attempt_at),
        last_error=row.last_error or "",
    )
