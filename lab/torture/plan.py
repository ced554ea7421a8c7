"""What the nemesis will do: two endless lists of steps, made of nothing but a seed. Pure.

Each list begins with faults that every run must have met, so that a short one shows more than luck; then it is random.
While a step lasts nobody else touches its victims, so at most two faults last at a time, and never on one victim: the
other lane passes over what it can't have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from identity_stub.client import CALL_S
from lab.torture.faults import Family
from lab.torture.house import BROKER, CLIENT_WIRES, DATABASES, INNER_WIRES, SERVICES, TTL_S
from profiles_server.resolving import RESOLVE_S
from tandem.coordinator import driver, recovery
from tandem.participant import sweeper
from tandem.runtime.database import CONNECT_TIMEOUT_S
from tandem.runtime.server import DEFAULT_DEADLINE_S

LANES = 2
LONG_RUN_S = 120.0
"""From here on a run has time for pauses that are longer than every timeout."""

PATIENCE_S = 25.0
"""How long a client repeats one request before it goes away without knowing how it ended."""

TCP_USER_TIMEOUT_S = 15.0
"""A connection to PostgreSQL whose bytes nobody acknowledges (tandem.runtime.database, where it has no name)."""

KEEPALIVE_S = 20.0 + 5.0
"""A connection of gRPC that says nothing, and its probe (tandem.runtime.channel, where they have no names)."""

LONGEST_PAUSE_S = 5.0 + max(
    CALL_S,
    CONNECT_TIMEOUT_S,
    DEFAULT_DEADLINE_S,
    KEEPALIVE_S,
    PATIENCE_S,
    RESOLVE_S,
    TCP_USER_TIMEOUT_S,
    TTL_S,
    driver.SETTLE_S + driver.CONFIRM_S + driver.ABORT_S,
    recovery.LEASE_S,
    sweeper.LEASE_S,
)
"""Longer than every timeout of the product and of its clients."""

BEYOND_TTL_S = TTL_S + 8.0
"""Longer than the ttl, a sweep and the time that it takes to leave something in doubt."""

PAUSES_S = (0.2, 1.0, 3.0, 9.0)
"""The other ones, shorter than one timeout and longer than another."""

PAUSE_WEIGHTS = (4, 4, 3, 2, 1, 1)
"""The long ones are rare: nothing else can be done to their victims meanwhile."""

CALM_S = (0.1, 1.0)
"""Between two steps of a lane."""

TROUBLES = ("silence", "replies swallowed", "everything 0.3 s late")
"""What a wire can be made to do for a while. `cut` and `repeat` are further ones."""


@dataclass(frozen=True)
class Point:
    """Where a process can be made to die. after: the point of identity that leaves something in doubt for it first.

    within_s: how long it may live then. passings: at most so many of them are let pass first.
    """

    service: str
    name: str
    within_s: float = 3.0
    passings: int = 20
    after: str = ""


POINTS = (
    *(Point("identity", f"driver.{name}") for name in (
        "before_prepare", "after_block", "after_votes", "after_insert", "after_local_commit", "after_commit")),
    *(Point("profiles", f"participant.{name}") for name in (
        "before_stage", "after_stage", "after_prepare", "before_publish", "after_commit")),
)  # fmt: skip
"""Those that every signup passes."""

_COMMITTED, _UNDECIDED = "driver.after_local_commit", "driver.after_votes"
_SWEPT_S, _PUSHED_S, _READ_S = TTL_S + 3.0, 12.0, 5.0

RARE_POINTS = (
    Point("coordinator", "recovery.after_claim", _READ_S, 1, _COMMITTED),
    Point("coordinator", "recovery.after_commit", _READ_S, 1, _COMMITTED),
    Point("profiles", "reader.after_resolve", _READ_S, 1, _COMMITTED),
    Point("profiles", "reader.after_apply", _READ_S, 1, _COMMITTED),
    Point("coordinator", "coordinator.after_fence", _SWEPT_S, 1, _UNDECIDED),
    Point("profiles", "sweeper.after_claim", _SWEPT_S, 1, _UNDECIDED),
    Point("profiles", "sweeper.after_resolve", _SWEPT_S, 1, _UNDECIDED),
    Point("profiles", "sweeper.after_apply", _SWEPT_S, 1, _UNDECIDED),
    Point("profiles", "push.after_resolve", _PUSHED_S, 1, _UNDECIDED),
    Point("profiles", "push.after_apply", _PUSHED_S, 1, _UNDECIDED),
)
"""Those of whoever ends what is in doubt: recovery, readers, the sweeper, a Prepare that pushes, the coordinator."""


@dataclass(frozen=True)
class Targets:
    """What can be broken. inner_wires: between services. points: where processes can die on the way of every signup.

    still, still_s: who stands still in the beginning, and for how long (None: for as long as ever in this run).
    dies_at: the point at which identity dies then, between its own side and the other. slow: the wire that is slow.
    """

    services: tuple[str, ...]
    inner_wires: tuple[str, ...]
    points: tuple[Point, ...]
    rare_points: tuple[Point, ...]
    still: str
    dies_at: str
    slow: str
    still_s: float | None = None
    has_broker: bool = False

    @property
    def broker_wires(self) -> tuple[str, ...]:
        """From each service that has to do with the broker to it."""
        return tuple(f"{name} to {BROKER}" for name in ("identity", "profiles")) if self.has_broker else ()

    @property
    def database_wires(self) -> tuple[str, ...]:
        """From each service to its database."""
        return tuple(f"{service} to its database" for service in self.services)

    @property
    def wires(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.inner_wires, *self.database_wires, *CLIENT_WIRES, *self.broker_wires)

    @property
    def victims(self) -> tuple[str, ...]:
        """Everything."""
        return (*self.services, *DATABASES, *self.wires, *((BROKER,) if self.has_broker else ()))

    @property
    def families(self) -> tuple[Family, ...]:
        """Those that every run must meet."""
        return tuple(family for family in Family if family is not Family.BROKER or self.has_broker)


TWO_PHASE = Targets(
    SERVICES, INNER_WIRES, POINTS, RARE_POINTS, still="coordinator", dies_at=_COMMITTED, slow="identity to profiles"
)


@dataclass(frozen=True)
class Step:
    """One thing to do, `calm_s` after the one before. victims: what nobody else may touch meanwhile.

    what: kill, kill at, pause, kill database, pause database, kill broker, pause broker, redeliver, cut, cut at insert,
    repeat, or one of TROUBLES. A broker that loses what it has acknowledged is stopped for `seconds` instead of killed.
    """

    what: str
    family: Family
    victims: tuple[str, ...]
    calm_s: float
    seconds: float = 0.0
    point: Point | None = None
    passing: int = 1


def steps(seed: int, lane: int, *, run_s: float, targets: Targets = TWO_PHASE) -> Iterator[Step]:
    """What a lane (0 or 1) does, for ever. run_s: only long runs have the longest pauses."""
    chance = random.Random(f"{seed} {lane}")
    pauses = (*PAUSES_S, BEYOND_TTL_S, *((LONGEST_PAUSE_S,) if run_s >= LONG_RUN_S else ()))
    yield from _opening(chance, lane, pauses[-1], targets)
    while True:
        yield _any(chance, pauses, targets)


def _opening(chance: random.Random, lane: int, longest_s: float, targets: Targets) -> Iterator[Step]:
    """One of each family, and what naive code can't survive.

    While the coordinator stands still for longer than the ttl, identity dies after its local commit (a sweeper that
    deletes by age loses that profile), and loses its database at the INSERT of a user (a dual write has made the
    profile by then). Other designs have somebody else stand still, and a place of their own to die at.
    """
    if lane == 0:
        if targets.still == BROKER:
            yield Step("pause broker", Family.BROKER, (BROKER,), 0.5, targets.still_s or longest_s)
            yield Step("redeliver", Family.BROKER, (BROKER,), 0.2)
            yield Step("pause", Family.PAUSE, ("profiles",), 0.2, 1.0)
        else:
            yield Step("pause", Family.PAUSE, (targets.still,), 1.0, targets.still_s or longest_s)
        return
    between = next(point for point in targets.points if point.name == targets.dies_at)
    yield Step("cut at insert", Family.WIRE, ("identity to its database",), 0.5, 3.0)
    yield Step("kill at", Family.KILL, ("identity",), 0.1, point=between)
    yield Step("everything 0.3 s late", Family.WIRE, (targets.slow,), 0.1, 3.0)
    yield Step("kill database", Family.DATABASE, (chance.choice(DATABASES),), 0.3)
    yield Step("replies swallowed", Family.WIRE, (chance.choice(CLIENT_WIRES),), 0.3, 1.0)


_KINDS = {
    "kill at": 5, "kill at rare": 2, "kill": 3, "kill two": 1, "pause": 4, "kill database": 2, "pause database": 2,
    "cut": 2, "trouble": 4, "repeat": 2,
}  # fmt: skip
_BROKERS_KINDS = {"kill broker": 2, "pause broker": 3, "redeliver": 2, "trouble of the broker": 3}
"""What is done at random, and how often."""


def _kinds(targets: Targets) -> dict[str, int]:
    kinds = _KINDS | (_BROKERS_KINDS if targets.has_broker else {})
    lacking = {"kill at rare": not targets.rare_points, "repeat": not targets.inner_wires}
    return {kind: weight for kind, weight in kinds.items() if not lacking.get(kind)}


def _any(chance: random.Random, pauses: tuple[float, ...], targets: Targets) -> Step:
    calm_s = chance.uniform(*CALM_S)
    (pause_s,) = chance.choices(pauses, PAUSE_WEIGHTS[: len(pauses)])
    kinds = _kinds(targets)
    match chance.choices(list(kinds), list(kinds.values()))[0]:
        case "kill at":
            point = chance.choice(targets.points)
            passing = chance.randrange(1, point.passings)
            return Step("kill at", Family.KILL, (point.service,), calm_s, point=point, passing=passing)
        case "kill at rare":
            point = chance.choice(targets.rare_points)
            victims = tuple(dict.fromkeys((point.service, "identity")))
            return Step("kill at", Family.KILL, victims, calm_s, point=point)
        case "kill":
            return Step("kill", Family.KILL, (chance.choice(targets.services),), calm_s)
        case "kill two":
            return Step("kill", Family.KILL, tuple(chance.sample(targets.services, 2)), calm_s)
        case "pause":
            return Step("pause", Family.PAUSE, (chance.choice(targets.services),), calm_s, pause_s)
        case "kill database":
            return Step("kill database", Family.DATABASE, (chance.choice(DATABASES),), calm_s)
        case "pause database":
            victim = chance.choice(DATABASES)
            return Step("pause database", Family.DATABASE, (victim,), calm_s, pause_s)
        case "cut":
            return Step("cut", Family.WIRE, (chance.choice(targets.wires),), calm_s)
        case "repeat":
            wire, seconds = chance.choice(targets.inner_wires), chance.choice(PAUSES_S[1:])
            return Step("repeat", Family.WIRE, (wire,), calm_s, seconds)
        case "kill broker" | "pause broker" | "redeliver" as what:
            return Step(what, Family.BROKER, (BROKER,), calm_s, pause_s)
        case "trouble of the broker":
            wire = chance.choice(targets.broker_wires)
            return Step(chance.choice(TROUBLES), Family.WIRE, (wire,), calm_s, pause_s)
        case _:
            return Step(chance.choice(TROUBLES), Family.WIRE, (chance.choice(targets.wires),), calm_s, pause_s)
