"""What must hold in every world, and what must stay possible in each."""

from __future__ import annotations

from lab.model.world import ABORTED, NOTHING, Scenario, World
from tandem.coordinator.transaction import Phase


def broken(s: Scenario, w: World) -> str:
    """The promise that this world breaks, or ""."""
    for place, (t, p) in enumerate(s.places):
        code, fate = w.parts[place], w.fate[t]
        listed = s.drivers[fate].writes.get(p) if fate >= 0 else None
        if code[:1] == "c" and code[1:] != listed:
            return "a participant has published what was not decided"
        if code[:1] == "a" and listed is not None:
            return "a participant has discarded what was committed"
    for d, driver in enumerate(s.drivers):
        fate = w.fate[driver.transaction]
        mine = fate >= 0 and s.drivers[fate].writes == driver.writes
        if w.own & 1 << d and fate not in (NOTHING, d):
            return "own rows exist without their decision"
        if w.drivers[d] is Phase.COMMITTED and not mine:
            return "a driver has said committed, and it is not so"
        if w.drivers[d] is Phase.ABORTED and mine:
            return "a driver has said aborted, and it is not so"
    if s.same_entity:
        for p in range(s.participants):
            held = [place for place, (_, p_) in enumerate(s.places) if p_ == p and w.parts[place][:1] in ("p", "c")]
            if len(held) > 1:
                return "two transactions hold one entity"
    return ""


def finished(s: Scenario, w: World) -> bool:
    """Whether nothing is left to be done by anybody but a person: nothing prepared that isn't parked, all delivered."""
    return (
        all(code[:1] != "p" or w.parked & 1 << place for place, code in enumerate(w.parts))
        and not any(w.undelivered)
        and all(pending == -1 for pending in w.pending)
        and all(w.fate[t] in (NOTHING, ABORTED) or _published(s, w, t) for t in range(s.transactions))
    )


def _published(s: Scenario, w: World, t: int) -> bool:
    """Whether what was committed is active everywhere, or was, before it was purged."""
    return all(w.net & s.messages["ack", t, p] for p in s.drivers[w.fate[t]].writes)
