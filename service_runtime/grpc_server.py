"""A gRPC server as every service of ours runs it.

server = GrpcServer(host="127.0.0.1", port=50051, metrics=metrics)
server.add("turnpike.router.v1.RouterService", partial(add_RouterServiceServicer_to_server, servicer))
port = await server.start()
server.set_serving(True)
…
await server.drain(grace_s=30)
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_runtime import accepting, health
from service_runtime.error_codec import DetailToProto
from service_runtime.held_refusals import HeldRefusals
from service_runtime.in_flight import InFlight
from service_runtime.interceptors import BoundaryLimits, ErrorBoundary
from service_runtime.metrics import Metrics
from service_runtime.overload import MAX_WAITING, GateOf, no_gates, waiting_options
from service_runtime.settings import ServiceSettings
from service_runtime.startup import StartupError

log = structlog.get_logger(__name__)

# Handlers that stop() has cancelled still run their `finally` blocks: they settle what was spent.
_CLEANUP_TIMEOUT_S = 5.0

_HEALTH_CHECK = f"/{health.SERVICE_NAME}/Check"
_MAX_METADATA_BYTES = 16 << 10  # the library's own absolute limit
_MAX_STREAMS_PER_CONNECTION = 250  # ends HTTP/2 rapid reset; a client needs more connections before it needs more


class PortTaken(StartupError):
    """Another process listens on the service's port."""


