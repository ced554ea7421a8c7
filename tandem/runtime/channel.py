"""Client channels: quick reconnection, retry of what was not answered and where it is safe, bounded messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

import grpc

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_TRAILER_BYTES = 64 * 1024
"""An error with all its details. gRPC's own limit is 8 KB, and above it the error comes without any."""

_RETRIED: dict[str, object] = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 5,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        # CANCELLED by the server: gRPC's own word for calls that reach a server which has just begun to stop.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}


def open_channel(target: str, *, once: Sequence[str] = ()) -> grpc.Channel:
    """A channel to `target` (any gRPC name, such as `dns:///profiles:50051`). Connects on first use.

    once: methods ("package.Service/Method") that the channel does not repeat: a repeat can't be told from another call,
    or their caller repeats them by itself.
    """
    exceptions = [dict(zip(("service", "method"), method.split("/"), strict=True)) for method in once]
    config = {"methodConfig": [_RETRIED, *([{"name": exceptions}] if exceptions else [])]}
    return grpc.insecure_channel(
        target,
        options=[
            ("grpc.service_config", json.dumps(config)),
            ("grpc.enable_retries", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_TRAILER_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.lb_policy_name", "round_robin"),
        ],
    )
