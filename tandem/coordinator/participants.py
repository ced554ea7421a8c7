"""Clients of ParticipantService: many participants asked in parallel, in batches, until the deadline.

Transactions that ask one participant at the same time are asked for together; a lone one goes straight through.
An RPC's error becomes the answer of each item that it carried; nothing here decides anything.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2

from tandem.coordinator.transaction import Vote
from tandem.runtime.batches import rounds
from tandem.runtime.channel import MAX_MESSAGE_BYTES, open_channel
from tandem.runtime.coalescer import Coalescer
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.rpc_metrics import ClientCalls
from tandem.runtime.status import CODES, from_rpc_error, from_status
from tandem.runtime.tracing import outgoing
from tandem.runtime.wire import key_to
from tandem.v1 import participant_pb2 as pb
from tandem.v1 import participant_pb2_grpc, transaction_pb2

T = TypeVar("T")
A = TypeVar("A")

MAX_BATCH = 500
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES * 3 // 4
AT_ONCE = 2
"""Messages of one kind on their way to one participant: a reply that got lost holds up half of what comes."""

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


@dataclass(frozen=True, slots=True)
class _Method(Generic[T, A]):
    """How one question is put to a participant: alone, or many in a message.

    failed: the answer that an error makes; error_of: the error in an answer, if there is one.
    """

    one: str
    many: str
    wrap: Callable[[Sequence[T]], Any]
    read_one: Callable[[Any], A]
    read_many: Callable[[Any], list[A]]
    failed: Callable[[TandemError], A]
    error_of: Callable[[A], TandemError | None]

    def called(self, count: int) -> str:
        """The method by which so many are asked."""
        return self.one if count == 1 else self.many


Ended = TandemError | None


def _vote(result: pb.BatchPrepareResult) -> Vote:
    if result.status.code:
        return Vote(error=from_status(result.status))
    return Vote(participant=result.response.participant, digest=result.response.digest)


_PREPARE: _Method[pb.PrepareRequest, Vote] = _Method(
    "Prepare",
    "BatchPrepare",
    lambda some: pb.BatchPrepareRequest(requests=some),
    lambda response: Vote(participant=response.participant, digest=response.digest),
    lambda response: [_vote(result) for result in response.results],
    lambda error: Vote(error=error),
    lambda vote: vote.error,
)


def _ending(one: str, wrap: Callable[[Sequence[T]], Any]) -> _Method[T, Ended]:
    """Commit or Abort: done, or an error."""

    def read(response: Any) -> list[Ended]:
        results: Iterable[status_pb2.Status] = response.results
        return [from_status(status) if status.code else None for status in results]

    return _Method(one, f"Batch{one}", wrap, lambda _: None, read, lambda error: error, lambda answer: answer)


_COMMIT: _Method[pb.CommitRequest, Ended] = _ending("Commit", lambda some: pb.BatchCommitRequest(requests=some))
_ABORT: _Method[pb.AbortRequest, Ended] = _ending("Abort", lambda some: pb.BatchAbortRequest(requests=some))


SERVICE = "tandem.v1.ParticipantService"
REPEATED_HERE = tuple(
    f"{SERVICE}/{name}" for method in (_PREPARE, _COMMIT, _ABORT) for name in (method.one, method.many)
)
"""Repeats are ours: a channel's own would keep others waiting that go in the same message."""


class Commits(Protocol):
    """Another way for the decision committed to get to the participants than Commit by RPC: a queue that keeps it."""

    def commit(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[Ended]]:
        """None for each that is durable on its way; an error where a repeat is needed. until: on time.monotonic()."""
        ...


