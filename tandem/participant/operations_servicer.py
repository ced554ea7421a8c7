"""ParticipantOperationsService over a Participant: what an operator may do from afar, with a token, and nothing else.

A process adds it only where it is configured with one. The deeds are `operating`'s, as the command line's are.
"""

from __future__ import annotations

import grpc

from tandem.participant import operating
from tandem.participant.participant import Participant
from tandem.participant.resolver import Outcome, Resolver
from tandem.participant.servicer import found
from tandem.participant.transaction import State
from tandem.runtime.actions import Operator
from tandem.runtime.auth import check_bearer
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.server import Server, time_left_s
from tandem.runtime.status import ok, to_status
from tandem.runtime.tracing import about
from tandem.runtime.wire import key_from, timestamp
from tandem.v1 import coordinator_pb2, operations_pb2_grpc, transaction_pb2
from tandem.v1 import operations_pb2 as pb

SPARE_S = 0.5
"""Of the caller's deadline: for all but the coordinator's answer."""

_OUTCOMES = {
    transaction_pb2.TRANSACTION_STATE_COMMITTED: State.COMMITTED,
    transaction_pb2.TRANSACTION_STATE_ABORTED: State.ABORTED,
}


class OperationsServicer(operations_pb2_grpc.ParticipantOperationsServiceServicer):
    """The gRPC face of an operator's deeds. token: what each call must carry."""

    def __init__(self, participant: Participant, resolver: Resolver, token: str) -> None:
        self._participant = participant
        self._resolver = resolver
        self._token = token

    def add_to(self, server: Server) -> None:
        """Adds the service to a server."""
        server.add(
            pb.DESCRIPTOR.services_by_name["ParticipantOperationsService"],
            self,
            operations_pb2_grpc.add_ParticipantOperationsServiceServicer_to_server,
        )

    def ForceTransaction(
        self, request: pb.ForceTransactionRequest, context: grpc.ServicerContext
    ) -> pb.ForceTransactionResponse:
        """Ends a prepared transaction by hand, or tries to."""
        self._check(context)
        key = key_from(request.key)
        about([key])
        by = Operator(request.actor, request.reason)
        outcome = _OUTCOMES[request.outcome]
        forced = operating.force(self._participant, key, outcome, by, dry_run=request.dry_run)
        return pb.ForceTransactionResponse(
            transaction=found(self._participant, key),
            staged=forced.staged,
            found=forced.found,
            record_time=timestamp(forced.at),
        )

    def ResolveNow(self, request: pb.ResolveNowRequest, context: grpc.ServicerContext) -> pb.ResolveNowResponse:
        """Asks for the decision now, and applies it."""
        self._check(context)
        key = key_from(request.key)
        about([key])
        by = Operator(request.actor, request.reason)
        timeout_s = min(operating.ASK_S, time_left_s(context) - SPARE_S)
        resolved = operating.resolve(self._participant, self._resolver, key, by, timeout_s=timeout_s)
        return pb.ResolveNowResponse(
            transaction=found(self._participant, key),
            result=_result(resolved.answer),
            record_time=timestamp(resolved.at),
        )

    def _check(self, context: grpc.ServicerContext) -> None:
        """Who may not is told so; nothing is begun whose caller has given up, or is about to."""
        check_bearer(context, self._token)
        if time_left_s(context) <= SPARE_S:
            raise TandemError("nothing was begun: the caller's deadline is too near", reason=Reason.DEADLINE_PASSED)


def _result(answer: Outcome | TandemError) -> coordinator_pb2.ResolveResult:
    if isinstance(answer, TandemError):
        return coordinator_pb2.ResolveResult(status=to_status(answer))
    outcome = coordinator_pb2.ResolveResult.Outcome.Value(f"OUTCOME_{answer.name}")
    return coordinator_pb2.ResolveResult(status=ok(), outcome=outcome)
