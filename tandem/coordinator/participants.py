"""Clients of ParticipantService: many participants asked in parallel, in batches, until the deadline.

An RPC's error becomes the answer of each item that it carried; nothing here decides anything.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from tandem.coordinator.transaction import Vote
from tandem.runtime.channel import MAX_MESSAGE_BYTES, open_channel
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.status import CODES, from_rpc_error, from_status
from tandem.runtime.wire import key_to
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc, transaction_pb2

T = TypeVar("T")
A = TypeVar("A")

MAX_BATCH = 500
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES * 3 // 4
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Preparing:
    """What one participant is asked to stage for one transaction."""

    key: TransactionKey
    log_id: UUID
    ttl_s: float
    driver_deadline_s: float
    writes: Sequence[AnyMessage]

    def request(self) -> pb.PrepareRequest:
        """The message."""
        return pb.PrepareRequest(
            key=key_to(self.key),
            log_id=str(self.log_id),
            ttl=_duration(self.ttl_s),
            driver_deadline=_duration(self.driver_deadline_s),
            writes=self.writes,
        )


class Participants:
    """The participants that a coordinator knows: name → gRPC target."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self.names = frozenset(targets)
        self._channels = {name: open_channel(target) for name, target in targets.items()}
        self._stubs = {
            name: participant_pb2_grpc.ParticipantServiceStub(channel) for name, channel in self._channels.items()
        }

    def prepare(self, asked: Mapping[str, Sequence[Preparing]], *, until: float) -> dict[str, list[Vote]]:
        """The votes of each participant, in the order asked. until: on time.monotonic()."""

        def read(response: pb.BatchPrepareResponse) -> list[Vote]:
            return [
                Vote(error=from_status(result.status))
                if result.status.code
                else Vote(participant=result.response.participant, digest=result.response.digest)
                for result in response.results
            ]

        requests = {name: [item.request() for item in items] for name, items in asked.items()}
        return self._ask_all(
            requests,
            lambda name: self._stubs[name].BatchPrepare,
            lambda chunk: pb.BatchPrepareRequest(requests=chunk),
            read,
            lambda error: Vote(error=error),
            lambda vote: vote.error,
            until,
        )

    def commit(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[TandemError | None]]:
        """Brings the decision committed: None for each that has acknowledged."""
        requests = {
            name: [pb.CommitRequest(key=key_to(key), resolved_by=by) for key in keys] for name, keys in asked.items()
        }
        return self._end(
            requests,
            lambda name: self._stubs[name].BatchCommit,
            lambda chunk: pb.BatchCommitRequest(requests=chunk),
            until,
        )

    def abort(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[TandemError | None]]:
        """Brings the decision aborted: None for each that has acknowledged."""
        requests = {
            name: [pb.AbortRequest(key=key_to(key), resolved_by=by) for key in keys] for name, keys in asked.items()
        }
        return self._end(
            requests,
            lambda name: self._stubs[name].BatchAbort,
            lambda chunk: pb.BatchAbortRequest(requests=chunk),
            until,
        )

    def get(self, name: str, key: TransactionKey, *, timeout_s: float) -> transaction_pb2.PreparedTransaction | None:
        """What one participant holds; None where it knows nothing. Raises TandemError if it can't be asked."""
        try:
            response = self._stubs[name].GetTransaction(
                pb.ParticipantServiceGetTransactionRequest(key=key_to(key)), timeout=timeout_s
            )
        except grpc.RpcError as error:
            translated = from_rpc_error(error)
            if translated.reason is Reason.NOT_FOUND:
                return None
            raise translated from None
        return response.transaction

    def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            channel.close()

    def _end(
        self,
        requests: Mapping[str, Sequence[T]],
        method: Callable[[str], Any],
        wrap: Callable[[Sequence[T]], Any],
        until: float,
    ) -> dict[str, list[TandemError | None]]:
        def read(response: Any) -> list[TandemError | None]:
            results: Iterable[status_pb2.Status] = response.results
            return [from_status(status) if status.code else None for status in results]

        return self._ask_all(requests, method, wrap, read, lambda error: error, lambda answer: answer, until)

    def _ask_all(
        self,
        requests: Mapping[str, Sequence[T]],
        method: Callable[[str], Any],
        wrap: Callable[[Sequence[T]], Any],
        read: Callable[[Any], list[A]],
        failed: Callable[[TandemError], A],
        error_of: Callable[[A], TandemError | None],
        until: float,
    ) -> dict[str, list[A]]:
        """Sends every participant its requests, all at once; repeats those that are UNAVAILABLE while there is time."""
        unasked = failed(TandemError("not asked in time", reason=Reason.DEADLINE_PASSED))
        answers = {name: [unasked] * len(items) for name, items in requests.items()}
        pending = {name: list(range(len(items))) for name, items in requests.items()}
        pause_s = FIRST_PAUSE_S
        while any(pending.values()) and (left_s := until - time.monotonic()) > 0:
            calls = [
                (name, chunk, method(name).future(wrap([requests[name][i] for i in chunk]), timeout=left_s,
                                                  wait_for_ready=True))
                for name, positions in pending.items()
                for chunk in _chunks(positions, [r.ByteSize() for r in requests[name]])  # type: ignore[attr-defined]
            ]  # fmt: skip
            try:
                for name, chunk, call in calls:
                    for i, answer in zip(chunk, _answers(call, len(chunk), read, failed), strict=True):
                        answers[name][i] = answer
            except BaseException:
                for _, _, call in calls:
                    call.cancel()
                raise
            pending = {
                name: [i for i in positions if _may_repeat(error_of(answers[name][i]))]
                for name, positions in pending.items()
            }
            if any(pending.values()):
                time.sleep(max(0.0, min(pause_s * random.uniform(0.5, 1.0), until - time.monotonic())))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return answers


def _answers(call: Any, count: int, read: Callable[[Any], list[A]], failed: Callable[[TandemError], A]) -> list[A]:
    try:
        answers = read(call.result())
    except grpc.FutureCancelledError:
        return [failed(TandemError("the call was cancelled", reason=Reason.UNAVAILABLE))] * count
    except grpc.RpcError as error:
        return [failed(from_rpc_error(error))] * count
    if len(answers) != count:
        return [failed(TandemError("the participant answered another number of requests"))] * count
    return answers


def _may_repeat(error: TandemError | None) -> bool:
    """UNAVAILABLE only (design §4): anything else is an answer."""
    return error is not None and CODES.get(error.reason) is grpc.StatusCode.UNAVAILABLE


def _chunks(positions: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Positions in groups that a message and a batch can hold."""
    chunks: list[list[int]] = []
    room = 0
    for i in positions:
        if not chunks or len(chunks[-1]) >= MAX_BATCH or sizes[i] + 8 > room:
            chunks.append([])
            room = MAX_BATCH_BYTES
        chunks[-1].append(i)
        room -= sizes[i] + 8
    return chunks


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
