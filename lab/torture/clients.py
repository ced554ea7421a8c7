"""Clients that sign up, invite, accept, read and update, and write down what they were told."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from identity_stub.client import Identity
from lab.torture.history import Answer, Call, History
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import business_pb2, person_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error

PATIENCE_S = 25.0
"""How long a client repeats one request before it goes away without knowing how it ended."""

READ_S = 3.0

_PERHAPS = frozenset(
    {
        Reason.UNAVAILABLE,
        Reason.DEADLINE_PASSED,
        Reason.OUTCOME_UNKNOWN,
        Reason.IN_DOUBT,
        Reason.IN_PROGRESS,
        Reason.HELD,
        Reason.DATABASE_UNAVAILABLE,
        Reason.DATABASE_FULL,
        Reason.OVERLOADED,
        Reason.INTERNAL,
        Reason.FENCED,
    }
)
"""Answers after which a repeat may succeed: the client may not say that it was refused."""


@dataclass
class World:
    """What clients know in common: who was acknowledged. Thread-safe."""

    users: list[dict[str, str]] = field(default_factory=list)
    businesses: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, known: dict[str, str]) -> None:
        """Somebody who was acknowledged."""
        with self.lock:
            (self.users if kind == "user" else self.businesses).append(known)

    def one(self, kind: str, chance: random.Random) -> dict[str, str] | None:
        """One of them."""
        with self.lock:
            known = self.users if kind == "user" else self.businesses
            return chance.choice(known) if known else None


class Client(threading.Thread):
    """One client, calling until `stopping` is set."""

    def __init__(
        self,
        number: int,
        seed: int,
        address: Mapping[str, str],
        world: World,
        history: History,
        stopping: threading.Event,
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._number = number
        self._random = random.Random(seed * 1_000 + number)
        self._address = address
        self._world = world
        self._history = history
        self._stopping = stopping
        self._made = 0
        self.failure: Exception | None = None

    def run(self) -> None:
        """One call after another."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._sign_up, 6), (self._create_user, 3), (self._invite, 3), (self._read, 8), (self._update, 4),
        ]  # fmt: skip
        calls, weights = [call for call, _ in kinds], [weight for _, weight in kinds]
        with (
            Identity(self._address["identity"], patience_s=PATIENCE_S) as self._identity,
            open_profiles(self._address["profiles"]) as channel,
        ):
            self._profiles = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            try:
                while not self._stopping.is_set():
                    self._random.choices(calls, weights)[0]()
            except Exception as error:  # a client must not die unseen
                self.failure = error

    # --- creating ---------------------------------------------------------------------------------------------

    def _sign_up(self) -> None:
        name = self._fresh()
        email, registration = f"{name}@example.org", name.upper()
        taken = self._world.one("business", self._random) if self._random.random() < 0.1 else None
        if taken is not None:
            registration = taken["registration"]
        request = identity_pb.SignUpRequest(
            request_id=name, email=email, person=_person(name), business=_business(name, registration)
        )
        call = self._history.begin(
            self._number, "sign_up", email=email, name=name, registration=registration, duplicate=str(taken is not None)
        )
        answer = self._call(call, self._identity.stub.SignUp, request)
        if answer is not None:
            business = answer.business
            self._told(call, answer.user, business_id=business.business_id, entity_id=business.profile_business_id)

            self._world.add(
                "business",
                {
                    "business_id": business.business_id,
                    "entity_id": business.profile_business_id,
                    "owner": answer.user.user_id,
                    "registration": registration,
                },
            )

    def _create_user(self) -> None:
        name = self._fresh()
        email = f"{name}@example.org"
        taken = self._world.one("user", self._random) if self._random.random() < 0.1 else None
        if taken is not None:
            email = taken["email"]
        request = identity_pb.CreateUserRequest(request_id=name, email=email, person=_person(name))
        call = self._history.begin(
            self._number, "create_user", email=email, name=name, duplicate=str(taken is not None)
        )
        answer = self._call(call, self._identity.stub.CreateUser, request)
        if answer is not None:
            self._told(call, answer.user)

    def _invite(self) -> None:
        business = self._world.one("business", self._random)
        if business is None:
            return
        name = self._fresh()
        email = f"{name}@example.org"
        invite = identity_pb.InviteUserRequest(
            request_id=name,
            business_id=business["business_id"],
            inviter_user_id=business["owner"],
            email=email,
            role=business_pb2.ROLE_DIRECTOR,
        )
        call = self._history.begin(self._number, "invite", email=email, business_id=business["business_id"])
        answer = self._call(call, self._identity.stub.InviteUser, invite)
        if answer is None:
            return
        self._history.end(call, Answer.OK)
        accept = identity_pb.AcceptInvitationRequest(
            request_id=f"{name}-accept", invitation_id=answer.invitation.invitation_id, person=_person(name)
        )
        call = self._history.begin(
            self._number, "accept", email=email, name=name, business_id=business["business_id"],
            entity_id=business["entity_id"], duplicate="False",
        )  # fmt: skip
        answer = self._call(call, self._identity.stub.AcceptInvitation, accept)
        if answer is not None:
            self._told(call, answer.user)

    # --- looking and changing -----------------------------------------------------------------------------------

    def _read(self) -> None:
        user = self._world.one("user", self._random)
        if user is None:
            return
        call = self._history.begin(self._number, "read", person_id=user["person_id"])
        self._get(call, user["person_id"])

    def _update(self) -> None:
        user = self._world.one("user", self._random)
        if user is None:
            return
        call = self._history.begin(self._number, "read", person_id=user["person_id"])
        person = self._get(call, user["person_id"])
        if person is None:
            return
        version, value = person.version, f"v-{self._fresh()}"
        person.name.display_name = value
        request = profiles_pb.UpdatePersonRequest(person=person, update_mask=FieldMask(paths=["name.display_name"]))
        call = self._history.begin(
            self._number, "update", person_id=user["person_id"], version=str(version), value=value
        )
        try:
            answer = self._profiles.UpdatePerson(request, timeout=READ_S)
        except grpc.RpcError as error:
            self._failed(call, from_rpc_error(error), certain=(Reason.VERSION_MISMATCH,))
        else:
            self._history.end(call, Answer.OK, version=str(answer.person.version))

    def _get(self, call: Call, person_id: str) -> Any | None:
        try:
            answer = self._profiles.GetPerson(profiles_pb.GetPersonRequest(person_id=person_id), timeout=READ_S)
        except grpc.RpcError as error:
            self._failed(call, from_rpc_error(error), certain=(Reason.NOT_FOUND,))
            self._pause()
            return None
        self._history.end(call, Answer.OK, version=str(answer.person.version))
        return answer.person

    # --- shared -------------------------------------------------------------------------------------------------

    def _call(self, call: Call, method: Callable[..., Any], request: Any) -> Any | None:
        """The answer; or None, and the call is ended."""
        try:
            return self._identity.call(method, request)
        except TandemError as error:
            self._failed(call, error)
            return None

    def _failed(self, call: Call, error: TandemError, *, certain: tuple[Reason, ...] | None = None) -> None:
        refused = error.reason in certain if certain is not None else error.reason not in _PERHAPS
        self._history.end(call, Answer.REFUSED if refused else Answer.UNKNOWN, error.reason.value)

    def _told(self, call: Call, user: Any, **more: str) -> None:
        self._history.end(call, Answer.OK, user_id=user.user_id, person_id=user.person_id, **more)
        self._world.add("user", {"user_id": user.user_id, "person_id": user.person_id, "email": user.email})

    def _fresh(self) -> str:
        self._made += 1
        return f"c{self._number}n{self._made}"

    def _pause(self) -> None:
        time.sleep(0.02)  # nobody is there: not all of a core for asking again


def _person(name: str) -> person_pb2.Person:
    return person_pb2.Person(
        name=person_pb2.PersonName(given_name=name, family_name="Torture", display_name=name),
        nationalities=["GB"],
    )


def _business(name: str, registration: str) -> business_pb2.Business:
    return business_pb2.Business(
        legal_name=f"{name} Ltd",
        entity_type=business_pb2.ENTITY_TYPE_CORPORATION,
        registration_country="GB",
        registration_number=registration,
    )
