"""The one table between our errors and gRPC statuses, and the two translations over it."""

from __future__ import annotations

from uuid import UUID

import grpc
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tandem.runtime.errors import InvalidRequest, Reason, TandemError, Violation

DOMAIN = "tandem"

CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.MALFORMED_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.DUPLICATE_IN_BATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.UNKNOWN_TYPE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.COORDINATOR_UNKNOWN: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.PARTICIPANT_UNKNOWN: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.TRANSACTION_UNKNOWN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSACTION_REUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSACTION_ABORTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSACTION_EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TRANSACTION_AHEAD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ALREADY_COMMITTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ALREADY_ABORTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WRONG_LOG: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.WRONG_VOTE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REQUEST_REUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.LOCAL_TRANSACTION_OPEN: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.IN_PROGRESS: grpc.StatusCode.UNAVAILABLE,
    Reason.IN_DOUBT: grpc.StatusCode.UNAVAILABLE,
    Reason.UNDECIDED: grpc.StatusCode.UNAVAILABLE,
    Reason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.OUTCOME_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.DATABASE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_PASSED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.FENCED: grpc.StatusCode.ABORTED,
    Reason.HELD: grpc.StatusCode.ABORTED,
    Reason.VERSION_MISMATCH: grpc.StatusCode.ABORTED,
    Reason.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.DATABASE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.MESSAGE_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Reasons that are not listed are INTERNAL."""

_BY_NAME = {code.name: code for code in grpc.StatusCode}


def ok() -> status_pb2.Status:
    """The status of an item that went well."""
    return status_pb2.Status(code=code_pb2.OK)


def code_of(error: TandemError) -> grpc.StatusCode:
    """The status code that the error travels under."""
    return CODES.get(error.reason, grpc.StatusCode.INTERNAL)


def to_status(error: TandemError) -> status_pb2.Status:
    """The whole error as google.rpc.Status, with ErrorInfo and, where they help, BadRequest and RetryInfo."""
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message)
    metadata = dict(error.metadata)
    if error.transaction_id is not None:
        metadata["transaction_id"] = str(error.transaction_id)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata))
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=violation.field, description=violation.description, reason=violation.rule
            )
        status.details.add().Pack(bad_request)
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> TandemError:
    """The error that another process answered with; without our ErrorInfo it has a general reason."""
    reason, transaction_id = _general_reason(status.code), None
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_after_s: float | None = None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            metadata = dict(info.metadata)
            transaction_id = _uuid(metadata.pop("transaction_id", ""))
            reason = Reason(info.reason) if info.reason in Reason.__members__ else reason
        elif detail.Unpack(bad_request):
            violations = [Violation(v.field, v.description, v.reason) for v in bad_request.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if reason is Reason.INVALID_REQUEST and violations:
        return InvalidRequest(violations, message=status.message)
    return TandemError(
        status.message,
        reason=reason,
        transaction_id=transaction_id,
        violations=violations,
        retry_after_s=retry_after_s,
        metadata=metadata,
    )


def from_rpc_error(error: grpc.RpcError) -> TandemError:
    """The error behind a failed call. Only our own servers' sentences are kept; anything else is named by its code."""
    try:
        status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    except ValueError:  # gRPC ended the call with another code than the server did, for the size of its answer
        status = None
    if status is not None and status.details:
        return from_status(status)
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    return TandemError(f"the call ended with {code.name}", reason=_general_reason(code.value[0]))


def _general_reason(code: int) -> Reason:
    name = code_pb2.Code.Name(code) if code in code_pb2.Code.values() else "UNKNOWN"
    match _BY_NAME.get(name, grpc.StatusCode.UNKNOWN):
        case grpc.StatusCode.INVALID_ARGUMENT:
            return Reason.INVALID_REQUEST
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Reason.UNAVAILABLE
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Reason.DEADLINE_PASSED
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Reason.OVERLOADED
        case grpc.StatusCode.NOT_FOUND:
            return Reason.NOT_FOUND
        case grpc.StatusCode.ALREADY_EXISTS:
            return Reason.ALREADY_EXISTS
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.UNIMPLEMENTED:
            return Reason.NOT_ALLOWED
        case _:
            return Reason.INTERNAL


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None
