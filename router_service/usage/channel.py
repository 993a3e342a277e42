"""The channel to usage_service."""

from __future__ import annotations

import grpc.aio

# Without the ping time-out a frozen peer goes unnoticed: keepalive alone did not detect one within 25 s.
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def usage_channel(target: str) -> grpc.aio.Channel:
    """A channel to `target`, which need not be up yet."""
    return grpc.aio.insecure_channel(target, options=_OPTIONS)
