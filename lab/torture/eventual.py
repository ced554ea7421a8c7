"""Judges designs whose accounts are there before their profiles: the saga, and update-or-create.

What they share with two-phase is in `invariants.py` and `versions.py`. `Promise` is where the two differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from lab.torture import content
from lab.torture.faults import Fault
from lab.torture.history import Answer, Call
from lab.torture.invariants import account_wrong, explained, invitation_wrong, quiet, refused, row_wrong, text, texts
from lab.torture.state import Entity, Standing, State, entity_of, person_of
from lab.torture.verdict import Promise, Verdict, creations
from lab.torture.versions import never_missed, versions

LAST = "last"
"""What a read is asked with that was made when everything was quiet."""

_NONE = Standing("none")


def judge(calls: Iterable[Call], state: State, faults: Collection[Fault], promise: Promise) -> list[Verdict]:
    """I0 to I8."""
    told = list(calls)
    return [
        explained(told, state, faults, promise),
        agree(state, promise),
        settled(state),
        kept(told, state, promise),
        never_missed(told, promise),
        refused(told, state, promise),
        versions(told, state, promise),
        once(state),
        truthful(told, state),
    ]


# --- I1 and I2: the databases alone -------------------------------------------------------------------------------


def agree(state: State, promise: Promise) -> Verdict:
    """I1: what an account says of its profile is so."""
    without = "rejected or absent" if promise.absent else "rejected, with a reason, and has none"
    verdict = Verdict("I1", f"an account has its profile, or says {without}; no profile is without its account")
    for kind, accounts, rows in _sides(state):
        verdict.judged += len(accounts.keys() | rows.keys())
        for id_, standing in accounts.items():
            for what in _disagreement(standing, rows.get(id_), promise):
                verdict.add(f"{kind} {id_}: its account says {standing.status}, and {what}", keys=[str(id_)])
        for id_, row in rows.items():
            if id_ not in accounts:
                verdict.add(f"{kind} {id_} is {row.state}, without its account", keys=[str(id_)])
    _roles(verdict, state, promise)
    return verdict


def _sides(state: State) -> Iterator[tuple[str, dict[UUID, Standing], Mapping[UUID, Entity]]]:
    """Kind, what accounts say by the ids of their profiles, and the profiles."""
    users = {person_of(id_): state.accounts.get(id_, _NONE) for id_ in state.users}
    businesses = {entity_of(id_): state.accounts.get(id_, _NONE) for id_ in state.businesses}
    yield "person", users, state.persons
    yield "business", businesses, state.entities


def _disagreement(standing: Standing, row: Entity | None, promise: Promise) -> Iterator[str]:
    if row is not None and row.state != "active":
        yield f"it is {row.state}"
    match standing.status:
        case "active":
            if row is None:
                yield "there is none"
        case "rejected":
            if row is not None:
                yield "it is there"
            if not standing.reason:
                yield "there is no reason"
        case "absent" if promise.absent:
            pass  # identity has not seen it made, and somebody may have made it
        case _:
            yield "nothing is on its way any more"


def _roles(verdict: Verdict, state: State, promise: Promise) -> None:
    """An owner comes with the business, whoever joins it later with the own person; nobody else has a role."""
    members = {(entity_of(business), person_of(user), role) for business, user, role in state.members}
    verdict.judged += len(members | state.roles.keys())
    for role in sorted(members, key=str):
        owns = role[2] == "owner"
        made = role[0] in state.entities if owns else promise.roles and role[1] in state.persons
        if made and role not in state.roles:
            verdict.add(f"role {text(role)} is not at profiles", keys=texts(role))
    for role in sorted(state.roles.keys() - members, key=str):
        verdict.add(f"role {text(role)} is at profiles only", keys=texts(role))
    for role, row in state.roles.items():
        if row.state != "active":
            verdict.add(f"role {text(role)} is {row.state}", keys=texts(role))


def settled(state: State) -> Verdict:
    """I2: what two-phase's says, and that nothing has to be told any more."""
    verdict = quiet(state)
    verdict.what = "nothing is on its way: no message in an outbox, no account pending, nothing prepared"
    verdict.judged += len(state.accounts) + len(state.waiting)
    for side, count in state.waiting.items():
        if count:
            verdict.add(f"{count} messages in the outbox of {side}")
    for id_, standing in state.accounts.items():
        if standing.status == "pending":
            verdict.add(f"account {id_} is pending", keys=[str(id_)])
    return verdict


