"""Orders to participants over gRPC, each with that participant's own token, which is seen nowhere else.

None is repeated: a deed is refused the second time, and one whose answer got lost may have been done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import grpc

from tandem.runtime.actions import Operator
from tandem.runtime.auth import bearer
from tandem.runtime.channel import open_channel
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.status import from_rpc_error, from_status
from tandem.runtime.tracing import outgoing
from tandem.runtime.wire import key_to
from tandem.v1 import coordinator_pb2, operations_pb2_grpc, transaction_pb2
from tandem.v1 import operations_pb2 as pb

A = TypeVar("A")

SERVICE = "tandem.v1.ParticipantOperationsService"
ACT_S = 4.0
"""For an answer, a coordinator's own included; below the console's DRAIN_S."""

OUTCOMES = {
    "committed": transaction_pb2.TRANSACTION_STATE_COMMITTED,
    "aborted": transaction_pb2.TRANSACTION_STATE_ABORTED,
}
_ANSWERED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Codes that say that nothing was done."""


class Unheard(TandemError):
    """The participant's answer got lost: whether it was done is not known."""


class Operations:
    """Clients of the participants that take orders."""

    def __init__(self, targets: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        """targets: participant → gRPC target. tokens: participant → its operator's token; others take no orders."""
        once = [f"{SERVICE}/{method}" for method in ("ForceTransaction", "ResolveNow")]
        self._channels = {name: open_channel(targets[name], once=once) for name in tokens}
        self._stubs = {
            name: operations_pb2_grpc.ParticipantOperationsServiceStub(channel)
            for name, channel in self._channels.items()
        }
        self._tokens = dict(tokens)

    @property
    def names(self) -> frozenset[str]:
        """The participants that take orders."""
        return frozenset(self._stubs)

    def check(self, name: str) -> None:
        """Raises NOT_FOUND where the participant takes no orders from here."""
        if name not in self._stubs:
            raise TandemError(
                "This coordinator has no operator token for this participant: its own command line does it.",
                reason=Reason.NOT_FOUND,
            )

    def force(
        self, name: str, key: TransactionKey, outcome: str, by: Operator, *, dry_run: bool
    ) -> pb.ForceTransactionResponse:
        """Ends a prepared transaction by hand, or tries to. outcome: one of OUTCOMES.

        Raises InvalidRequest or another TandemError where it is refused, Unheard where it may have been done.
        """
        request = pb.ForceTransactionRequest(
            key=key_to(key), outcome=OUTCOMES[outcome], actor=by.actor, reason=by.reason, dry_run=dry_run
        )
        return self._ask(name, self._stub(name).ForceTransaction, request, changes=not dry_run)

    def resolve(self, name: str, key: TransactionKey, by: Operator) -> str:
        """Has the participant ask for the decision now; the answer, for `telling.came_of`. Raises like `force`."""
        request = pb.ResolveNowRequest(key=key_to(key), actor=by.actor, reason=by.reason)
        answer: pb.ResolveNowResponse = self._ask(name, self._stub(name).ResolveNow, request, changes=True)
        if answer.result.status.code:
            return from_status(answer.result.status).reason.value
        return coordinator_pb2.ResolveResult.Outcome.Name(answer.result.outcome).removeprefix("OUTCOME_").lower()

    def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            channel.close()

    def _stub(self, name: str) -> operations_pb2_grpc.ParticipantOperationsServiceStub:
        self.check(name)
        return self._stubs[name]

    def _ask(self, name: str, call: Callable[..., A], request: object, *, changes: bool) -> A:
        metadata = (bearer(self._tokens[name]), *(outgoing() or ()))
        try:
            return call(request, timeout=ACT_S, metadata=metadata)
        except grpc.RpcError as error:
            raise _told(name, error, changes=changes) from None


def _told(name: str, error: grpc.RpcError, *, changes: bool) -> TandemError:
    """What has gone wrong, for a person."""
    told = from_rpc_error(error)
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return TandemError(f"{name} takes no orders: it is not configured with an operator token", reason=told.reason)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        message = f"{name} did not take the operator token that this coordinator has for it: compare the two settings"
        return TandemError(message, reason=told.reason)
    if code in _ANSWERED:
        return told
    if not changes:
        return TandemError(f"{name} could not try it ({told.reason.value}): nothing was changed", reason=told.reason)
    return Unheard(
        f"{name} gave no answer ({told.reason.value}), so it may have been done or not. Look at the transaction before "
        "you try again.",
        reason=told.reason,
    )
