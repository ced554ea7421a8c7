"""Runs a plan over the gRPC API with several clients at once; repeatable at any point.

Pairs that wait for nobody go in batches. What a batch's answer leaves open, a job settles by calls of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from identity_stub.client import BATCH_CALL_S, PATIENCE_S, Identity, may_pass
from identity_stub.importing.planning import Job, Plan, batches
from identity_stub.importing.reading import BusinessRow, PersonRow, Rejected
from tandem.identity.v1 import identity_service_pb2 as pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_status

MAX_CLIENTS = 256

BATCH = 50
"""Pairs in one call, at most."""


@dataclass(frozen=True, slots=True)
class Done:
    """One job's end, for whoever shows progress.

    refused: (name, field) of what exists already. retries: calls repeated. finished, total: jobs.
    """

    name: str
    refused: tuple[tuple[str, str], ...]
    retries: int
    finished: int
    total: int


@dataclass(slots=True)
class Result:
    """What an import came to.

    users, businesses: that are there now. refused: (name, field that exists already), in the plan's order; field
    "owner": its owner could not come in. rejected: (file, row) that were never sent. failed: (name, reason) that no
    repeat helps. stopped: why the last `left` jobs were left; "" where none was. retries: calls repeated. seconds: the
    time it took.
    """

    users: int = 0
    businesses: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    stopped: str = ""
    left: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Users and businesses together."""
        return self.users + self.businesses


@dataclass(slots=True)
class _End:
    """One job's end. user_id: "" where there is none to own further businesses."""

    user_id: str = ""
    users: int = 0
    businesses: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    retries: int = 0


def run_import(
    target: str,
    plan: Plan,
    *,
    clients: int = 8,
    on_done: Callable[[Done], None] | None = None,
    patience_s: float = PATIENCE_S,
) -> Result:
    """Imports what the plan holds. Never raises for what the service answers: the result says it.

    target: identity's gRPC name. clients: threads that call at the same time. on_done: called after each job, one at a
    time. patience_s: after so long without success for one call, the service is given up and the rest is left; running
    the same plan again goes on from there.
    """
    result = Result(rejected=list(plan.rejected))
    started = time.monotonic()
    run = _Run(plan.jobs, on_done)
    threads = ThreadPoolExecutor(min(max(clients, 1), MAX_CLIENTS), thread_name_prefix="import")
    with Identity(target, patience_s=patience_s) as identity:
        try:
            # In the plan's order, first in first out: a job that waits for an earlier one waits for one that runs.
            for positions in batches(plan.jobs, BATCH):
                threads.submit(run.do, identity, positions)
            ends = [end.result() for end in run.ends]
        finally:
            run.stop("interrupted")
            identity.close()
            threads.shutdown(cancel_futures=True)
    for end in ends:
        result.users += end.users if end else 0
        result.businesses += end.businesses if end else 0
        result.refused += end.refused if end else []
        result.failed += end.failed if end else []
        result.retries += end.retries if end else 0
        result.left += end is None
    result.stopped = run.stopped if result.left else ""
    result.seconds = time.monotonic() - started
    return result


_Told = pb.SignUpResponse | TandemError | None
"""What a job in company is told; None: nothing yet."""