# --- I3: what clients were told -----------------------------------------------------------------------------------


def kept(calls: Sequence[Call], state: State, promise: Promise) -> Verdict:
    """I3, of whatever exists, acknowledged or not."""
    verdict = Verdict("I3", "what was acknowledged is there exactly as asked, or is rejected since it could not be had")
    for call in calls:
        if call.answer is Answer.OK and call.kind == "invite":
            verdict.judged += 1
            if wrong := invitation_wrong(call, state):
                verdict.add("; ".join(wrong), call)
    by_address = {email: user_id for user_id, email in state.users.items()}
    owned = {user: business for business, user, role in state.members if role == "owner"}
    for name, call in creations(calls).items():
        acknowledged = call.answer is Answer.OK
        wrong = account_wrong(call, state) if acknowledged else []
        user_id = by_address.get(call.asked["email"])
        if user_id is not None and call.asked["email"].startswith(f"{name}@"):
            wrong += _profiles_wrong(call, state, user_id, owned.get(user_id), promise)
        verdict.judged += acknowledged
        if wrong:
            verdict.add("; ".join(wrong), call, keys=[str(user_id)] if user_id else [])
    return verdict


def _profiles_wrong(
    call: Call, state: State, user_id: UUID, business_id: UUID | None, promise: Promise
) -> Iterator[str]:
    """What the profiles of an account hold otherwise than its creator asked for, or why there should be one."""
    name, person = call.asked["name"], state.persons.get(person_of(user_id))
    lawful = ("rejected", "absent") if promise.absent else ("rejected",)
    standing = state.accounts.get(user_id, _NONE)
    if person is not None:
        yield from row_wrong("person", person, content.person_row(name, call.asked["email"]), "display_name")
    elif standing.status not in lawful:
        yield "the person has gone"
    elif standing.status == "rejected" and not _may_be_rejected(call, state, standing, promise):
        yield f"the person was rejected ({standing.reason}), and nothing spoke against it"
    if call.kind != "sign_up" or business_id is None:
        return
    business, standing = state.entities.get(entity_of(business_id)), state.accounts.get(business_id, _NONE)
    if business is not None:
        yield from row_wrong("business", business, content.business_row(name, call.asked["registration"]), "legal_name")
    elif standing.status not in lawful:
        yield "the business has gone"
    elif standing.status == "rejected" and not _has_lost(call, state, standing):
        yield f"the business was rejected ({standing.reason}), and nobody has its registration number"


def _may_be_rejected(call: Call, state: State, standing: Standing, promise: Promise) -> bool:
    """Whether a person may have been: with the business of the same event, or with a role in a rejected business.

    Where each is made by itself (promise.absent), nothing can speak against a person.
    """
    if promise.absent:
        return False
    if call.kind == "accept":
        joined = state.accounts.get(UUID(call.asked["business_id"]), _NONE)
        return joined.status == "rejected" and standing.reason == "REFUSED"
    return call.kind == "sign_up" and _has_lost(call, state, standing)


def _has_lost(call: Call, state: State, standing: Standing) -> bool:
    """Whether another business has the number that this one asked for, and the account says so."""
    return standing.reason == "ALREADY_EXISTS" and any(
        row.content.get("registration_number") == call.asked["registration"]
        and row.content.get("trade_names") != [call.asked["name"]]
        for row in state.entities.values()
    )


# --- I7, I8 and I9 --------------------------------------------------------------------------------------------------


def once(state: State) -> Verdict:
    """I7: by profiles' audit, its registration numbers, identity's owners, and the inbox."""
    verdict = Verdict(
        "I7", "nothing was made twice; each event was taken up once, and its accounts say what came of it"
    )
    there = [("person", str(id_)) for id_ in state.persons] + [("business", str(id_)) for id_ in state.entities]
    there += [("business_person", "/".join(map(str, id_))) for id_ in state.roles]
    verdict.judged = len(there) + len(state.requests)
    for kind, id_ in there:
        if state.created[kind, id_] != 1:
            verdict.add(f"{kind} {id_} was created {state.created[kind, id_]} times", keys=id_.split("/"))
    numbers = Counter(str(row.content.get("registration_number")) for row in state.entities.values())
    for number, count in numbers.items():
        if count > 1:
            verdict.add(f"{count} businesses have the registration number {number}")
    for user_id, count in Counter(user for _, user, role in state.members if role == "owner").items():
        if count > 1:
            verdict.add(f"user {user_id} has signed up {count} businesses", keys=[str(user_id)])
    _events(verdict, state)
    return verdict


