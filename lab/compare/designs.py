"""The designs as a table: how the processes are told, what they need besides, and what they never promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from identity_stub.config import Settings
from tandem.profiles.updates import OnConflict


@dataclass(frozen=True)
class Design:
    """One column of the comparison.

    identity, profiles, coordinator: settings besides those of all. module: what runs as identity. needs: systems
    besides two services and two databases. has_broker: whether one of them is Kafka's. on_conflict: how its clients
    update. midway: the failpoints between its writes on the two sides.
    """

    name: str
    needs: tuple[str, ...] = ()
    module: str = "identity_stub"
    identity: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)
    coordinator: Mapping[str, str] = field(default_factory=dict)
    has_broker: bool = False
    on_conflict: OnConflict = OnConflict.MERGE
    midway: tuple[str, ...] = ()


_DRIVER = ("driver.after_votes", "driver.after_local_commit")

_ALL = (
    Design("two-phase", ("coordinator",), identity={"PROVISIONING": "two-phase"}, midway=_DRIVER),
    Design(
        "hybrid",
        ("coordinator", "Kafka"),
        identity={"PROVISIONING": "hybrid"},
        coordinator={"RECOVERY": "false"},  # the relay in identity has it
        has_broker=True,
        midway=_DRIVER,
    ),
    Design(
        "saga",
        ("Kafka",),
        identity={"PROVISIONING": "saga"},
        has_broker=True,
        midway=("saga.before_local_commit", "saga.after_local_commit"),
    ),
    Design(
        "update-or-create",
        identity={"PROVISIONING": "update-or-create"},
        profiles={"UPDATES_CREATE": "true"},
        midway=("update_or_create.after_local_commit",) * 2,
    ),
    Design(
        "dual write (control)",
        module="lab.compare.naive",
        profiles={"UPDATES_CREATE": "true"},
        on_conflict=OnConflict.OVERWRITE,
        midway=("dual_write.after_profiles",) * 2,
    ),
)


NEEDS = {one.name: one.needs for one in _ALL}


def designs() -> dict[str, Design]:
    """Name → design, of those that this identity can be: designs with Kafka need the settings for it."""
    return {one.name: one for one in _ALL if not one.has_broker or "kafka_servers" in Settings.model_fields}
