"""Judges a history against both databases, by SQL; nothing of the product is used to judge it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID

from lab.checks import NAMESPACE_IDENTITY, NAMESPACE_IDENTITY_BUSINESS, Databases, uuid5
from lab.torture.history import Answer, Call, History

CREATES = ("sign_up", "create_user", "accept")


@dataclass
class Verdict:
    """One invariant: what breaks it, in words, with the calls concerned."""

    name: str
    what: str
    broken: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing breaks it."""
        return not self.broken


@dataclass
class State:
    """Both databases after quiet."""

    users: dict[UUID, str]
    businesses: set[UUID]
    members: set[tuple[UUID, UUID, str]]
    persons: dict[UUID, tuple[str, int, str, UUID]]
    entities: dict[UUID, tuple[str, UUID]]
    roles: dict[tuple[UUID, UUID, str], tuple[str, UUID]]
    outcomes: dict[UUID, str]

    @property
    def orphans(self) -> int:
        """Users without a Person, Persons without a user, and likewise for businesses and roles."""
        return sum(len(some) for some in _splits(self))


def read(databases: Databases) -> State:
    """What both databases hold now."""

    def table(database: str, sql: str) -> list[tuple[object, ...]]:
        return databases.rows(database, sql)

    return State(
        users=dict(table("identity", "SELECT user_id, email FROM identity.users")),  # type: ignore[arg-type]
        businesses={row[0] for row in table("identity", "SELECT business_id FROM identity.businesses")},  # type: ignore[misc]
        members=set(table("identity", "SELECT business_id, user_id, role FROM identity.members")),  # type: ignore[arg-type]
        persons={
            row[0]: row[1:]  # type: ignore[misc]
            for row in table(
                "profiles", "SELECT person_id, state, version, display_name, transaction_id FROM profiles.person"
            )
        },
        entities={
            row[0]: row[1:]  # type: ignore[misc]
            for row in table("profiles", "SELECT business_id, state, transaction_id FROM profiles.business")
        },
        roles={
            row[:3]: row[3:]  # type: ignore[misc]
            for row in table(
                "profiles", "SELECT business_id, person_id, role, state, transaction_id FROM profiles.business_person"
            )
        },
        outcomes=dict(table("identity", "SELECT transaction_id, outcome FROM twophase.decision")),  # type: ignore[arg-type]
    )


def judge(history: History, state: State, databases: Databases, *, protocol: bool = True) -> list[Verdict]:
    """I1 to I6. protocol: whether decisions exist at all (not in the control group that has none)."""
    calls = [call for call in history if call.ended is not None]
    return [
        _both_sides(state, protocol=protocol),
        _quiet(databases),
        _kept(calls, state),
        _never_missed(calls),
        _refused(calls, state),
        _versions(calls, state),
    ]


def _splits(state: State) -> tuple[set[object], ...]:
    persons = {uuid5(NAMESPACE_IDENTITY, str(user_id)) for user_id in state.users}
    entities = {uuid5(NAMESPACE_IDENTITY_BUSINESS, str(business_id)) for business_id in state.businesses}
    roles = {
        (uuid5(NAMESPACE_IDENTITY_BUSINESS, str(b)), uuid5(NAMESPACE_IDENTITY, str(u)), role)
        for b, u, role in state.members
    }
    active = {id_ for id_, row in state.persons.items() if row[0] == "active"}
    active_entities = {id_ for id_, row in state.entities.items() if row[0] == "active"}
    active_roles = {id_ for id_, row in state.roles.items() if row[0] == "active"}
    return persons ^ active, entities ^ active_entities, roles ^ active_roles


def _both_sides(state: State, *, protocol: bool) -> Verdict:
    verdict = Verdict(
        "I1", "user exists ⇔ its Person is active; likewise businesses, roles; all or none of a transaction"
    )
    for kind, split in zip(("person", "business", "role"), _splits(state), strict=True):
        verdict.broken += [f"{kind} {id_} is on one side only" for id_ in sorted(split, key=str)]
    states: dict[UUID, set[str]] = defaultdict(set)
    for row in (*state.persons.values(), *state.entities.values(), *state.roles.values()):
        states[row[-1]].add(row[0])  # type: ignore[index,arg-type]
    verdict.broken += [f"transaction {id_} is {sorted(some)}" for id_, some in states.items() if len(some) > 1]
    if protocol:
        verdict.broken += [
            f"transaction {id_} is active, and was decided {state.outcomes.get(id_)}"
            for id_ in states
            if state.outcomes.get(id_) != "committed"
        ]
    return verdict