class _Stopped(Exception):
    """The service was given up, and why."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Run:
    """One run: how each job has ended, in order; None: it was left."""

    def __init__(self, jobs: Sequence[Job], on_done: Callable[[Done], None] | None) -> None:
        self._jobs = jobs
        self._on_done = on_done
        self._lock = threading.Lock()
        self._finished = 0
        self.ends: Sequence[Future[_End | None]] = [Future() for _ in jobs]
        self.stopped = ""

    def stop(self, why: str) -> None:
        """Begins no further job; the first reason stays."""
        with self._lock:
            self.stopped = self.stopped or why

    def do(self, identity: Identity, positions: Sequence[int]) -> None:
        """One job, or several in company, to their ends."""
        try:
            told: dict[int, _Told] = {}
            if len(positions) > 1 and not self.stopped:
                together = _sign_up_together(identity, [self._jobs[position] for position in positions])
                told = dict(zip(positions, together, strict=True))
            # Those that are in come first: the others may take their time, and are asked to.
            made = [position for position in positions if isinstance(told.get(position), pb.SignUpResponse)]
            for position in made:
                self.ends[position].set_result(self._one(identity, position, told[position]))
            identity.wait(max((_retry_after_s(one) for one in told.values()), default=0.0))
            for position in sorted(set(positions) - set(made)):
                self.ends[position].set_result(self._one(identity, position, told.get(position)))
        except BaseException as error:  # a mistake of ours, or of on_done: whoever waits for a job must hear of it
            for position in positions:
                if not self.ends[position].done():
                    self.ends[position].set_exception(error)

    def _one(self, identity: Identity, position: int, told: _Told) -> _End | None:
        """One job, after what it was told in company, if it was."""
        job, end = self._jobs[position], _End()
        if isinstance(told, pb.SignUpResponse):
            end.user_id, end.users, end.businesses = told.user.user_id, 1, 1
        elif told is not None and not (may_pass(told) or told.reason is Reason.ALREADY_EXISTS):
            end.failed.append((job.name, told.reason.value))
        else:
            before = {earlier: self.ends[earlier].result() for earlier in job.after}
            if self.stopped or not all(before.values()):
                return None
            owner = before.get(job.owner) if job.owner is not None else None
            end.retries += told is not None and may_pass(told)
            try:
                _Steps(identity, job, end).run(owner.user_id if owner else "")
            except _Stopped as stopped:
                self.stop(stopped.why)
                return None
        self._report(job, end)
        return end

    def _report(self, job: Job, end: _End) -> None:
        with self._lock:
            self._finished += 1
            if self._on_done is not None:
                self._on_done(Done(job.name, tuple(end.refused), end.retries, self._finished, len(self._jobs)))


def _sign_up_together(identity: Identity, jobs: Sequence[Job]) -> Sequence[_Told]:
    """What each is told; None where it has to ask by itself."""
    request = pb.BatchSignUpRequest()
    for job in jobs:
        assert job.person is not None
        assert job.business is not None
        request.requests.append(_sign_up(job.request_id, job.person, job.business))
    try:
        answer = identity.once(identity.stub.BatchSignUp, request, timeout_s=BATCH_CALL_S)
    except TandemError as error:  # of the call: it says nothing of any of them, but that a repeat may help
        return [error if may_pass(error) else None] * len(jobs)
    told = [from_status(one.status) if one.status.code else one.response for one in answer.results]
    return told if len(told) == len(jobs) else [None] * len(jobs)


def _retry_after_s(told: _Told) -> float:
    return (told.retry_after_s or 0.0) if isinstance(told, TandemError) else 0.0


def _sign_up(request_id: str, person: PersonRow, business: BusinessRow) -> pb.SignUpRequest:
    return pb.SignUpRequest(request_id=request_id, email=person.email, person=person.profile, business=business.profile)


class _Exists(Exception):
    """Something with this field is there already."""

    def __init__(self, field_: str) -> None:
        super().__init__(field_)
        self.field = field_


class _Steps:
    """The calls of one job, their answers counted in `end`."""

    def __init__(self, identity: Identity, job: Job, end: _End) -> None:
        self._identity = identity
        self._job = job
        self._end = end

    def run(self, owner_id: str) -> None:
        """The job. owner_id: who owns a further business; "" where that user is not there. Raises _Stopped."""
        person, business = self._job.person, self._job.business
        try:
            if person is not None and business is not None:
                self._pair(person, business)
            elif person is not None:
                self._user(self._job.request_id, person)
            elif business is not None:
                self._business(self._job.request_id, business, owner_id)
        except TandemError as error:
            if may_pass(error):
                raise _Stopped(f"the service could not be reached, or not finish: {error.reason.value}") from error
            self._end.failed.append((self._job.name, error.reason.value))

    def _pair(self, person: PersonRow, business: BusinessRow) -> None:
        """Both together. Where one of the two is refused, the other comes in all the same, by a request of its own."""
        request = _sign_up(self._job.request_id, person, business)
        try:
            answer = self._call(self._identity.stub.SignUp, request)
        except _Exists as exists:
            # The address is taken by this import's own earlier run, too, if it had to do the same.
            self._user(f"{self._job.request_id}-alone", person)
            if exists.field == "email":
                self._business(f"import-businesses-{business.key}", business, self._end.user_id)
            else:
                self._end.refused.append((business.name, exists.field))
        else:
            self._end.user_id = answer.user.user_id
            self._end.users += 1
            self._end.businesses += 1

    def _user(self, request_id: str, person: PersonRow) -> None:
        request = pb.CreateUserRequest(request_id=request_id, email=person.email, person=person.profile)
        try:
            answer = self._call(self._identity.stub.CreateUser, request)
        except _Exists as exists:
            self._end.refused.append((person.name, exists.field))
        else:
            self._end.user_id = answer.user.user_id
            self._end.users += 1

    def _business(self, request_id: str, business: BusinessRow, owner_id: str) -> None:
        if not owner_id:
            self._end.refused.append((business.name, "owner"))
            return
        request = pb.CreateBusinessRequest(request_id=request_id, owner_user_id=owner_id, business=business.profile)
        try:
            self._call(self._identity.stub.CreateBusiness, request)
        except _Exists as exists:
            self._end.refused.append((business.name, exists.field))
        else:
            self._end.businesses += 1

    def _call(self, method: Callable[..., Any], request: Message) -> Any:
        """The answer. Raises _Exists, or the TandemError of anything else."""
        try:
            return self._identity.call(method, request, retried=self._retried)
        except TandemError as error:
            if error.reason is Reason.ALREADY_EXISTS:
                raise _Exists(error.metadata.get("field", "")) from error
            raise

    def _retried(self) -> None:
        self._end.retries += 1
