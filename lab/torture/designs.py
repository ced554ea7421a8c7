"""The designs as a table: how the processes are told, what of them can be broken, and what the judge holds them to.

The settings are those of the comparison (`lab.compare.designs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from lab.compare import designs as compared
from lab.torture import eventual, invariants
from lab.torture.faults import Fault
from lab.torture.history import Call
from lab.torture.house import BROKER, INNER_WIRES, SERVICES
from lab.torture.plan import POINTS, RARE_POINTS, TWO_PHASE, Point, Targets
from lab.torture.state import State
from lab.torture.verdict import AT_ONCE, Promise, Verdict

Judge = Callable[[Iterable[Call], State, Collection[Fault]], list[Verdict]]


@dataclass(frozen=True)
class Design:
    """One of them. confirms: whether its answers can be told to come before or after the profile is visible."""

    settings: compared.Design
    targets: Targets
    promise: Promise
    judge: Judge
    confirms: bool = False


def _points(service: str, *names: str) -> tuple[Point, ...]:
    """Those of messages: one that takes them up may have to wait for its partitions first, and takes many at once."""
    return tuple(Point(service, name, within_s=6.0, passings=6) for name in names)


_CONSUMING = ("consumer.after_poll", "consumer.after_handle", "consumer.after_commit")
_RELAYING = ("relay.after_claim", "relay.after_publish", "relay.after_delete")

_HYBRID = Targets(
    SERVICES,
    ("identity to profiles", "profiles to coordinator"),
    (*POINTS, *_points("profiles", *_CONSUMING)),
    # Recovery, which publishes what the driver has left, runs in identity.
    tuple(
        Point("identity", point.name, point.within_s, 1, point.after) if point.service == "coordinator"
        and point.name.startswith("recovery.") else point
        for point in RARE_POINTS
    ),
    still=BROKER,
    dies_at="driver.after_local_commit",
    slow="profiles to Kafka",
    still_s=4.5,  # above the client's own delivery.timeout.ms
    has_broker=True,
)  # fmt: skip

_SAGA = Targets(
    ("identity", "profiles"),
    (),
    (
        *_points("identity", "saga.before_local_commit", "saga.after_local_commit", *_RELAYING, *_CONSUMING),
        *_points("identity", "settling.before_local_commit", "settling.after_local_commit"),
        *_points("profiles", "creating.after_inbox", "creating.before_local_commit", "creating.after_local_commit"),
        *_points("profiles", *_RELAYING, *_CONSUMING),
    ),
    (),
    still=BROKER,
    dies_at="saga.after_local_commit",
    slow="profiles to Kafka",
    still_s=4.5,  # above the client's own delivery.timeout.ms
    has_broker=True,
)

_UPDATE_OR_CREATE = Targets(
    ("identity", "profiles"),
    INNER_WIRES[:1],
    _points("identity", "update_or_create.after_local_commit"),
    (),
    still="profiles",
    dies_at="update_or_create.after_local_commit",
    slow="identity to profiles",
    still_s=5.0,
)


def _hybrids(calls: Iterable[Call], state: State, faults: Collection[Fault]) -> list[Verdict]:
    """Two-phase's invariants, and its messages."""
    return [*invariants.judge(calls, state, faults), eventual.unburied(state)]


def _sagas(calls: Iterable[Call], state: State, faults: Collection[Fault]) -> list[Verdict]:
    return [*eventual.judge(calls, state, faults, _LATER), eventual.unburied(state)]


def _updates(calls: Iterable[Call], state: State, faults: Collection[Fault]) -> list[Verdict]:
    return eventual.judge(calls, state, faults, _PERHAPS)


_LATER = Promise(at_once=False, refused=("create_user",))
_PERHAPS = Promise(at_once=False, refused=("create_user",), roles=False, absent=True)

_TORTURED: dict[str, tuple[Targets, Promise, Judge]] = {
    "two-phase": (TWO_PHASE, AT_ONCE, invariants.judge),
    "hybrid": (_HYBRID, AT_ONCE, _hybrids),
    "saga": (_SAGA, _LATER, _sagas),
    "update-or-create": (_UPDATE_OR_CREATE, _PERHAPS, _updates),
}

NAMES = tuple(_TORTURED)


def designs() -> dict[str, Design]:
    """Name → design, of those that this identity can be."""
    return {
        name: Design(settings, *_TORTURED[name], confirms=name == "two-phase")
        for name, settings in compared.designs().items()
        if name in _TORTURED
    }
