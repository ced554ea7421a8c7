"""A history and both databases that agree, made by hand; tests then spoil one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from lab.torture import content
from lab.torture.designs import designs
from lab.torture.faults import Fault
from lab.torture.history import Answer, Call
from lab.torture.invariants import judge
from lab.torture.state import (
    Decision,
    Entity,
    Invitation,
    Prepared,
    Request,
    Standing,
    State,
    Taken,
    entity_of,
    person_of,
)
from lab.torture.verdict import CREATES

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """A database's time."""
    return START + timedelta(seconds=seconds)


def since(moment: datetime) -> float:
    """The reverse of `at`."""
    return (moment - START).total_seconds()


class Scene:
    """Each method is a call that went well and what it left; each call takes 0.1 s."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.state = State()
        self.faults: list[Fault] = []
        self.now = 0.0

    def broken(self, *, protocol: bool = True) -> dict[str, list[str]]:
        """Invariant → what breaks it."""
        verdicts = judge(self.calls, self.state, self.faults, protocol=protocol)
        assert len(verdicts) == 7
        return {verdict.name: [breach.what for breach in verdict.broken] for verdict in verdicts if verdict.broken}

    def call(
        self, kind: str, answer: Answer, reason: str = "", *, told: dict[str, str] | None = None, **asked: str
    ) -> Call:
        """Any call."""
        call = Call(0, kind, asked, self.now, self.now + 0.1, answer, reason, told or {})
        self.calls.append(call)
        self.now += 0.2
        return call

    def lost_invitation(self, owner: Call) -> Call:
        """One that was acknowledged, and left nothing."""
        told = {"invitation_id": str(uuid4())}
        asked = {"email": "b@example.org", "business_id": owner.told["business_id"]}
        return self.call("invite", Answer.OK, told=told, **asked)

    def transaction(self, kind: str, user_id: UUID | None, business_id: UUID | None, *, staged: int) -> UUID:
        """One that was committed on both sides."""
        id_ = uuid4()
        self.state.requests[id_] = Request(kind, user_id, business_id)
        self.state.decisions[id_] = Decision("committed", at(self.now))
        self.state.prepared[id_] = Prepared("committed", True, staged, at(self.now), at(self.now), "coordinator")
        return id_

    def user(self, name: str) -> Call:
        """A user without a business."""
        user_id, email = uuid4(), f"{name}@example.org"
        transaction_id = self.transaction("create_user", user_id, None, staged=1)
        self.person(user_id, name, transaction_id)
        told = {"user_id": str(user_id), "person_id": str(person_of(user_id))}
        return self.call("create_user", Answer.OK, told=told, name=name, email=email, duplicate="False")

    def owner(self, name: str) -> Call:
        """A user with a business."""
        user_id, business_id, email = uuid4(), uuid4(), f"{name}@example.org"
        entity_id = entity_of(business_id)
        transaction_id = self.transaction("sign_up", user_id, business_id, staged=3)
        self.person(user_id, name, transaction_id)
        self.state.businesses.add(business_id)
        row = content.business_row(name, name.upper())
        self.state.entities[entity_id] = Entity("active", transaction_id, 1, row)
        self.role(business_id, user_id, "owner", transaction_id)
        told = {
            "user_id": str(user_id), "person_id": str(person_of(user_id)), "business_id": str(business_id),
            "entity_id": str(entity_id),
        }  # fmt: skip
        asked = {"name": name, "email": email, "registration": name.upper(), "duplicate": "False"}
        return self.call("sign_up", Answer.OK, told=told, **asked)

    def invited(self, owner: Call, name: str) -> tuple[Call, Call]:
        """An invitation and its acceptance."""
        invitation_id, user_id, email = uuid4(), uuid4(), f"{name}@example.org"
        business_id = UUID(owner.told["business_id"])
        invite = self.call(
            "invite", Answer.OK, told={"invitation_id": str(invitation_id)}, email=email, business_id=str(business_id)
        )
        transaction_id = self.transaction("accept_invitation", user_id, business_id, staged=2)
        self.person(user_id, name, transaction_id)
        self.role(business_id, user_id, "director", transaction_id)
        self.state.invitations[invitation_id] = Invitation(business_id, email, "director", user_id)
        accept = self.call(
            "accept", Answer.OK, told={"user_id": str(user_id), "person_id": str(person_of(user_id))}, name=name,
            email=email, business_id=str(business_id), entity_id=owner.told["entity_id"],
            invitation_id=str(invitation_id), duplicate="False",
        )  # fmt: skip
        return invite, accept

    def person(self, user_id: UUID, name: str, transaction_id: UUID) -> None:
        """A user on both sides."""
        self.state.users[user_id] = f"{name}@example.org"
        row = content.person_row(name, f"{name}@example.org")
        self.state.persons[person_of(user_id)] = Entity("active", transaction_id, 1, row)

    def role(self, business_id: UUID, user_id: UUID, role: str, transaction_id: UUID) -> None:
        """A role on both sides."""
        self.state.members.add((business_id, user_id, role))
        self.state.roles[entity_of(business_id), person_of(user_id), role] = Entity("active", transaction_id)

    def update(self, person_id: str, version: int, value: str, answer: Answer = Answer.OK, told: int = 0) -> Call:
        """An update of a person; what is stored is left to `stored`."""
        answered = {"version": str(told or version + 1)} if answer is Answer.OK else {}
        reason = "VERSION_MISMATCH" if answer is Answer.REFUSED else ""
        return self.call(
            "update_person", answer, reason, told=answered, id=person_id, version=str(version), value=value
        )

    def stored(self, person_id: str, version: int, value: str) -> None:
        """What the person's row holds now."""
        row = self.state.persons[UUID(person_id)]
        changed = {**row.content, "display_name": value}
        self.state.persons[UUID(person_id)] = replace(row, version=version, content=changed)

    def read(self, kind: str, id_: str, answer: Answer = Answer.OK, *, version: int = 1, value: str = "",
             people: Sequence[str] = ()) -> Call:  # fmt: skip
        """A read of anything."""
        told = {"version": str(version), "value": value, "people": " ".join(people)} if answer is Answer.OK else {}
        return self.call(kind, answer, "NOT_FOUND" if answer is Answer.REFUSED else "", told=told, id=id_)


