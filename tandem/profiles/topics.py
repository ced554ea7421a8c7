"""The topics by which profiles are asked for without an RPC: names without the prefix that each cluster has."""

from __future__ import annotations

REQUESTED = ("profiles", "requested")
"""ProfilesRequested, by whomever."""


def settled(source: str) -> tuple[str, ...]:
    """ProfilesSettled, for the service that asked."""
    return ("profiles", "settled", source)