class Participants:
    """The participants that a coordinator knows: name → gRPC target. calls: where what is asked of them is counted.

    commits: what brings them the decision committed; None: Commit by RPC.
    """

    def __init__(
        self, targets: Mapping[str, str], *, calls: ClientCalls | None = None, commits: Commits | None = None
    ) -> None:
        self._calls = calls
        self._commits = commits
        self.names = frozenset(targets)
        self._channels = {name: open_channel(target, once=REPEATED_HERE) for name, target in targets.items()}
        self._stubs = {
            name: participant_pb2_grpc.ParticipantServiceStub(channel) for name, channel in self._channels.items()
        }
        # What single transactions ask of one participant at the same time leaves together.
        self._preparing = {name: self._coalescer(_PREPARE, name) for name in targets}
        self._committing = {name: self._coalescer(_COMMIT, name) for name in targets}

    def prepare(self, asked: Mapping[str, Sequence[Preparing]], *, until: float) -> dict[str, list[Vote]]:
        """The votes of each participant, in the order asked. until: on time.monotonic()."""
        requests = {name: [one.request() for one in some] for name, some in asked.items()}
        return self._ask_together(_PREPARE, self._preparing, requests, until)

    def commit(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[Ended]]:
        """Brings the decision committed: None for each that has acknowledged."""
        if self._commits is not None:
            return self._commits.commit(asked, by=by, until=until)
        requests = {
            name: [pb.CommitRequest(key=key_to(key), resolved_by=by) for key in keys] for name, keys in asked.items()
        }
        return self._ask_together(_COMMIT, self._committing, requests, until)

    def abort(
        self, asked: Mapping[str, Sequence[TransactionKey]], *, by: transaction_pb2.ResolvedBy.ValueType, until: float
    ) -> dict[str, list[Ended]]:
        """Brings the decision aborted: None for each that has acknowledged."""
        requests = {
            name: [pb.AbortRequest(key=key_to(key), resolved_by=by) for key in keys] for name, keys in asked.items()
        }
        return self._ask_all(_ABORT, requests, until)

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

    def page(
        self, name: str, request: pb.ParticipantServiceListTransactionsRequest, *, timeout_s: float
    ) -> pb.ParticipantServiceListTransactionsResponse:
        """A page of what one participant holds. Raises TandemError if it can't be asked."""
        try:
            response: pb.ParticipantServiceListTransactionsResponse = self._stubs[name].ListTransactions(
                request, timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return response

    def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            channel.close()

    def _coalescer(self, method: _Method[T, A], name: str) -> Coalescer[T, A]:
        """Asks once: who has to be asked again comes again by itself, and keeps nobody waiting meanwhile."""

        def work(requests: Sequence[T], until: float) -> list[A]:
            answers = [_unasked(method)] * len(requests)
            for now in rounds([(r.key.coordinator, r.key.transaction_id) for r in requests]):  # type: ignore[attr-defined]
                timeout_s = until - time.monotonic()
                if timeout_s <= 0:
                    break
                chunks = _all_chunks({name: requests}, {name: now})
                for _, chunk, some in self._send(method, {name: requests}, chunks, timeout_s):
                    for i, answer in zip(chunk, some, strict=True):
                        answers[i] = answer
            return answers

        return Coalescer(work, late=lambda answer: _is_late(method.error_of(answer)), at_once=AT_ONCE)

    def _ask_together(
        self,
        method: _Method[T, A],
        coalescers: Mapping[str, Coalescer[T, A]],
        requests: Mapping[str, Sequence[T]],
        until: float,
    ) -> dict[str, list[A]]:
        """A single question in company; what is more than one goes by itself."""
        match list(requests.items()):
            case [(name, [request])]:
                return {name: [_repeated(method, coalescers[name], request, until)]}
        return self._ask_all(method, requests, until)

    def _ask_all(self, method: _Method[T, A], requests: Mapping[str, Sequence[T]], until: float) -> dict[str, list[A]]:
        """Sends every participant its requests, all at once; repeats those that are UNAVAILABLE while there is time."""
        answers = {name: [_unasked(method)] * len(items) for name, items in requests.items()}
        pending = {name: list(range(len(items))) for name, items in requests.items()}
        pause_s = FIRST_PAUSE_S
        while any(pending.values()) and (left_s := until - time.monotonic()) > 0:
            for name, chunk, some in self._send(method, requests, _all_chunks(requests, pending), left_s):
                for i, answer in zip(chunk, some, strict=True):
                    answers[name][i] = answer
            pending = {
                name: [i for i in positions if _may_repeat(method.error_of(answers[name][i]))]
                for name, positions in pending.items()
            }
            if any(pending.values()):
                pause_s = _pause(pause_s, until)
        return answers

    def _send(
        self,
        method: _Method[T, A],
        requests: Mapping[str, Sequence[T]],
        chunks: Sequence[tuple[str, Sequence[int]]],
        timeout_s: float,
    ) -> Iterator[tuple[str, Sequence[int], list[A]]]:
        """One message a chunk, all at once; a single one in this thread, which spares it a hand-over."""
        if len(chunks) == 1:
            ((name, chunk),) = chunks
            call = partial(
                self._call(method, name, len(chunk)), timeout=timeout_s, wait_for_ready=True, metadata=outgoing()
            )
            yield name, chunk, self._answers(partial(call, _message(method, requests[name], chunk)), len(chunk), method)
            return
        sent = [
            (
                name,
                chunk,
                self._call(method, name, len(chunk)).future(
                    _message(method, requests[name], chunk), timeout=timeout_s, wait_for_ready=True, metadata=outgoing()
                ),
            )
            for name, chunk in chunks
        ]
        try:
            for name, chunk, future in sent:
                yield name, chunk, self._answers(future.result, len(chunk), method)
        except BaseException:
            for _, _, future in sent:
                future.cancel()
            raise

    def _call(self, method: _Method[T, A], name: str, count: int) -> Any:
        return getattr(self._stubs[name], method.called(count))

    def _answers(self, call: Callable[[], Any], count: int, method: _Method[T, A]) -> list[A]:
        answers, code = _answers(call, count, method)
        if self._calls is not None:
            self._calls.handled(f"{SERVICE}/{method.called(count)}", code.name)
        return answers


def _repeated(method: _Method[T, A], ask: Coalescer[T, A], request: T, until: float) -> A:
    """The answer to one request; asked again as long as it is UNAVAILABLE and there is time."""
    answer = _unasked(method)
    pause_s = FIRST_PAUSE_S
    while time.monotonic() < until:
        try:
            answer = ask(request, until=until)
        except TandemError as error:
            if error.reason is not Reason.DEADLINE_PASSED or not _may_repeat(method.error_of(answer)):
                answer = method.failed(error)  # else what it was told the last time says more
            break
        if not _may_repeat(method.error_of(answer)):
            break
        pause_s = _pause(pause_s, until)
    return answer


def _pause(pause_s: float, until: float) -> float:
    """Waits before a repeat; how long before the next one."""
    time.sleep(max(0.0, min(pause_s * random.uniform(0.5, 1.0), until - time.monotonic())))
    return min(2 * pause_s, LONGEST_PAUSE_S)


def _unasked(method: _Method[T, A]) -> A:
    return method.failed(TandemError("not asked in time", reason=Reason.DEADLINE_PASSED))


def _all_chunks(
    requests: Mapping[str, Sequence[T]], positions: Mapping[str, Sequence[int]]
) -> list[tuple[str, Sequence[int]]]:
    """The messages to send for the requests at these positions: (participant, positions)."""
    return [(name, chunk) for name, some in requests.items() for chunk in _chunks(positions[name], some)]


def _message(method: _Method[T, A], requests: Sequence[T], chunk: Sequence[int]) -> Any:
    return requests[chunk[0]] if len(chunk) == 1 else method.wrap([requests[i] for i in chunk])


def _answers(call: Callable[[], Any], count: int, method: _Method[T, A]) -> tuple[list[A], grpc.StatusCode]:
    """An answer each, and the status code of the call."""
    try:
        response = call()
    except grpc.FutureCancelledError:
        cancelled = TandemError("the call was cancelled", reason=Reason.UNAVAILABLE)
        return [method.failed(cancelled)] * count, grpc.StatusCode.CANCELLED
    except grpc.RpcError as error:
        return [method.failed(from_rpc_error(error))] * count, error.code()
    except ValueError:  # gRPC's way to say that the channel is closed
        stopping = TandemError("this process is stopping", reason=Reason.DEADLINE_PASSED)
        return [method.failed(stopping)] * count, grpc.StatusCode.CANCELLED
    answers = [method.read_one(response)] if count == 1 else method.read_many(response)
    for answer in answers if count > 1 else ():
        _of_its_own(method.error_of(answer))
    if len(answers) != count:
        wrong = TandemError("the participant answered another number of requests")
        return [method.failed(wrong)] * count, grpc.StatusCode.OK
    return answers, grpc.StatusCode.OK


def _of_its_own(error: TandemError | None) -> None:
    """Takes the place in a message out of an item's error: which others it was sent with is nobody's business."""
    if error is not None and error.violations:
        error.message = _PLACE.sub("", error.message)
        error.violations = tuple(replace(v, field=_PLACE.sub("", v.field)) for v in error.violations)


_PLACE = re.compile(r"\brequests\[\d+\]\.?")


def _is_late(error: TandemError | None) -> bool:
    """Whether the time was over, which says nothing of those who have more of it."""
    return error is not None and error.reason is Reason.DEADLINE_PASSED


def _may_repeat(error: TandemError | None) -> bool:
    """UNAVAILABLE only (design §4): anything else is an answer."""
    return error is not None and CODES.get(error.reason) is grpc.StatusCode.UNAVAILABLE


def _chunks(positions: Sequence[int], requests: Sequence[Any]) -> list[list[int]]:
    """Positions in groups that a message and a batch can hold."""
    chunks: list[list[int]] = []
    room = 0
    for i in positions:
        size = requests[i].ByteSize() + 8
        if not chunks or len(chunks[-1]) >= MAX_BATCH or size > room:
            chunks.append([])
            room = MAX_BATCH_BYTES
        chunks[-1].append(i)
        room -= size
    return chunks


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
