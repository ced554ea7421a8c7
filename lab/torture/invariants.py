"""Judges a history against both databases, by SQL; nothing of the product is used to judge it.

These are two-phase's invariants, which the hybrid keeps as well. I4 and I6, about versions, are in `versions.py`; what
designs are held to that bring a profile later is in `eventual.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from lab.torture import content
from lab.torture.faults import Fault, overlapping
from lab.torture.history import Answer, Call
from lab.torture.state import Entity, Role, State, entity_of, person_of
from lab.torture.verdict import AT_ONCE, CREATES, Promise, Verdict, creations
from lab.torture.versions import never_missed, versions

_ENTITIES_OF = {
    "sign_up": {"person": 1, "business": 1, "role": 1},
    "create_user": {"person": 1},
    "accept_invitation": {"person": 1, "role": 1},
}
"""What a request's transaction has staged, all of it or nothing."""

_EXPECTED = {"update_person": {"VERSION_MISMATCH"}, "update_business": {"VERSION_MISMATCH"}}
"""Refusals that need no explanation; a create's is explained by `duplicate`, a read's is I4's."""

TRANSPORT = " (transport)"
"""Behind a reason that no server of ours gave: the connection ended in the middle of the answer."""


def judge(
    calls: Iterable[Call], state: State, faults: Collection[Fault] = (), *, protocol: bool = True
) -> list[Verdict]:
    """I0 to I6. protocol: whether decisions exist at all (not in the control group that has none)."""
    told = list(calls)
    return [
        explained(told, state, faults),
        _both_sides(state, protocol=protocol),
        quiet(state, protocol=protocol),
        _kept(told, state),
        never_missed(told),
        refused(told, state),
        versions(told, state),
    ]


def explained(calls: Sequence[Call], state: State, faults: Collection[Fault], promise: Promise = AT_ONCE) -> Verdict:
    """I0. promise.refused: of which calls what is taken is refused at once."""
    verdict = Verdict("I0", "every answer is one that its call explains, and none is INTERNAL")
    for call in calls:
        verdict.judged += 1
        taken = call.asked.get("duplicate") == "True" and call.kind in promise.refused
        if call.reason == f"INTERNAL{TRANSPORT}":
            if not overlapping(faults, call.began, call.over):
                verdict.add("INTERNAL of the transport, without any fault", call)
        elif call.reason == "INTERNAL":
            verdict.add("INTERNAL", call)
        elif call.answer is Answer.REFUSED and call.kind in (*CREATES, "invite", *_EXPECTED):
            if call.reason not in ({"ALREADY_EXISTS"} if taken else _expected(call, state, promise)):
                verdict.add("nothing spoke against it", call)
        elif call.answer is Answer.OK and taken:
            verdict.add("what is taken was given again", call)
    return verdict


def _expected(call: Call, state: State, promise: Promise) -> set[str]:
    """Reasons for a refusal, where nothing is taken. Nobody joins a business whose profile was rejected."""
    if call.kind == "accept" and not promise.at_once:
        standing = state.accounts.get(UUID(call.asked["business_id"]))
        return {"REFUSED"} if standing is not None and standing.status == "rejected" else set()
    return _EXPECTED.get(call.kind, set())


# --- I1 and I2: the databases alone -------------------------------------------------------------------------------


