"""The load: signups at a steady rate or as many as go, and for each that was acknowledged a reader of its person.

A signup's time runs from when it was due, so a service that stands still is not spared the waiting. A reader looks at
once, and again until it finds the person: so long it saw a user without a profile.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from identity_stub.client import Identity
from lab.torture import content
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import profiles_service_pb2 as pb
from tandem.profiles.v1 import profiles_service_pb2_grpc
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error

CALL_S = 10.0
CLIENTS = 32
READERS = 8
LOOK_EVERY_S = 0.02
READ_S = 2.0
MAX_S = 300.0
"""Of one load, whatever the fault."""

LOOKED_FOR_S = 20.0
"""How long a reader looks for a person after the load has ended."""


@dataclass(frozen=True, slots=True)
class Signed:
    """One signup: when it was due and when it was answered, in s after the load began; the reason of its refusal."""

    due_s: float
    done_s: float
    reason: str
    person_id: str = ""
    business_status: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was acknowledged."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Looked:
    """A reader of one person: how long after the acknowledgement it found it, None for never; whether it missed it."""

    readable_s: float | None
    was_missing: bool


@dataclass
class Told:
    """What a load has seen."""

    signed: list[Signed] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)
    seconds: float = 0.0


class Load:
    """Signups against `address` ("identity", "profiles"), named `name`-1, `name`-2, …

    rate: a second; None: as many as `clients` get through. taken_share: of signups that ask for a registration number
    that another business has. twice: each request is sent two times at once.
    """

    def __init__(
        self,
        address: dict[str, str],
        name: str,
        *,
        seed: int,
        rate: float | None,
        clients: int = CLIENTS,
        taken_share: float = 0.0,
        twice: bool = False,
    ) -> None:
        self._address, self._name, self._rate = address, name, rate
        self._clients, self._taken_share, self._twice = clients, taken_share, twice
        self._random = random.Random(f"{seed} {name}")
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._probes: queue.PriorityQueue[tuple[float, int, str, float, bool]] = queue.PriorityQueue()
        self._probe_numbers = itertools.count()
        self._over = threading.Event()
        self.told = Told()
        self.requests: list[identity_pb.SignUpRequest] = []

    def run(self, seconds: float, meanwhile: Callable[[], None] | None = None) -> Told:
        """For so long. meanwhile: a fault, begun with the load, which goes on for a third of `seconds` after it."""
        self._began = time.monotonic()
        self._ends = self._began + (seconds if meanwhile is None else MAX_S)
        readers = [threading.Thread(target=self._read, daemon=True) for _ in range(READERS)]
        clients = [threading.Thread(target=self._sign_up, daemon=True) for _ in range(self._clients)]
        for thread in (*readers, *clients):
            thread.start()
        if meanwhile is not None:
            try:
                meanwhile()
            finally:
                self._ends = max(self._began + seconds, time.monotonic() + seconds / 3)
        for client in clients:
            client.join()
        self.told.seconds = time.monotonic() - self._began
        self._looked_until = time.monotonic() + LOOKED_FOR_S
        self._over.set()
        for reader in readers:
            reader.join()
        return self.told

    # --- clients ------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[float, identity_pb.SignUpRequest] | None:
        """The next signup and when it is due; None when the load is over."""
        with self._lock:
            number = next(self._numbers)
            due = time.monotonic() if self._rate is None else self._began + number / self._rate
            if due >= self._ends:
                return None
            name = f"{self._name}-{number}"
            taken = self._taken_share and number > 1 and self._random.random() < self._taken_share
            registration = f"{self._name}-1" if taken else name
            email = f"{name}@example.org"
            request = identity_pb.SignUpRequest(
                request_id=name,
                email=email,
                person=content.person(name, email),
                business=content.business(name, registration.upper()),
            )
            self.requests.append(request)
        return due, request

    def _sign_up(self) -> None:
        with Identity(self._address["identity"]) as identity:
            while (given := self._next()) is not None:
                due, request = given
                time.sleep(max(0.0, due - time.monotonic()))
                second = None
                if self._twice:
                    second = threading.Thread(target=self._again, args=(identity, request))
                    second.start()
                self._once(identity, due, request)
                if second is not None:
                    second.join()

    def _once(self, identity: Identity, due: float, request: identity_pb.SignUpRequest) -> None:
        try:
            answer = identity.once(identity.stub.SignUp, request, timeout_s=CALL_S)
        except TandemError as error:
            signed = Signed(due - self._began, time.monotonic() - self._began, error.reason.value)
        else:
            now = time.monotonic()
            status = identity_pb.ProfileStatus.Name(answer.business.profile_status).removeprefix("PROFILE_STATUS_")
            signed = Signed(due - self._began, now - self._began, "", answer.user.person_id, status)
            self._probes.put((now, next(self._probe_numbers), answer.user.person_id, now, False))
        with self._lock:
            self.told.signed.append(signed)

    def _again(self, identity: Identity, request: identity_pb.SignUpRequest) -> None:
        try:
            identity.once(identity.stub.SignUp, request, timeout_s=CALL_S)
        except TandemError:
            pass  # the first one tells

    # --- readers ------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        with open_profiles(self._address["profiles"]) as channel:
            stub = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            while True:
                try:
                    due, number, person_id, acknowledged, was_missing = self._probes.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    if self._over.is_set():
                        return
                    continue
                time.sleep(max(0.0, due - time.monotonic()))
                reason = _look(stub, person_id)
                now = time.monotonic()
                was_missing = was_missing or reason is Reason.NOT_FOUND
                if reason is not None and not (self._over.is_set() and now > self._looked_until):
                    self._probes.put((now + LOOK_EVERY_S, number, person_id, acknowledged, was_missing))
                    continue
                with self._lock:
                    self.told.looked.append(Looked(None if reason else now - acknowledged, was_missing))


def _look(stub: profiles_service_pb2_grpc.ProfilesServiceStub, person_id: str) -> Reason | None:
    """None where it is found, or why not."""
    try:
        stub.GetPerson(pb.GetPersonRequest(person_id=person_id), timeout=READ_S)
    except grpc.RpcError as error:
        return from_rpc_error(error).reason
    return None
