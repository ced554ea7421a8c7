"""Client channels: quick reconnection, retry of UNAVAILABLE only, bounded messages."""

from __future__ import annotations

import json

import grpc

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def open_channel(target: str) -> grpc.Channel:
    """A channel to `target` (any gRPC name, such as `dns:///profiles:50051`). Connects on first use."""
    return grpc.insecure_channel(
        target,
        options=[
            ("grpc.service_config", json.dumps(_RETRY)),
            ("grpc.enable_retries", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.lb_policy_name", "round_robin"),
        ],
    )
