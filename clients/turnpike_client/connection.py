"""A channel to one service, with what every call on it has in common: options, metadata, deadlines, errors."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio

from turnpike_client.error_codec import REQUEST_ID_KEY, from_rpc_error

DEFAULT_ROUTER = "127.0.0.1:50051"
DEFAULT_USAGE = "127.0.0.1:50052"

_LAST_PORT = 65535
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A peer that died without a word is noticed within 40 s. keepalive_timeout_ms alone does not do it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
    # Retries are the caller's decision: a completion that is sent twice is paid twice.
    ("grpc.enable_retries", 0),
    # An http_proxy in the environment is meant for the web and would swallow calls to a service next door.
    ("grpc.enable_http_proxy", 0),
    # gRPC waits up to two minutes between attempts to connect; people restart services faster than that.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def resolved(target: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A target in gRPC's words, and the channel options that go with it.

    Several addresses, `127.0.0.1:50061,127.0.0.1:50062`, share the calls by turns, and those where nobody answers are
    passed over: for workers with a port of their own (`ROUTER_WORKER_PORTS_FROM`). Anything else stays as it is.
    Raises ValueError for several that are not all IP addresses of one version with a port.
    """
    if "," not in target:
        return target, ()
    addresses = [text.strip() for text in target.split(",")]
    versions = {_version(address, target) for address in addresses}
    if len(versions) > 1:
        raise ValueError(f"{target}: gRPC spreads calls over IPv4 or over IPv6 addresses; leave out one kind")
    return f"ipv{versions.pop()}:{','.join(addresses)}", (("grpc.service_config", _ROUND_ROBIN),)


def _version(address: str, target: str) -> int:
    """The version of an IP address with a port."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and 0 < int(port) <= _LAST_PORT:
        with suppress(ValueError):
            return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).version
    raise ValueError(
        f"{address!r} of {target} is no IP address with a port; give several as 127.0.0.1:50061,127.0.0.1:50062"
    )


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long calls may take, in seconds: whole completions, and everything else."""

    completion_s: float = 600.0
    call_s: float = 10.0


class Connection:
    """A lazily opened channel to `target`; gRPC binds it to the event loop of its first use.

    Raises ValueError for a target that names several addresses and is not as `resolved` wants it.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        metadata: Mapping[str, str] | None,
        options: Sequence[tuple[str, Any]],
    ) -> None:
        self.target = target
        self._credentials = credentials
        self._metadata = tuple((key.lower(), value) for key, value in (metadata or {}).items())
        self._address, spreading = resolved(target)
        self._options = [*CHANNEL_OPTIONS, *spreading, *options]
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel; RuntimeError once it was closed."""
        if self._is_closed:
            raise RuntimeError(f"the client for {self.target} is closed; make a new one")
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, options=self._options)
            else:
                self._channel = grpc.aio.secure_channel(self._address, self._credentials, options=self._options)
        return self._channel

    async def close(self) -> None:
        """Close the channel and cancel what runs on it. Twice is fine."""
        self._is_closed = True
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    def call_metadata(self, request_id: str | None = None) -> tuple[tuple[str, str], ...]:
        """Metadata of one call; its request id is how the server's logs will know it."""
        return (*self._metadata, (REQUEST_ID_KEY, request_id or str(uuid.uuid4())))

    async def unary(self, method: Any, request: Any, *, timeout_s: float, request_id: str | None = None) -> Any:
        """Call a unary method and await its answer."""
        try:
            return await method(request, timeout=timeout_s, metadata=self.call_metadata(request_id))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target) from error

    async def server_stream(
        self, method: Any, request: Any, *, timeout_s: float, request_id: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """Call a streaming method and yield its messages. Leaving early, in whatever way, cancels the call."""
        call = method(request, timeout=timeout_s, metadata=self.call_metadata(request_id))
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.target) from error
        finally:
            # gRPC neither collects nor ends a call that nobody reads any more.
            call.cancel()