def _both_sides(state: State, *, protocol: bool) -> Verdict:
    verdict = Verdict(
        "I1", "user exists ⇔ its Person is active; likewise businesses, roles; all or none of a transaction"
    )
    verdict.judged = len(state.persons) + len(state.entities) + len(state.roles)
    known: dict[str, Mapping[Any, Entity]] = {
        "person": state.persons,
        "business": state.entities,
        "role": state.roles,
    }
    for kind, split in state.splits.items():
        for id_ in sorted(split, key=str):
            row = known[kind].get(id_)
            verdict.add(
                f"{kind} {text(id_)} is on one side only: {f'{row.state} at profiles' if row else 'not at profiles'}",
                keys=texts(id_),
                transactions=[row.transaction_id] if row else [],
            )
    held: dict[UUID, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for kind, rows in known.items():
        for row in rows.values():
            held[row.transaction_id][kind].append(row.state)
    for id_, kinds in held.items():
        states = sorted({one for some in kinds.values() for one in some})
        if states != ["active"]:
            verdict.add(f"transaction {id_} is {states}", transactions=[id_])
    if protocol:
        verdict.judged += len(state.decisions) + len(state.prepared)
        _all_or_none(verdict, state, held)
    return verdict


def _all_or_none(verdict: Verdict, state: State, held: dict[UUID, dict[str, list[str]]]) -> None:
    """A committed decision has its own rows and its entities, all of them; an aborted one, or none, has nothing."""
    for id_ in sorted(state.decisions.keys() | state.prepared.keys() | held.keys() | state.requests.keys(), key=str):
        decision, prepared, request = state.decisions.get(id_), state.prepared.get(id_), state.requests.get(id_)
        found = {kind: len(states) for kind, states in held.get(id_, {}).items()}
        committed = decision is not None and decision.outcome == "committed"
        wrong: list[str] = []
        if committed:
            wanted = _ENTITIES_OF[request.kind] if request else None
            if request is None:
                wrong.append("it was committed, and identity has nothing of it")
            elif found != wanted:
                wrong.append(f"it was committed, and profiles has {found} of it instead of {wanted}")
            elif not _own_rows(state, request.user_id, request.business_id):
                wrong.append("it was committed, and what identity wrote has gone")
            if prepared is None or prepared.state != "committed":
                wrong.append(f"it was committed, and the participant's row is {prepared}")
            elif prepared.staged != sum(found.values()):
                wrong.append(f"{prepared.staged} rows were promised, and {sum(found.values())} are there")
        else:
            told = decision.outcome if decision else "not decided"
            if found:
                wrong.append(f"it was {told}, and profiles has {found} of it")
            if request:
                wrong.append(f"it was {told}, and identity has its {request.kind}")
            if prepared is not None and prepared.state == "committed":
                wrong.append(f"it was {told}, and the participant has committed it")
        for one in wrong:
            verdict.add(f"transaction {id_}: {one}", transactions=[id_])


def _own_rows(state: State, user_id: UUID | None, business_id: UUID | None) -> bool:
    return (user_id is None or user_id in state.users) and (business_id is None or business_id in state.businesses)


def quiet(state: State, *, protocol: bool = True) -> Verdict:
    """I2. protocol: whether decisions exist at all."""
    verdict = Verdict("I2", "nothing is prepared, undelivered or parked")
    verdict.judged = len(state.prepared) + (len(state.decisions) if protocol else 0)
    for id_, row in state.prepared.items():
        if row.state == "prepared" or not row.confirmed or row.parked:
            verdict.add(f"transaction {id_} at the participant: {row}", transactions=[id_])
    for id_, decision in state.decisions.items():
        if decision.undelivered or decision.parked:
            verdict.add(f"transaction {id_}: {decision}", transactions=[id_])
    return verdict


# --- I3 and I5: what clients were told ----------------------------------------------------------------------------


def _kept(calls: Sequence[Call], state: State) -> Verdict:
    verdict = Verdict("I3", "what was acknowledged is still there, exactly as acknowledged")
    for call in calls:
        if call.answer is not Answer.OK or call.kind not in (*CREATES, "invite"):
            continue
        verdict.judged += 1
        wrong = invitation_wrong(call, state) if call.kind == "invite" else _creation_wrong(call, state)
        if wrong:
            verdict.add("; ".join(wrong), call)
    _as_asked(verdict, calls, state)
    return verdict


def _as_asked(verdict: Verdict, calls: Sequence[Call], state: State) -> None:
    """What exists though its client was never told holds what it was asked for as well."""
    unknown = {name: call for name, call in creations(calls).items() if call.answer is Answer.UNKNOWN}
    for person_id, row in state.persons.items():
        call = unknown.get(str(row.content.get("given_name")))
        if call is not None:
            wanted = content.person_row(call.asked["name"], call.asked["email"])
            if wrong := row_wrong("person", row, wanted, "display_name"):
                verdict.add("; ".join(wrong), call, keys=[str(person_id)])
    for entity_id, row in state.entities.items():
        call = maker(unknown, row)
        if call is not None and call.kind == "sign_up":
            wanted = content.business_row(call.asked["name"], call.asked["registration"])
            if wrong := row_wrong("business", row, wanted, "legal_name"):
                verdict.add("; ".join(wrong), call, keys=[str(entity_id)])


def invitation_wrong(call: Call, state: State) -> list[str]:
    """What an acknowledged invitation has otherwise."""
    found = state.invitations.get(UUID(call.told["invitation_id"]))
    if found is None:
        return ["the invitation has gone"]
    as_told = (str(found.business_id), found.email, found.role)
    return [] if as_told == (call.asked["business_id"], call.asked["email"], "director") else [f"it is {as_told}"]


def _creation_wrong(call: Call, state: State) -> list[str]:
    user_id, name = UUID(call.told["user_id"]), call.asked["name"]
    wrong = account_wrong(call, state)
    row = content.person_row(name, call.asked["email"])
    wrong += row_wrong("person", state.persons.get(UUID(call.told["person_id"])), row, "display_name")
    if call.kind == "sign_up":
        row = content.business_row(name, call.asked["registration"])
        wrong += row_wrong("business", state.entities.get(UUID(call.told["entity_id"])), row, "legal_name")
        wrong += _role_wrong(state, UUID(call.told["business_id"]), user_id, "owner")
    if call.kind == "accept":
        wrong += _role_wrong(state, UUID(call.asked["business_id"]), user_id, "director")
    return wrong


def account_wrong(call: Call, state: State) -> list[str]:
    """What identity has otherwise than it was acknowledged."""
    wrong: list[str] = []
    user_id = UUID(call.told["user_id"])
    if state.users.get(user_id) != call.asked["email"]:
        wrong.append(f"the user's address is {state.users.get(user_id)}")
    if person_of(user_id) != UUID(call.told["person_id"]):
        wrong.append("the person's id is not the user's")
    if call.kind == "sign_up":
        business_id = UUID(call.told["business_id"])
        if entity_of(business_id) != UUID(call.told["entity_id"]):
            wrong.append("the business's id is not that of identity's")
        if business_id not in state.businesses:
            wrong.append("identity's business has gone")
        if (business_id, user_id, "owner") not in state.members:
            wrong.append("the owner is no member")
    if call.kind == "accept":
        if (UUID(call.asked["business_id"]), user_id, "director") not in state.members:
            wrong.append("the director is no member")
        invitation = state.invitations.get(UUID(call.asked["invitation_id"]))
        if invitation is None or invitation.accepted_by != user_id:
            wrong.append("the invitation does not say who has accepted it")
    return wrong


def row_wrong(kind: str, row: Entity | None, wanted: dict[str, object], updated: str) -> list[str]:
    """What a row has otherwise than it was asked for. updated: the column that I6 judges."""
    if row is None:
        return [f"the {kind} has gone"]
    wrong = [] if row.state == "active" else [f"the {kind} is {row.state}"]
    return wrong + [
        f"the {kind}'s {column} is {row.content.get(column)!r}"
        for column, value in wanted.items()
        if row.content.get(column) != value and not (column == updated and row.version > 1)
    ]


def _role_wrong(state: State, business_id: UUID, user_id: UUID, role: str) -> list[str]:
    entity = state.roles.get((entity_of(business_id), person_of(user_id), role))
    if entity is None or entity.state != "active":
        return [f"the {role}'s role is {entity.state if entity else 'gone'}"]
    return []


def refused(calls: Sequence[Call], state: State, promise: Promise = AT_ONCE) -> Verdict:
    """Everything that exists was asked for by a call that was not refused.

    promise.absent: a business may name an owner whose own profile is not there; whose it is, identity knows.
    """
    verdict = Verdict("I5", "what was refused does not exist")
    made = creations(calls)
    invites = {call.asked["email"]: call for call in calls if call.kind == "invite"}
    verdict.judged = sum(call.answer is Answer.REFUSED for call in (*made.values(), *invites.values()))
    by_address = {call.asked["name"]: call.asked["email"] for call in made.values()}
    owners = {f"{name}@example.org": call for name, call in made.items() if by_address[name].startswith(f"{name}@")}

    def check(what: str, call: Call | None, key: object, kinds: tuple[str, ...], transaction: UUID | None) -> None:
        if call is None or call.answer is Answer.REFUSED or call.kind not in kinds:
            why = "nobody asked for it" if call is None else f"its {call.kind} was {call.answer}"
            verdict.add(
                f"{what} {text(key)} exists: {why}", *([call] if call else []), keys=texts(key),
                transactions=[transaction] if transaction else [],
            )  # fmt: skip

    for user_id, email in state.users.items():
        check("user", owners.get(email), user_id, CREATES, None)
    for person_id, row in state.persons.items():
        check("person", made.get(str(row.content.get("given_name"))), person_id, CREATES, row.transaction_id)
    for entity_id, row in state.entities.items():
        check("business", maker(made, row), entity_id, ("sign_up",), row.transaction_id)
    for invitation_id, invitation in state.invitations.items():
        check("invitation", invites.get(invitation.email), invitation_id, ("invite",), None)
        if invitation.accepted_by is not None:
            check("accepted invitation", owners.get(invitation.email), invitation_id, ("accept",), None)
    people = {person_of(user_id): owners.get(email) for user_id, email in state.users.items() if promise.absent}
    people |= {id_: made.get(str(row.content.get("given_name"))) for id_, row in state.persons.items()}
    for role, row in state.roles.items():
        _check_role(verdict, state, made, people.get(role[1]), role, row)
    return verdict


def _check_role(
    verdict: Verdict, state: State, made: dict[str, Call], call: Call | None, role: Role, row: Entity
) -> None:
    """An owner has signed up with this business, a director has accepted an invitation to it. call: the person's."""
    business = state.entities.get(role[0])
    asked = call is not None and call.answer is not Answer.REFUSED and business is not None
    if asked and call is not None and business is not None:
        if role[2] == "owner":
            asked = call.kind == "sign_up" and maker(made, business) is call
        else:
            asked = call.kind == "accept" and role[2] == "director" and UUID(call.asked["entity_id"]) == role[0]
    if not asked:
        verdict.add(
            f"role {text(role)} exists, and nobody asked for it", *([call] if call else []), keys=texts(role),
            transactions=[row.transaction_id],
        )  # fmt: skip


def maker(made: dict[str, Call], row: Entity) -> Call | None:
    """Whose business it is: by a column that is never updated."""
    names = row.content.get("trade_names")
    return made.get(str(names[0])) if isinstance(names, list) and names else None


def texts(key: object) -> list[str]:
    """The ids in a key."""
    return [str(one) for one in (key if isinstance(key, tuple) else (key,)) if isinstance(one, UUID)]


def text(key: object) -> str:
    """A key as a person reads it."""
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
