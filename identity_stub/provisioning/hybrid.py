"""Hybrid: two-phase commit, whose outcome travels by Kafka.

Prepare goes by RPC and the local commit decides, as in `two_phase.py`; Commit is published and consumed instead of
called. So a signup still hears every refusal at once, and needs profiles for its vote only.
"""

from __future__ import annotations

from identity_stub.provisioning.two_phase import TwoPhase
from tandem.coordinator.driver import Coordinator


class Hybrid(TwoPhase):
    """The coordinator's `with` block; its driver and recovery are the relay.

    coordinator: one with `commits=PublishedCommits(…)`. A signup is answered when it is decided, and never waits for
    the broker: what is not acknowledged stays `undelivered`, and recovery publishes it.
    """

    def __init__(self, coordinator: Coordinator, *, participant: str = "profiles") -> None:
        super().__init__(coordinator, participant=participant, confirm="background")
