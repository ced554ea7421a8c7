"""Asks coordinators, by their configured names, what they decided; and applies what they answer.

The sweeper comes through here, and so do readers and a Prepare that pushes: nothing has a road of its own. No local
transaction is open while a coordinator is asked.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.engine import Row

from tandem.participant import rows
from tandem.participant.participant import Participant
from tandem.participant.transaction import ResolvedBy, State
from tandem.runtime.channel import open_channel
from tandem.runtime.digest import transaction_digest
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.failpoints import failpoint
from tandem.runtime.identifiers import TransactionKey
from tandem.runtime.local_transaction import local_transaction
from tandem.runtime.status import from_rpc_error, from_status
from tandem.runtime.tracing import outgoing
from tandem.v1 import coordinator_pb2, coordinator_pb2_grpc, transaction_pb2

ASKING = 8
"""Readers and Prepares that wait for one coordinator at the same time: if it hangs, the others' workers stay free."""

TURN_S = 0.1
"""How long a further one waits for its turn."""

MAX_QUESTIONS = 1_000
"""In one Resolve (R16)."""


class Outcome(StrEnum):
    """What a coordinator answers (design §2, the table of the decision log)."""

    UNDECIDED = "undecided"
    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in_progress"
    EXPIRED = "expired"
    WRONG_LOG = "wrong_log"


@dataclass(frozen=True, slots=True)
class InDoubt:
    """A prepared transaction: what the coordinator must be told to answer for it (R4)."""

    key: TransactionKey
    log_id: UUID
    digest: bytes


def in_doubt(row: Row[Any]) -> InDoubt:
    """A row of `twophase.prepared_transaction` as a question."""
    return InDoubt(
        TransactionKey(row.coordinator, row.transaction_id), row.log_id, transaction_digest(bytes(row.digests))
    )


Settled = dict[TransactionKey, Outcome | TandemError]
"""What became of each: an outcome, applied where it is one; or why not."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A Resolve that is under way."""

    coordinator: str
    batch: Sequence[InDoubt]
    call: Any

    def answers(self) -> list[Outcome | TandemError]:
        """Waits for them. Raises TandemError if there are none."""
        try:
            response = self.call.result()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except grpc.FutureCancelledError:
            raise TandemError("this process is stopping", reason=Reason.UNAVAILABLE) from None
        if len(response.results) != len(self.batch):
            raise TandemError("the coordinator answered another number of questions", reason=Reason.INTERNAL)
        return [
            from_status(result.status) if result.status.code else _OUTCOMES.get(result.outcome, _NO_ANSWER)
            for result in response.results
        ]


def _as_they_come(asked: Sequence[_Asked]) -> Iterator[_Asked]:
    """The quick ones first. Each ends by its deadline, so this ends."""
    done: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
    for one in asked:
        one.call.add_done_callback(lambda _, one=one: done.put(one))
    for _ in asked:
        yield done.get()


