"""I4 and I6: what reads may tell, and how versions must have come about."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lab.torture.history import Answer, Call
from lab.torture.state import Entity, State
from lab.torture.verdict import AT_ONCE, CREATES, Promise, Verdict, creations

UPDATES = {"update_person": "person", "update_business": "business"}
READS = {"read_person": "person", "read_business": "business", "read_user": "user", "read_account": "account"}
"""Kind of call → of what. A user and an account (identity's business) have no versions: theirs is always 1."""

_PROFILES = {"read_user": "person", "read_account": "business"}
"""Kind of read of an account → what its profile is."""

Thing = tuple[str, str]
"""Of what, and its id."""


@dataclass
class _Known:
    """When which version of one thing was known to somebody, and what each version holds."""

    times: list[float] = field(default_factory=list)
    floors: list[int] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    values: dict[int, str] = field(default_factory=dict)
    people: list[tuple[float, str, Call]] = field(default_factory=list)

    def add(self, call: Call, version: int) -> None:
        """In the order in which they ended. The highest version stays the floor."""
        higher = not self.floors or version > self.floors[-1]
        self.times.append(call.over)
        self.floors.append(version if higher else self.floors[-1])
        self.calls.append(call if higher else self.calls[-1])

    def before(self, began: float) -> tuple[int, Call] | None:
        """The highest version that was known before then, and by which call."""
        at = bisect.bisect_left(self.times, began)
        return (self.floors[at - 1], self.calls[at - 1]) if at else None


def never_missed(calls: Sequence[Call], promise: Promise = AT_ONCE) -> Verdict:
    """A read shows at least what was acknowledged, or read by anybody, before it began; and what was written."""
    known_by = "acknowledged" if promise.at_once else "said to be active, or read,"
    verdict = Verdict("I4", f"no read ever missed what was {known_by} before, or went back")
    known: dict[Thing, _Known] = defaultdict(_Known)
    for call in sorted((call for call in calls if call.answer is Answer.OK), key=lambda call: call.over):
        for thing, version, value in _told(call, promise):
            known[thing].add(call, version)
            if call.kind not in READS:
                known[thing].values[version] = value
        for thing, one in _people(call, promise):
            known[thing].people.append((call.over, one, call))
    for call in calls:
        if call.kind not in READS or call.answer is Answer.UNKNOWN:
            continue
        thing = (READS[call.kind], call.asked["id"])
        floor = known[thing].before(call.began) if thing in known else None
        if floor is None:
            continue
        verdict.judged += 1
        if call.answer is Answer.REFUSED:
            verdict.add("missed", floor[1], call)
            continue
        version = int(call.told["version"])
        if version < floor[0]:
            verdict.add(f"went back from version {floor[0]} to {version}", floor[1], call)
        written = known[thing].values.get(version, call.told["value"])
        if call.told["value"] != written:
            verdict.add(f"version {version} was written as {written!r}", call)
        for since, one, source in known[thing].people:
            if since < call.began and one not in call.told["people"].split():
                verdict.add(f"without {one}", source, call)
    return verdict


def _told(call: Call, promise: Promise) -> Iterator[tuple[Thing, int, str]]:
    """Which version of what an acknowledged call shows to exist, and what that holds.

    Of a profile the account's word is enough: where it says `active`, there is a version 1 at least.
    """
    if call.kind in READS:
        yield (READS[call.kind], call.asked["id"]), int(call.told["version"]), call.told["value"]
        if not promise.at_once and call.told.get("status") == "active":
            yield (_PROFILES[call.kind], call.told["profile"]), 1, ""
    elif call.kind in UPDATES:
        yield (UPDATES[call.kind], call.asked["id"]), int(call.told["version"]), call.asked["value"]
    elif call.kind in CREATES:
        name = call.asked["name"]
        yield ("user", call.told["user_id"]), 1, call.asked["email"]
        if promise.at_once or call.told.get("status") == "active":
            yield ("person", call.told["person_id"]), 1, name
        if call.kind == "sign_up":
            yield ("account", call.told["business_id"]), 1, call.told["entity_id"]
            if promise.at_once or call.told.get("business_status") == "active":
                yield ("business", call.told["entity_id"]), 1, f"{name} Ltd"


def _people(call: Call, promise: Promise) -> Iterator[tuple[Thing, str]]:
    """Who has become what to a business, on both sides; where that takes time, from the first read that shows it."""
    if call.kind in ("sign_up", "accept"):
        ids, role = (call.told, "owner") if call.kind == "sign_up" else (call.asked, "director")
        yield ("account", ids["business_id"]), f"{call.told['user_id']}:{role}"
        if promise.at_once:
            yield ("business", ids["entity_id"]), f"{call.told['person_id']}:{role}"
    elif not promise.at_once and call.kind == "read_business":
        for one in call.told["people"].split():
            yield ("business", call.asked["id"]), one


def versions(calls: Sequence[Call], state: State, promise: Promise = AT_ONCE) -> Verdict:
    """Of each person and business: every version above 1 has exactly one writer, and the last one's value is there."""
    verdict = Verdict("I6", "versions grow by one for each acknowledged update, and no update is lost")
    updates: dict[Thing, list[Call]] = defaultdict(list)
    for call in calls:
        if call.kind in UPDATES and call.answer is not Answer.REFUSED:
            updates[(UPDATES[call.kind], call.asked["id"])].append(call)
            verdict.judged += call.answer is Answer.OK
    things: dict[Thing, tuple[Entity | None, str]] = dict.fromkeys(updates, (None, ""))
    for call in (*creations(calls).values(), *(() if promise.at_once else calls)):
        if call.answer is Answer.OK:
            things |= {thing: (None, "") for thing, _, _ in _told(call, promise) if thing[0] in _PROFILES.values()}
    for person_id, row in state.persons.items():
        things["person", str(person_id)] = (row, str(row.content.get("display_name")))
    for entity_id, row in state.entities.items():
        things["business", str(entity_id)] = (row, str(row.content.get("legal_name")))
    for thing, (found, value) in things.items():
        _one(verdict, thing, found, value, updates[thing])
    return verdict


def _one(verdict: Verdict, thing: Thing, row: Entity | None, value: str, some: list[Call]) -> None:
    told: dict[int, Call] = {}
    perhaps: dict[int, list[Call]] = defaultdict(list)  # an update makes the version after the one that it has read
    what, keys = " ".join(thing), [thing[1]]
    for call in some:
        after = int(call.asked["version"]) + 1
        if call.answer is Answer.UNKNOWN:
            perhaps[after].append(call)
            continue
        version = int(call.told["version"])
        if version != after:
            verdict.add("not by one", call)
        if version in told:
            verdict.add(f"two updates made version {version}", told[version], call)
        told[version] = call
    if row is None:
        verdict.add(f"{what} has gone", keys=keys)
        return
    transactions = [row.transaction_id]
    if row.version < max(told, default=1):
        verdict.add(f"{what} is back at version {row.version}", told[max(told)], keys=keys, transactions=transactions)
    for version in range(2, row.version + 1):
        if version not in told and not perhaps[version]:
            verdict.add(
                f"{what} is at version {row.version}, and nobody wrote {version}", keys=keys, transactions=transactions
            )
            return  # one is enough
    if row.version > 1:
        writers = [told[row.version]] if row.version in told else perhaps[row.version]
        if value not in {call.asked["value"] for call in writers}:
            verdict.add(
                f"{what}: version {row.version} holds {value!r}, which its writer did not write", *writers, keys=keys,
                transactions=transactions,
            )  # fmt: skip