class _InOneQueue:
    """What services add themselves to. Registers by name only the methods that get a queue of their own.

    For each registered method the library waits for the next call apart, and goes through all of these futures for
    every call of any. The others share one future and one queue, and the handler is looked up by the call's name.
    """

    def __init__(self, server: grpc.aio.Server, has_own_queue: Callable[[str], bool]) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers
        self._server = server
        self._has_own_queue = has_own_queue

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Register those that are to have a queue; `add_generic_rpc_handlers` has got all."""
        own = {name: handler for name, handler in handlers.items() if self._has_own_queue(f"/{service}/{name}")}
        self._server.add_registered_method_handlers(service, own)


class GrpcServer:
    """One listening server with health, reflection, the error boundary and a drain that waits for its handlers."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        metrics: Metrics,
        limits: BoundaryLimits | None = None,
        max_message_bytes: int = 8 << 20,
        max_waiting_calls: int = MAX_WAITING,
        reflection_is_on: bool = True,
        reuse_port: bool = False,
        own_port: int = 0,
        detail_to_proto: DetailToProto | None = None,
        gate_of: GateOf = no_gates,
        held: HeldRefusals | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`port` 0 takes any free one. `reuse_port` lets the workers of one service share theirs, and nobody else.
        `gate_of` says which methods refuse calls that would be too late, see `service_runtime.overload`.
        `held` holds refusals of callers who ask too fast.
        `own_port` is a second port, for this one alone.
        `interceptors` run inside the error boundary. Without `credentials` the port is not encrypted.
        """
        self.in_flight = InFlight()
        self.draining = asyncio.Event()  # set when the drain begins: handlers that never end by themselves watch it
        self._host, self._port = host, port
        self._reuse_port = reuse_port
        self._own_port = own_port
        self._reflection_is_on = reflection_is_on
        self._credentials = credentials
        self._gate_of = gate_of
        self._services: dict[str, Callable[[grpc.aio.Server], None]] = {}
        self._health_names: list[str] = []
        self._health = health.Health(())
        self._options = [
            *_options(max_message_bytes=max_message_bytes, reuse_port=reuse_port),
            *waiting_options(max_waiting_calls),
        ]
        self._boundary = ErrorBoundary(
            metrics=metrics,
            in_flight=self.in_flight,
            limits=limits,
            detail_to_proto=detail_to_proto,
            gate_of=gate_of,
            held=held,
        )
        self._held = held
        self._interceptors = [self._boundary, *interceptors]
        self._server: grpc.aio.Server | None = None
        metrics.gauge("grpc_server_in_flight", "RPCs in progress.").set_function(lambda: len(self.in_flight.requests))

    @classmethod
    def from_settings(cls, settings: ServiceSettings, metrics: Metrics, **others: Any) -> GrpcServer:
        """The server that the settings describe; `others` are further arguments of the constructor."""
        limits = BoundaryLimits(max_duration_s=settings.default_deadline_s, max_calls=settings.max_concurrent_rpcs)
        return cls(
            host=settings.bind_host,
            port=settings.port,
            metrics=metrics,
            limits=limits,
            max_message_bytes=settings.max_message_bytes,
            max_waiting_calls=settings.max_waiting_rpcs,
            reflection_is_on=settings.reflection_is_on,
            reuse_port=settings.workers > 1,
            own_port=settings.own_port,
            **others,
        )

    @property
    def address(self) -> str:
        """Where it listens, `127.0.0.1:50051`; after `start` with the real port."""
        return _address(self._host, self._port)

    def add(self, service_full_name: str, registrar: Callable[[grpc.aio.Server], None]) -> None:
        """Serve one service; `registrar` is the generated `add_…_to_server` with the servicer already given."""
        self._services[service_full_name] = registrar

    def add_health_name(self, name: str) -> None:
        """Let health checks ask for a part as well, such as `turnpike.router.v1.RouterService/journal`."""
        self._health_names.append(name)

    async def start(self) -> int:
        """Listen, and return the port. Everything but liveness is NOT_SERVING until `set_serving(True)`.

        Raises PortTaken, or StartupError for an address that this machine does not have.
        """
        # Checked by a socket of ours: gRPC would print its own lines about it, and bind to nothing.
        _require_free(self._host, self._port, reuse_port=self._reuse_port)
        server = accepting.server(interceptors=self._interceptors, options=self._options)
        registry = cast("grpc.aio.Server", _InOneQueue(server, self._has_own_queue))
        for register in self._services.values():
            register(registry)
        self._health = health.Health([*self._services, *self._health_names])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        if self._reflection_is_on:
            names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)  # has handlers of its own for this kind of server
        self._port = self._listen(server, self.address)
        if self._own_port:
            _require_free(self._host, self._own_port, reuse_port=False)
            self._listen(server, _address(self._host, self._own_port))
        self._server = server
        await server.start()
        return self._port

    def _has_own_queue(self, method: str) -> bool:
        """Whether calls of a method wait apart: floods come to those with a gate; health must wait behind nobody."""
        return method == _HEALTH_CHECK or self._gate_of(method) is not None

    def _listen(self, server: grpc.aio.Server, address: str) -> int:
        try:
            if self._credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise PortTaken(f"cannot listen on {address}; stop its owner or set another port") from error

    def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Tell health checks whether one service, or each, takes requests."""
        self._health.set_serving(serving, service)

    def release_held(self) -> None:
        """Tell everybody now whose refusal waits for its turn, and let none wait from now on."""
        if self._held is not None:
            self._held.release()

    async def drain(self, grace_s: float) -> int:
        """Take no new calls, let those in progress finish for `grace_s`, cancel the rest, and wait for their cleanup.

        Returns how many handlers were still running when it gave up, which should be 0.
        """
        self.draining.set()
        self.release_held()
        self._health.drain()
        if self._server is None:
            return 0
        await self._server.stop(grace_s)
        # stop() returns before the cancelled handlers have run their `finally` blocks.
        left = await self.in_flight.wait_until_idle(_CLEANUP_TIMEOUT_S)
        self._boundary.tell_refusals()
        if left:
            log.error("grpc.handlers_left", count=left, waited_s=_CLEANUP_TIMEOUT_S)
        return left


def _options(*, max_message_bytes: int, reuse_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", int(reuse_port)),  # the default lets two services share a port unnoticed
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", _MAX_STREAMS_PER_CONNECTION),
        # On by default, it counts calls that are over but not yet forgotten here, and refuses that many new ones: of a
        # client that always has as many open as it may, a tenth to a half. The bound holds without, also for resets.
        ("grpc.http.overload_protection", 0),
        ("grpc.server_handshake_timeout_ms", 5_000),  # idle sockets are held far longer by default
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", 1_800_000),  # lets clients find new replicas
        ("grpc.max_connection_age_grace_ms", 660_000),  # longer than the longest stream
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # keepalive alone does not notice a frozen client
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _require_free(host: str, port: int, *, reuse_port: bool) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"port {port} on {host} is taken; stop its owner or set another port") from error
            raise StartupError(f"cannot listen on {_address(host, port)}: {error.strerror or error}") from error