class Resolver:
    """Clients of the coordinators.

    coordinators: name → gRPC target; only these are believed.
    timeout_s: the deadline of one Resolve.
    """

    def __init__(self, participant: Participant, coordinators: Mapping[str, str], *, timeout_s: float = 3.0) -> None:
        self._participant = participant
        self._timeout_s = timeout_s
        self._channels = {name: open_channel(target) for name, target in coordinators.items()}
        self._turns = {name: threading.BoundedSemaphore(ASKING) for name in coordinators}
        self._stubs = {
            name: coordinator_pb2_grpc.CoordinatorServiceStub(channel) for name, channel in self._channels.items()
        }
        for name in coordinators:
            for reason in (Reason.UNAVAILABLE, Reason.DEADLINE_PASSED):  # there with 0 from the start
                participant.metrics.resolve_failures.labels(name, reason.value)

    def _asked(self, coordinator: str, batch: Sequence[InDoubt], *, fence: bool, timeout_s: float) -> _Asked:
        """Sends the questions."""
        stub = self._stubs.get(coordinator)
        if stub is None:
            raise TandemError("this coordinator is not configured", reason=Reason.COORDINATOR_UNKNOWN)
        request = coordinator_pb2.ResolveRequest(participant=self._participant.name, fence=fence)
        for item in batch:
            request.items.add(
                key=transaction_pb2.TransactionKey(
                    coordinator=item.key.coordinator, transaction_id=str(item.key.transaction_id)
                ),
                log_id=str(item.log_id),
                digest=item.digest,
            )
        try:
            call = stub.Resolve.future(request, timeout=min(self._timeout_s, timeout_s), metadata=outgoing())
        except ValueError:
            raise TandemError("this process is stopping", reason=Reason.UNAVAILABLE) from None
        return _Asked(coordinator, batch, call)

    def settle(
        self, batches: Mapping[str, Sequence[InDoubt]], *, by: ResolvedBy, timeout_s: float = math.inf
    ) -> Iterator[tuple[str, Sequence[InDoubt], Settled | TandemError]]:
        """Asks each coordinator for its batch, with a fence, all at once; applies COMMITTED and ABORTED.

        Anything else changes nothing (R9). Gives (coordinator, batch, answers) as they come: one that hangs holds up
        nobody. An outcome that could not be applied is answered with its error; an error instead of the answers: the
        coordinator can't be asked.
        """
        asked: list[_Asked] = []
        for coordinator, batch in batches.items():
            try:
                asked.append(self._asked(coordinator, batch, fence=True, timeout_s=timeout_s))
            except TandemError as error:
                yield coordinator, batch, error
        for one in _as_they_come(asked):
            try:
                yield one.coordinator, one.batch, self._apply(one, by)
            except TandemError as error:
                yield one.coordinator, one.batch, error

    def _apply(self, asked: _Asked, by: ResolvedBy) -> Settled:
        """Waits for the answers and applies them. Raises TandemError if there are none."""
        try:
            answers = asked.answers()
        except TandemError as error:
            self._participant.metrics.resolve_failures.labels(asked.coordinator, error.reason.value).inc()
            raise
        failpoint(f"{by.value}.after_resolve")
        settled = {item.key: answer for item, answer in zip(asked.batch, answers, strict=True)}
        for outcome, apply in (
            (Outcome.COMMITTED, self._participant.commit),
            (Outcome.ABORTED, self._participant.abort),
        ):
            keys = [key for key, answer in settled.items() if answer is outcome]
            if keys:
                applied = zip(keys, apply(keys, by), strict=True)
                settled |= {key: error for key, error in applied if error is not None}
        failpoint(f"{by.value}.after_apply")
        return settled

    def meet(
        self,
        keys: Collection[TransactionKey],
        *,
        by: ResolvedBy,
        timeout_s: float,
        fence_after_s: float | None = None,
    ) -> Settled:
        """Resolves transactions whose prepared rows somebody has met (R10): all coordinators at once, in `timeout_s`.

        fence_after_s: those prepared longer ago are fenced if they are undecided; None: none is. COMMITTED and ABORTED
        are applied when this returns, so a look at the entities tells the rest. An error: nobody could say.
        """
        with local_transaction(self._participant.engine) as connection:
            found = rows.met(connection, sorted(keys))
        # What has ended meanwhile, or went with a no vote, needs nobody's answer.
        outcomes: Settled = dict.fromkeys(keys, Outcome.ABORTED)
        asked: dict[tuple[str, bool], list[InDoubt]] = {}
        for row in found:
            key = TransactionKey(row.coordinator, row.transaction_id)
            if row.state == State.PREPARED:
                fence = fence_after_s is not None and row.age_s > fence_after_s
                asked.setdefault((row.coordinator, fence), []).append(in_doubt(row))
            elif row.state == State.COMMITTED:
                outcomes[key] = Outcome.COMMITTED
        started: list[_Asked] = []
        with ExitStack() as turns:
            for (coordinator, fence), questions in sorted(asked.items()):
                for first in range(0, len(questions), MAX_QUESTIONS):
                    some = questions[first : first + MAX_QUESTIONS]
                    try:
                        turns.enter_context(self._turn(coordinator))
                        started.append(self._asked(coordinator, some, fence=fence, timeout_s=timeout_s))
                    except TandemError as error:
                        outcomes |= {item.key: error for item in some}
            for one in _as_they_come(started):
                try:
                    outcomes |= self._apply(one, by)
                except TandemError as error:
                    outcomes |= {item.key: error for item in one.batch}
        return outcomes

    @contextmanager
    def _turn(self, coordinator: str) -> Iterator[None]:
        turns = self._turns.get(coordinator)
        if turns is None:
            yield  # `_asked` says what is wrong
            return
        if not turns.acquire(timeout=TURN_S):
            raise TandemError("many wait for this coordinator", reason=Reason.UNAVAILABLE, retry_after_s=1)
        try:
            yield
        finally:
            turns.release()

    def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            channel.close()


_R = coordinator_pb2.ResolveResult
_NO_ANSWER = TandemError("the coordinator gave no answer that is known here", reason=Reason.INTERNAL)
_OUTCOMES: dict[int, Outcome | TandemError] = {
    _R.OUTCOME_UNDECIDED: Outcome.UNDECIDED,
    _R.OUTCOME_COMMITTED: Outcome.COMMITTED,
    _R.OUTCOME_ABORTED: Outcome.ABORTED,
    _R.OUTCOME_IN_PROGRESS: Outcome.IN_PROGRESS,
    _R.OUTCOME_EXPIRED: Outcome.EXPIRED,
    _R.OUTCOME_WRONG_LOG: Outcome.WRONG_LOG,
}