class LaterScene(Scene):
    """The same under a design that makes accounts first: calls are told `pending`, and profiles have come meanwhile."""

    def __init__(self, design: str) -> None:
        super().__init__()
        self._judge = designs()[design].judge
        self._has_events = design == "saga"
        self.state.waiting = {"identity": 0, "profiles": 0}

    def found(self) -> dict[str, list[str]]:
        """Invariant → what breaks it."""
        verdicts = self._judge(self.calls, self.state, self.faults)
        return {verdict.name: [breach.what for breach in verdict.broken] for verdict in verdicts if verdict.broken}

    def judged(self) -> dict[str, int]:
        """Invariant → how many items it judged."""
        return {verdict.name: verdict.judged for verdict in self._judge(self.calls, self.state, self.faults)}

    def transaction(self, kind: str, user_id: UUID | None, business_id: UUID | None, *, staged: int) -> UUID:
        """An event, where there are any, that was taken up."""
        id_ = uuid4()
        for account in (user_id, business_id if kind == "sign_up" else None):
            if account is not None:
                self.state.accounts[account] = Standing("active")
        if self._has_events:
            self.state.requests[id_] = Request(kind, user_id, business_id)
            self.state.taken.append(Taken(id_, "created"))
        return id_

    def call(
        self, kind: str, answer: Answer, reason: str = "", *, told: dict[str, str] | None = None, **asked: str
    ) -> Call:
        """Any call; a create is told that its profiles are on their way."""
        pending = {"status": "pending", "business_status": "pending"} if kind in CREATES and told else {}
        return super().call(kind, answer, reason, told=pending | (told or {}), **asked)

    def owner(self, name: str) -> Call:
        """As ever, and the business was created."""
        call = super().owner(name)
        self.state.created["business", call.told["entity_id"]] = 1
        return call

    def person(self, user_id: UUID, name: str, transaction_id: UUID) -> None:
        """As ever, and the person was created."""
        super().person(user_id, name, transaction_id)
        self.state.created["person", str(person_of(user_id))] = 1

    def role(self, business_id: UUID, user_id: UUID, role: str, transaction_id: UUID) -> None:
        """As ever, and the role was created."""
        super().role(business_id, user_id, role, transaction_id)
        self.state.created["business_person", f"{entity_of(business_id)}/{person_of(user_id)}/{role}"] = 1

    def account(self, kind: str, of: Call, status: str, *, why: str = "", when: str = "") -> Call:
        """A read of the account of a user ("user_id") or business ("business_id"): what it says of its profile."""
        reads = {"user_id": ("read_user", "email", "person_id"), "business_id": ("read_account", "", "entity_id")}
        read, value, profile = reads[kind]
        told = {"version": "1", "value": of.asked[value] if value else of.told[profile], "profile": of.told[profile]}
        people = f"{of.told['user_id']}:owner" if kind == "business_id" else ""
        asked = {"id": of.told[kind]} | ({"when": when} if when else {})
        return self.call(read, Answer.OK, told=told | {"people": people, "status": status, "why": why}, **asked)

    def unmade(self, of: Call, status: str, reason: str = "") -> None:
        """The profiles of a create are not there, and its accounts say so."""
        user_id, business_id = UUID(of.told["user_id"]), of.told.get("business_id")
        self.state.persons.pop(person_of(user_id), None)
        self.state.accounts[user_id] = Standing(status, reason)
        if business_id is not None:
            self.state.entities.pop(entity_of(business_id), None)
            self.state.accounts[UUID(business_id)] = Standing(status, reason)
        self.state.roles = {role: row for role, row in self.state.roles.items() if role[1] != person_of(user_id)}
        for id_, request in self.state.requests.items():
            if request.user_id == user_id and status == "rejected":
                self.state.taken = [
                    replace(one, outcome="rejected", reason=reason) if one.event_id == id_ else one
                    for one in self.state.taken
                ]
