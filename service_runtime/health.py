"""`grpc.health.v1`: "" says that the process lives, a service's full name says whether it takes requests.

Unlike the reference servicer, a watch ends when the server drains: one that does not would hold up the shutdown for
all of its grace time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from service_runtime.errors import Category, ServiceError

SERVICE_NAME = "grpc.health.v1.Health"
LIVENESS = ""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """The health of one server. Liveness holds until the drain; all other names begin as not serving."""

    def __init__(self, services: Iterable[str]) -> None:
        self._statuses = {LIVENESS: _SERVING, **dict.fromkeys(services, _NOT_SERVING)}
        self._changed = asyncio.Event()
        self._is_draining = False

    def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Say of one service, or of all, whether it takes requests. After the drain has begun nothing changes."""
        if self._is_draining:
            return
        for name in [service] if service is not None else [name for name in self._statuses if name != LIVENESS]:
            self._statuses[name] = _SERVING if serving else _NOT_SERVING
        self._announce()

    def is_serving(self, service: str) -> bool:
        """Whether `service` takes requests."""
        return self._statuses.get(service) == _SERVING

    def drain(self) -> None:
        """Say NOT_SERVING of everything, for good, and end all watches."""
        self._is_draining = True
        self._statuses = dict.fromkeys(self._statuses, _NOT_SERVING)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, _context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802 - the contract's name
        """The status of one service. Raises NOT_FOUND for one that is not here."""
        status = self._statuses.get(request.service)
        if status is None:
            raise ServiceError(
                Category.NOT_FOUND,
                "SERVICE_UNKNOWN",
                f"no service {request.service[:200]!r} here; use reflection to list",
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, _context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one service now and after each change, until the server drains."""
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
                continue  # it may have changed while the message was on its way
            if self._is_draining:
                return
            await changed.wait()
