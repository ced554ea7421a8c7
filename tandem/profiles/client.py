"""How profiles is called."""

from __future__ import annotations

import grpc

from tandem.runtime.channel import open_channel

UPDATES = tuple(f"tandem.profiles.v1.ProfilesService/{method}" for method in ("UpdatePerson", "UpdateBusiness"))
"""Not repeated by the channel. After UNAVAILABLE an update may have been made; its repeat would then be told
VERSION_MISMATCH, as if it had been refused. Whoever gets UNAVAILABLE reads again."""


def open_profiles(target: str) -> grpc.Channel:
    """A channel for `ProfilesServiceStub`. Connects on first use."""
    return open_channel(target, once=UPDATES)
