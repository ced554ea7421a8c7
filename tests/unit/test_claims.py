"""Which peers answer, and when one that does not is asked again."""

from __future__ import annotations

from tandem.runtime.claims import Peers
from tests.support.rules import HandClock

EARLY_S = 0.005
"""By so much a timer's tick may come early after one that was late."""


def test_a_timer_of_a_second_probes_a_failing_peer_at_each_tick() -> None:
    """R11: a failing peer gets one probe a second; not one in two for want of some milliseconds."""
    clock = HandClock()
    peers = Peers(clock)
    peers.failed("identity")
    for late_s in (-EARLY_S, EARLY_S, -EARLY_S):
        clock.now += 1.0 + late_s
        assert peers.due_probes() == ["identity"]
        assert peers.due_probes() == []