def _events(verdict: Verdict, state: State) -> None:
    """Each request that had an event to tell: taken up once, with the outcome that its accounts show."""
    taken = defaultdict(list)
    for one in state.taken:
        taken[one.event_id].append(one)
    for id_ in sorted(taken.keys() - state.requests.keys(), key=str):
        verdict.add(f"event {id_} was taken up, and nobody has asked for it")
    for id_, request in state.requests.items():
        if len(taken[id_]) != 1:
            verdict.add(f"event {id_} was taken up {len(taken[id_])} times", keys=texts((request.user_id,)))
            continue
        (one,) = taken[id_]
        said = Standing("active") if one.outcome == "created" else Standing("rejected", one.reason)
        own = [request.user_id, request.business_id if request.kind == "sign_up" else None]
        for account in own:
            if account is not None and state.accounts.get(account) != said:
                found = state.accounts.get(account, _NONE)
                verdict.add(
                    f"event {id_} was {one.outcome} {one.reason}, and account {account} says {found.status}"
                    f" {found.reason}", keys=[str(account)],
                )  # fmt: skip


def truthful(calls: Sequence[Call], state: State) -> Verdict:
    """I8: by every read of an account, and by the last ones of accounts and profiles."""
    verdict = Verdict(
        "I8", "what identity says of a profile is final once it is active or rejected, and true when quiet"
    )
    reads = [call for call in calls if call.kind in ("read_user", "read_account") and call.answer is Answer.OK]
    final: dict[str, list[Call]] = defaultdict(list)
    for call in sorted(reads, key=lambda call: call.over):
        if call.told["status"] in ("active", "rejected"):
            final[call.asked["id"]].append(call)
    for call in reads:
        before = final[call.asked["id"]]
        if before and before[0].over < call.began:
            verdict.judged += 1
            if call.told["status"] != before[0].told["status"]:
                verdict.add(f"it said {before[0].told['status']} before", before[0], call)
    for call in calls:
        if call.asked.get("when") == LAST:
            verdict.judged += 1
            if wrong := _last_wrong(call, state):
                verdict.add(wrong, call)
    return verdict


def _last_wrong(call: Call, state: State) -> str:
    """What is wrong with a read that was made when everything was quiet."""
    if call.answer is Answer.UNKNOWN:
        return "it was not answered, though nothing is broken"
    id_ = UUID(call.asked["id"])
    if call.kind in ("read_user", "read_account"):
        standing = state.accounts.get(id_, _NONE)
        told = Standing(call.told.get("status", "none"), call.told.get("why", ""))
        return "" if told == standing else f"its row says {standing.status} {standing.reason}"
    row = (state.persons if call.kind == "read_person" else state.entities).get(id_)
    there = row is not None and row.state == "active"
    return "" if there == (call.answer is Answer.OK) else f"its row is {row.state if row else 'not there'}"


def unburied(state: State) -> Verdict:
    """I9: nothing that this run does to a message makes it one that can never be taken up."""
    verdict = Verdict("I9", "no message was buried")
    verdict.judged = len(state.letters)
    for topic, count in state.letters.items():
        if count:
            verdict.add(f"{count} messages in {topic}")
    return verdict


def standings(state: State) -> Counter[str]:
    """What accounts say of their profiles, counted."""
    return Counter(standing.status for standing in state.accounts.values())


def orphans(state: State, promise: Promise) -> int:
    """Accounts that should have a profile and have none, and profiles without an account; roles not counted."""
    lawful = ("rejected", "absent") if promise.absent else ("rejected",)
    return sum(
        sum(id_ not in rows and standing.status not in lawful for id_, standing in accounts.items())
        + len(rows.keys() - accounts.keys())
        for _, accounts, rows in _sides(state)
    )
