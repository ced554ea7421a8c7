"""Clients that sign up, invite, accept, read and update, and write down what they were told.

Each reads at once what it was told. Most reads and updates go to whoever came last, where something may be in doubt.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from identity_stub.client import CALL_S, FIRST_PAUSE_S, LONGEST_PAUSE_S, Identity, may_pass
from lab.torture import content
from lab.torture.eventual import LAST
from lab.torture.history import Answer, Call, History
from lab.torture.invariants import TRANSPORT
from lab.torture.plan import PATIENCE_S
from tandem.identity.v1 import identity_service_pb2 as identity_pb
from tandem.profiles.client import open_profiles
from tandem.profiles.v1 import business_pb2, profiles_service_pb2_grpc
from tandem.profiles.v1 import profiles_service_pb2 as profiles_pb
from tandem.runtime.errors import Reason, TandemError
from tandem.runtime.status import from_rpc_error

READ_S = 3.0

GRACE_S = 3.0
"""How long a request is still repeated after the run has ended: nothing is broken any more by then."""

NEWEST = 5
NEWEST_SHARE = 0.8
"""Of reads and updates: to one of the newest."""

DUPLICATES_SHARE = 0.12
"""Of creates: they ask for what is taken."""

LAST_LOOKS = 100
"""Users, and businesses, that are looked at in the end."""

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

_NOT_OURS = "the call ended with "
"""How an error begins that no server of ours has answered (tandem.runtime.status)."""


class Stop:
    """Tells clients that the run is over."""

    def __init__(self) -> None:
        self.over_at = float("inf")

    def set(self) -> None:
        """Now. over_at: by the monotonic clock."""
        self.over_at = time.monotonic()

    def is_set(self) -> bool:
        """Whether it is."""
        return self.over_at != float("inf")


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
        """One of them, most often one of the newest."""
        with self.lock:
            known = self.users if kind == "user" else self.businesses
            if not known:
                return None
            return chance.choice(known[-NEWEST:] if chance.random() < NEWEST_SHARE else known)


class Client(threading.Thread):
    """One client, calling until `stopping` is set."""

    def __init__(
        self,
        number: int,
        seed: int,
        address: Mapping[str, str],
        world: World,
        history: History,
        stopping: Stop,
    ) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._number = number
        self._random = random.Random(f"{seed} client {number}")
        self._address = address
        self._world = world
        self._history = history
        self._stopping = stopping
        self._made = 0
        self.opened = threading.Event()  # once it has made each kind of call, and asked for what is taken
        self.failure: Exception | None = None

    def run(self) -> None:
        """Each kind of call once, then one after another at random."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._sign_up, 6), (self._create_user, 3), (self._invite, 3), (self._read_user, 6),
            (self._read_business, 4), (self._update_person, 4), (self._update_business, 2),
        ]  # fmt: skip
        opening: list[Callable[[], None]] = [call for call, _ in kinds]
        opening += [lambda: self._sign_up(taken=True), lambda: self._create_user(taken=True)]
        calls, weights = [call for call, _ in kinds], [weight for _, weight in kinds]
        with self._connected():
            try:
                for call in opening:
                    call()
                self.opened.set()
                while not self._stopping.is_set():
                    self._random.choices(calls, weights)[0]()
            except Exception as error:  # a client must not die unseen
                self.failure = error

    @contextmanager
    def _connected(self) -> Iterator[None]:
        with (
            Identity(self._address["identity"], patience_s=PATIENCE_S) as self._identity,
            open_profiles(self._address["profiles"]) as channel,
        ):
            self._profiles = profiles_service_pb2_grpc.ProfilesServiceStub(channel)
            yield

    # --- creating ---------------------------------------------------------------------------------------------

    def _sign_up(self, *, taken: bool = False) -> None:
        name = self._fresh()
        email, registration = f"{name}@example.org", name.upper()
        other = self._taken("business", taken)
        if other is not None:
            registration = other["registration"]
        request = identity_pb.SignUpRequest(
            request_id=name,
            email=email,
            person=content.person(name, email),
            business=content.business(name, registration),
        )
        call = self._begin(
            "sign_up", email=email, name=name, registration=registration, duplicate=str(other is not None)
        )
        answer = self._create(call, self._identity.stub.SignUp, request)
        if answer is None:
            return
        business = {
            "business_id": answer.business.business_id,
            "entity_id": answer.business.profile_business_id,
            "owner": answer.user.user_id,
            "registration": registration,
        }
        ids = {key: business[key] for key in ("business_id", "entity_id")}
        user = self._told(call, answer.user, business_status=_status(answer.business), **ids)
        self._world.add("business", business)
        self._look_at_business(business)
        self._look_at_user(user)

    def _create_user(self, *, taken: bool = False) -> None:
        name = self._fresh()
        email = f"{name}@example.org"
        other = self._taken("user", taken)
        if other is not None:
            email = other["email"]
        request = identity_pb.CreateUserRequest(request_id=name, email=email, person=content.person(name, email))
        call = self._begin("create_user", email=email, name=name, duplicate=str(other is not None))
        answer = self._create(call, self._identity.stub.CreateUser, request)
        if answer is not None:
            self._look_at_user(self._told(call, answer.user))

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
        call = self._begin("invite", email=email, business_id=business["business_id"])
        answer = self._create(call, self._identity.stub.InviteUser, invite)
        if answer is None:
            return
        invitation_id = answer.invitation.invitation_id
        self._history.end(call, Answer.OK, invitation_id=invitation_id)
        accept = identity_pb.AcceptInvitationRequest(
            request_id=f"{name}-accept", invitation_id=invitation_id, person=content.person(name, email)
        )
        call = self._begin(
            "accept", email=email, name=name, business_id=business["business_id"], entity_id=business["entity_id"],
            invitation_id=invitation_id, duplicate="False",
        )  # fmt: skip
        answer = self._create(call, self._identity.stub.AcceptInvitation, accept)
        if answer is not None:
            user = self._told(call, answer.user)
            self._look_at_business(business)
            self._look_at_user(user)

    def _taken(self, kind: str, certainly: bool) -> dict[str, str] | None:
        """Somebody whose address or number is to be asked for a second time."""
        return self._world.one(kind, self._random) if certainly or self._random.random() < DUPLICATES_SHARE else None

    # --- looking ------------------------------------------------------------------------------------------------

    def _read_user(self) -> None:
        user = self._world.one("user", self._random)
        if user is not None:
            self._look_at_user(user)

    def _read_business(self) -> None:
        business = self._world.one("business", self._random)
        if business is not None:
            self._look_at_business(business)

    def _look_at_user(self, user: Mapping[str, str], **asked: str) -> None:
        """At the person first: what was acknowledged a moment ago may still be in doubt there."""
        self._person(user["person_id"], **asked)
        call = self._begin("read_user", id=user["user_id"], **asked)
        answer = self._read(call, self._identity.stub.GetUser, identity_pb.GetUserRequest(user_id=user["user_id"]))
        if answer is not None:
            told = {"value": answer.user.email, "profile": answer.user.person_id, **_standing(answer.user)}
            self._history.end(call, Answer.OK, version="1", people="", **told)

    def _look_at_business(self, business: Mapping[str, str], **asked: str) -> None:
        self._business(business["entity_id"], **asked)
        call = self._begin("read_account", id=business["business_id"], **asked)
        request = identity_pb.GetBusinessRequest(business_id=business["business_id"])
        answer = self._read(call, self._identity.stub.GetBusiness, request)
        if answer is not None:
            members = [f"{member.user_id}:{_role(member.role)}" for member in answer.business.members]
            entity_id = answer.business.profile_business_id
            told = {"value": entity_id, "profile": entity_id, **_standing(answer.business)}
            self._history.end(call, Answer.OK, version="1", people=" ".join(members), **told)

    def _person(self, person_id: str, **asked: str) -> Any | None:
        call = self._begin("read_person", id=person_id, **asked)
        answer = self._read(call, self._profiles.GetPerson, profiles_pb.GetPersonRequest(person_id=person_id))
        if answer is None:
            return None
        person = answer.person
        self._history.end(call, Answer.OK, version=str(person.version), value=person.name.display_name, people="")
        return person

    def _business(self, entity_id: str, **asked: str) -> Any | None:
        call = self._begin("read_business", id=entity_id, **asked)
        answer = self._read(call, self._profiles.GetBusiness, profiles_pb.GetBusinessRequest(business_id=entity_id))
        if answer is None:
            return None
        business = answer.business
        people = " ".join(f"{one.person_id}:{_role(one.role)}" for one in business.people)
        self._history.end(call, Answer.OK, version=str(business.version), value=business.legal_name, people=people)
        return business

    # --- changing -----------------------------------------------------------------------------------------------

    def _update_person(self) -> None:
        user = self._world.one("user", self._random)
        person = self._person(user["person_id"]) if user is not None else None
        if person is None:
            return
        value, version = f"v-{self._fresh()}", str(person.version)
        person.name.display_name = value
        request = profiles_pb.UpdatePersonRequest(person=person, update_mask=FieldMask(paths=["name.display_name"]))
        call = self._begin("update_person", id=person.person_id, version=version, value=value)
        answer = self._change(call, self._profiles.UpdatePerson, request)
        if answer is not None:
            self._history.end(call, Answer.OK, version=str(answer.person.version))
            self._person(person.person_id)

    def _update_business(self) -> None:
        known = self._world.one("business", self._random)
        business = self._business(known["entity_id"]) if known is not None else None
        if business is None:
            return
        value, version = f"v-{self._fresh()} Ltd", str(business.version)
        changed = business_pb2.Business(business_id=business.business_id, version=business.version, legal_name=value)
        request = profiles_pb.UpdateBusinessRequest(business=changed, update_mask=FieldMask(paths=["legal_name"]))
        call = self._begin("update_business", id=business.business_id, version=version, value=value)
        answer = self._change(call, self._profiles.UpdateBusiness, request)
        if answer is not None:
            self._history.end(call, Answer.OK, version=str(answer.business.version))
            self._business(business.business_id)

    # --- shared -------------------------------------------------------------------------------------------------

    def _begin(self, kind: str, **asked: str) -> Call:
        return self._history.begin(self._number, kind, **asked)

    def _create(self, call: Call, method: Callable[..., Any], request: Any) -> Any | None:
        """The answer, asked for until there is one; or None, and the call is ended. Its repeats do no harm."""
        until, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            try:
                return method(request, timeout=CALL_S)
            except grpc.RpcError as caught:
                rpc_error = caught
            error = from_rpc_error(rpc_error)
            wait_s = max(error.retry_after_s or 0.0, pause_s) * self._random.uniform(1.0, 1.25)
            if not may_pass(error) or time.monotonic() + wait_s > min(until, self._stopping.over_at + GRACE_S):
                self._failed(call, error, refused=error.reason not in _PERHAPS)
                return None
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _read(self, call: Call, method: Callable[..., Any], request: Any) -> Any | None:
        """The answer; or None, and the call is ended."""
        answer = self._once(call, method, request, refused=Reason.NOT_FOUND)
        if answer is None:
            time.sleep(0.02)  # nobody is there: not all of a core for asking again
        return answer

    def _change(self, call: Call, method: Callable[..., Any], request: Any) -> Any | None:
        return self._once(call, method, request, refused=Reason.VERSION_MISMATCH)

    def _once(self, call: Call, method: Callable[..., Any], request: Any, *, refused: Reason) -> Any | None:
        try:
            return method(request, timeout=READ_S)
        except grpc.RpcError as caught:
            error = from_rpc_error(caught)
            self._failed(call, error, refused=error.reason is refused)
            return None

    def _failed(self, call: Call, error: TandemError, *, refused: bool) -> None:
        transport = TRANSPORT if error.reason is Reason.INTERNAL and error.message.startswith(_NOT_OURS) else ""
        self._history.end(call, Answer.REFUSED if refused else Answer.UNKNOWN, error.reason.value + transport)

    def _told(self, call: Call, user: Any, **more: str) -> dict[str, str]:
        told = {"user_id": user.user_id, "person_id": user.person_id, "status": _status(user)}
        self._history.end(call, Answer.OK, **told, **more)
        known = {"user_id": user.user_id, "person_id": user.person_id, "email": user.email}
        self._world.add("user", known)
        return known

    def last_look(self) -> None:
        """At some of those who were acknowledged, when everything is quiet. Not while the client runs."""
        with self._connected():
            for user in self._some(self._world.users):
                self._look_at_user(user, when=LAST)
            for business in self._some(self._world.businesses):
                self._look_at_business(business, when=LAST)

    def _some(self, known: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
        return self._random.sample(known, min(LAST_LOOKS, len(known)))

    def _fresh(self) -> str:
        self._made += 1
        return f"c{self._number}n{self._made}"


def _status(account: identity_pb.User | identity_pb.Business) -> str:
    """What the account says of its profile, as its row has it."""
    name = identity_pb.ProfileStatus.Name(account.profile_status)
    return name.removeprefix("PROFILE_STATUS_").lower()


def _standing(account: identity_pb.User | identity_pb.Business) -> dict[str, str]:
    return {"status": _status(account), "why": account.profile_reason}


def _role(role: business_pb2.Role.ValueType) -> str:
    return business_pb2.Role.Name(role).removeprefix("ROLE_").lower()
