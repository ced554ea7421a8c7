"""The history that belongs to a breach: the calls concerned, both sides' rows, and the faults that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from lab.torture.faults import Fault, overlapping
from lab.torture.history import Call
from lab.torture.state import State, entity_of, person_of
from lab.torture.verdict import Breach

CALLS_SHOWN = 30
IDENTIFYING = ("id", "name", "email", "user_id", "person_id", "business_id", "entity_id", "invitation_id")
"""What of a call names whom it is about."""


def of(breach: Breach, calls: Sequence[Call], state: State, faults: Iterable[Fault]) -> list[str]:
    """Lines to print below the breach."""
    transactions = set(breach.transactions)
    keys = {key for call in breach.calls for key in _keys(call)} | set(breach.keys)
    for id_ in transactions:
        request = state.requests.get(id_)
        if request is not None and request.user_id is not None:
            keys |= {str(request.user_id), str(person_of(request.user_id))}
        if request is not None and request.business_id is not None:
            keys |= {str(request.business_id), str(entity_of(request.business_id))}
        keys |= {
            str(key) for key, row in (*state.persons.items(), *state.entities.items()) if row.transaction_id == id_
        }
    keys |= _names(keys, state)
    concerned = [call for call in calls if keys & _keys(call)]
    transactions |= _transactions(keys, state)
    lines = [f"    {call}" for call in concerned[:CALLS_SHOWN]]
    if len(concerned) > CALLS_SHOWN:
        lines.append(f"    … and {len(concerned) - CALLS_SHOWN} more calls")
    for id_ in sorted(transactions, key=str):
        if state.taken:  # a saga has events, and no decisions
            came = [f"{one.outcome} {one.reason}".strip() for one in state.taken if one.event_id == id_]
            lines.append(f"    inbox's row of {id_}: {', '.join(came) or 'none'}")
            continue
        lines.append(f"    decision of {id_}: {state.decisions.get(id_) or 'none'}")
        lines.append(f"    participant's row of {id_}: {state.prepared.get(id_) or 'none'}")
    if concerned:
        began, over = min(call.began for call in concerned), max(call.over for call in concerned)
        lines += [f"    fault {fault}" for fault in overlapping(faults, began, over)]
    return lines


def _keys(call: Call) -> set[str]:
    return {values[key] for values in (call.asked, call.told) for key in IDENTIFYING if values.get(key)}


def _names(keys: set[str], state: State) -> set[str]:
    """The names in the rows of these ids: of calls that were never told an id."""
    found: set[str] = set()
    for key in keys:
        try:
            id_ = UUID(key)
        except ValueError:
            continue
        if id_ in state.persons:
            found.add(str(state.persons[id_].content.get("given_name")))
        names = state.entities[id_].content.get("trade_names") if id_ in state.entities else None
        found |= {str(name) for name in names} if isinstance(names, list) else set()
    return found


def _transactions(keys: set[str], state: State) -> set[UUID]:
    rows = (*state.persons.items(), *state.entities.items())
    made = {row.transaction_id for id_, row in rows if str(id_) in keys}
    return made | {
        id_
        for id_, request in state.requests.items()
        if keys & {str(one) for one in (request.user_id, request.business_id) if one is not None}
    }