def _quiet(databases: Databases) -> Verdict:
    verdict = Verdict("I2", "nothing is prepared, undelivered or parked")
    if count := databases.in_doubt():
        verdict.broken.append(f"{count} prepared or unconfirmed")
    if count := databases.undelivered():
        verdict.broken.append(f"{count} undelivered or parked")
    return verdict


def _kept(calls: Iterable[Call], state: State) -> Verdict:
    verdict = Verdict("I3", "what was acknowledged is still there, exactly as acknowledged")
    for call in calls:
        if call.kind not in CREATES or call.answer is not Answer.OK:
            continue
        person_id = UUID(call.told["person_id"])
        person = state.persons.get(person_id)
        wrong = [
            state.users.get(UUID(call.told["user_id"])) != call.asked["email"],
            uuid5(NAMESPACE_IDENTITY, call.told["user_id"]) != person_id,
            person is None or person[0] != "active",
            person is not None and person[1] == 1 and person[2] != call.asked["name"],
        ]
        if "business_id" in call.told:
            entity_id = UUID(call.told["entity_id"])
            wrong.append(UUID(call.told["business_id"]) not in state.businesses)
            wrong.append(state.entities.get(entity_id, ("",))[0] != "active")
            wrong.append((entity_id, person_id, "owner") not in state.roles)
        if call.kind == "accept":
            wrong.append((UUID(call.asked["entity_id"]), person_id, "director") not in state.roles)
        if any(wrong):
            verdict.broken.append(str(call))
    return verdict


def _never_missed(calls: Iterable[Call]) -> Verdict:
    verdict = Verdict("I4", "no read after an acknowledged signup ever missed it")
    acknowledged: dict[str, float] = {}
    for call in calls:
        if call.kind in CREATES and call.answer is Answer.OK and call.ended is not None:
            acknowledged[call.told["person_id"]] = call.ended
    for call in calls:
        if call.kind == "read" and call.answer is Answer.REFUSED:
            since = acknowledged.get(call.asked["person_id"])
            if since is not None and since < call.began:
                verdict.broken.append(f"{call}, acknowledged at {since:.3f} s")
    return verdict


def _refused(calls: Iterable[Call], state: State) -> Verdict:
    verdict = Verdict("I5", "what was refused does not exist")
    emails, names = set(state.users.values()), {row[2] for row in state.persons.values() if row[1] == 1}
    for call in calls:
        if call.kind not in CREATES or call.answer is not Answer.REFUSED:
            continue
        own_email = call.asked["email"].startswith(f"{call.asked['name']}@")
        if call.asked["name"] in names or (own_email and call.asked["email"] in emails):
            verdict.broken.append(str(call))
    return verdict


def _versions(calls: Iterable[Call], state: State) -> Verdict:
    verdict = Verdict("I6", "versions grow by one for each acknowledged update, and no update is lost")
    updates: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.kind == "update":
            updates[call.asked["person_id"]].append(call)
    for person_id, some in updates.items():
        person = state.persons.get(UUID(person_id))
        acknowledged = [call for call in some if call.answer is Answer.OK]
        perhaps = [call for call in some if call.answer is Answer.UNKNOWN]
        by_version = {int(call.told["version"]): call for call in acknowledged}
        for call in acknowledged:
            if int(call.told["version"]) != int(call.asked["version"]) + 1:
                verdict.broken.append(f"not by one: {call}")
        if len(by_version) != len(acknowledged):
            verdict.broken.append(f"one version twice, of {person_id}")
        if person is None:
            verdict.broken.append(f"{person_id} has gone")
            continue
        version, value = person[1], person[2]
        if not 1 + len(acknowledged) <= version <= 1 + len(acknowledged) + len(perhaps):
            verdict.broken.append(
                f"{person_id} is at version {version} after {len(acknowledged)} acknowledged and {len(perhaps)} unknown"
            )
        writers = [by_version[version]] if version in by_version else perhaps
        if version > 1 and value not in {call.asked["value"] for call in writers}:
            verdict.broken.append(f"{person_id}: version {version} holds what nobody wrote there")
    return verdict
