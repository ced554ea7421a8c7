"""What a client makes of a failed call."""

from __future__ import annotations

import grpc
from google.protobuf.message import Message

from tandem.runtime.errors import InvalidRequest, Reason, Violation
from tandem.runtime.status import from_rpc_error, to_status


class Failed(grpc.RpcError, grpc.Call):  # type: ignore[misc]
    """A call that ended with this code, and with what the server said of it."""

    def __init__(self, code: grpc.StatusCode, status: Message) -> None:
        self._code, self._status = code, status

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "said"

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        return [("grpc-status-details-bin", self._status.SerializeToString())]

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False

    def initial_metadata(self) -> list[tuple[str, bytes]]:
        return []


def test_a_call_that_grpc_ended_otherwise_is_told_by_grpcs_code() -> None:
    """gRPC takes RESOURCE_EXHAUSTED for a trailer that is too large, and hands on what was in it."""
    status = to_status(InvalidRequest([Violation("name", "is wrong")]))
    status.message = "said"
    assert from_rpc_error(Failed(grpc.StatusCode.INVALID_ARGUMENT, status)).reason is Reason.INVALID_REQUEST
    assert from_rpc_error(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, status)).reason is Reason.OVERLOADED
