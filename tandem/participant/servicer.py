"""ParticipantService over a Participant: validates, translates, delegates, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from tandem.runtime.batches import rounds
from tandem.runtime.coalescer import Coalescer
from tandem.runtime.digest import SIZE, transaction_digest
from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.server import Server, time_left_s
from tandem.runtime.status import ok, to_status
from tandem.runtime.tracing import about
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
    tuple(f"{_SERVICE}/{method}" for method in ("Prepare", "BatchPrepare")): 64,
    tuple(f"{_SERVICE}/{method}" for method in ("Commit", "BatchCommit", "Abort", "BatchAbort")): 64,
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


AT_ONCE = 4
"""Local transactions of one kind for single calls: while one waits for the disk, the next one works."""


@dataclass(frozen=True, slots=True)
class _End:
    """One Commit or Abort."""

    to: State
    key: TransactionKey
    by: ResolvedBy


class ParticipantServicer(participant_pb2_grpc.ParticipantServiceServicer):
    """The gRPC face of a participant."""

    def __init__(self, participant: Participant, resolver: Resolver) -> None:
        self._participant = participant
        self._resolver = resolver
        # Single calls that arrive at the same time share a local transaction.
        self._staging: Coalescer[Ask, Yes | TandemError] = Coalescer(lambda asks, _: self._stage(asks), at_once=AT_ONCE)
        self._ending: Coalescer[_End, TandemError | None] = Coalescer(lambda ends, _: self._end(ends), at_once=AT_ONCE)

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
        ask = _ask(request)
        about([ask])
        staged = self._staging(ask, until=_until(context))
        (answer,) = pushing.prepare(self._participant, self._resolver, [ask], staged=[staged])
        if isinstance(answer, TandemError):
            raise answer
        return self._vote(answer)

    def Commit(self, request: pb.CommitRequest, context: grpc.ServicerContext) -> pb.CommitResponse:
        """Publishes."""
        end = _End(State.COMMITTED, *_asked(request))
        about([end])
        error = self._ending(end, until=_until(context))
        if error is not None:
            raise error
        return pb.CommitResponse()

    def Abort(self, request: pb.AbortRequest, context: grpc.ServicerContext) -> pb.AbortResponse:
        """Discards."""
        end = _End(State.ABORTED, *_asked(request))
        about([end])
        error = self._ending(end, until=_until(context))
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
        return pb.BatchCommitResponse(results=self._end_each(request.requests, State.COMMITTED))

    def BatchAbort(self, request: pb.BatchAbortRequest, context: grpc.ServicerContext) -> pb.BatchAbortResponse:
        """Discards each."""
        return pb.BatchAbortResponse(results=self._end_each(request.requests, State.ABORTED))

    def _end_each(self, requests: Sequence[E], to: State) -> list[status_pb2.Status]:
        answers = _each(requests, lambda request: _End(to, *_asked(request)), self._end, key=lambda end: end.key)
        return [ok() if answer is None else to_status(answer) for answer in answers]

    def _end(self, ends: Sequence[_End]) -> list[TandemError | None]:
        """Each as it is asked: those that are asked in one way together."""
        answers: dict[_End, TandemError | None] = {}
        for to, by in sorted({(end.to, end.by) for end in ends}):
            mine = [end for end in ends if (end.to, end.by) == (to, by)]
            work = self._participant.commit if to is State.COMMITTED else self._participant.abort
            answers |= zip(mine, work([end.key for end in mine], by), strict=True)
        return [answers[end] for end in ends]

    def _stage(self, asks: Sequence[Ask]) -> list[Yes | TandemError]:
        """Single Prepares that came at the same time; several of one transaction one after another."""
        answers: dict[int, Yes | TandemError] = {}
        for now in rounds([ask.key for ask in asks]):
            answers |= zip(now, self._participant.prepare([asks[i] for i in now]), strict=True)
        return [answers[i] for i in range(len(asks))]

    # --- looking ----------------------------------------------------------------------------------------------

    def GetTransaction(
        self, request: pb.ParticipantServiceGetTransactionRequest, context: grpc.ServicerContext
    ) -> pb.ParticipantServiceGetTransactionResponse:
        """One transaction; NOT_FOUND where nothing is known of it."""
        return pb.ParticipantServiceGetTransactionResponse(transaction=found(self._participant, key_from(request.key)))

    def ListTransactions(
        self, request: pb.ParticipantServiceListTransactionsRequest, context: grpc.ServicerContext
    ) -> pb.ParticipantServiceListTransactionsResponse:
        """A page of transactions."""
        rows, token = inspection.page(
            self._participant.engine,
            state=_STATES_BACK.get(request.state),
            unconfirmed=request.unconfirmed,
            older_than_s=request.older_than.ToTimedelta().total_seconds() if request.HasField("older_than") else None,
            begun_within_s=(
                request.begun_within.ToTimedelta().total_seconds() if request.HasField("begun_within") else None
            ),
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


def _until(context: grpc.ServicerContext) -> float:
    return time.monotonic() + time_left_s(context)


def _asked(request: pb.CommitRequest | pb.AbortRequest) -> tuple[TransactionKey, ResolvedBy]:
    return key_from(request.key), _RESOLVED_BY_BACK[request.resolved_by]


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
    about(asked)
    done = iter(work(asked) if asked else ())
    result: list[A | TandemError] = []
    for position, answer in enumerate(answers):
        item_answer = next(done) if answer is None else answer
        if answer is None and isinstance(item_answer, InvalidRequest):
            item_answer = item_answer.below(f"requests[{position}]")
        result.append(item_answer)
    return result


def found(participant: Participant, key: TransactionKey) -> transaction_pb2.PreparedTransaction:
    """One transaction as it is told. Raises NOT_FOUND where nothing is known of it."""
    row = inspection.get(participant.engine, key)
    if row is None:
        raise TandemError(
            "nothing is known of this transaction here", reason=Reason.NOT_FOUND, transaction_id=key.transaction_id
        )
    return _transaction(row)


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
