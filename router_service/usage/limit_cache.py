"""The tenants' positions against their limits, as usage_service last told; asked for in the background."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

import grpc.aio

from router_service.routing.ports import LimitHeadroom
from turnpike.usage.v1 import quota_service_pb2, quota_service_pb2_grpc

_TIMEOUT_S = 2.0
_MAX_TENANTS = 10_000
_BATCH = 1000  # tenants asked about per round, so that one round stays short
_AT_ONCE = 8
_RETRY_TENANT_S = 30.0  # for a tenant that usage_service cannot answer
_LONGEST_PAUSE_S = 30.0  # while usage_service is away
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_IDLE_S = 60.0  # a tenant that nobody asked about for so long is forgotten


@dataclass(slots=True)
class _Position:
    """What is known of a tenant: its tightest limit per provider and model, and until when that may be used."""

    asked_at_s: float
    refresh_at_s: float = 0.0
    valid_until_s: float = 0.0
    headroom: dict[tuple[str, str], LimitHeadroom] | None = None


class LimitCache:
    """Implements `routing.ports.LimitLevels`. `now_s` is a monotonic clock; call `refresh` about once a second."""

    def __init__(self, channel: grpc.aio.Channel, *, now_s: Callable[[], float]) -> None:
        self._stub = quota_service_pb2_grpc.QuotaServiceStub(channel)
        self._now_s = now_s
        self._positions: OrderedDict[UUID, _Position] = OrderedDict()
        self._outages_in_a_row = 0
        self._not_before_s = 0.0

    def headroom(self, tenant_id: UUID, provider: str, model: str) -> LimitHeadroom | None:
        """See `routing.ports.LimitLevels`."""
        now_s = self._now_s()
        position = self._positions.get(tenant_id)
        if position is None:
            self._positions[tenant_id] = _Position(now_s)
            if len(self._positions) > _MAX_TENANTS:
                self._positions.popitem(last=False)
            return None
        position.asked_at_s = now_s
        self._positions.move_to_end(tenant_id)
        if position.headroom is None or now_s > position.valid_until_s:
            return None
        found = [position.headroom[key] for key in ((provider, model), (provider, "")) if key in position.headroom]
        return min(found, key=lambda entry: entry.remaining_ratio, default=None)

    async def refresh(self) -> None:
        """Ask about the tenants whose position is about to run out. Without usage_service positions simply lapse."""
        now_s = self._now_s()
        for tenant_id in [key for key, entry in self._positions.items() if now_s - entry.asked_at_s > _IDLE_S]:
            del self._positions[tenant_id]
        if now_s < self._not_before_s:
            return
        due = [key for key, entry in self._positions.items() if now_s >= entry.refresh_at_s][:_BATCH]
        if self._outages_in_a_row:
            due = due[:1]  # one tenant is enough to see whether usage_service is back
        waiting = iter(due)
        await asyncio.gather(*(self._work_through(waiting) for _ in range(min(_AT_ONCE, len(due)))))

    async def _work_through(self, waiting: Iterator[UUID]) -> None:
        """Ask for one tenant after the other, until none is left or usage_service is away."""
        for tenant_id in waiting:
            try:
                await self._refresh_one(tenant_id)
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY:
                    self._pause()
                    return
                # One tenant's trouble is not the others': they are asked for all the same.
                if (position := self._positions.get(tenant_id)) is not None:
                    position.refresh_at_s = self._now_s() + _RETRY_TENANT_S
            self._outages_in_a_row = 0
            if self._now_s() < self._not_before_s:
                return

    def _pause(self) -> None:
        now_s = self._now_s()
        if now_s < self._not_before_s:
            return  # another of this round has met the same outage
        self._outages_in_a_row += 1
        self._not_before_s = now_s + min(_LONGEST_PAUSE_S, 2.0 ** min(self._outages_in_a_row - 1, 10))

    async def _refresh_one(self, tenant_id: UUID) -> None:
        request = quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=str(tenant_id))
        answer = await self._stub.CheckRateLimitStatus(request, timeout=_TIMEOUT_S)
        position = self._positions.get(tenant_id)
        if position is None:
            return
        headroom: dict[tuple[str, str], LimitHeadroom] = {}
        for status in answer.statuses:
            key = (status.provider, status.model)
            entry = LimitHeadroom(max(0.0, 1.0 - status.usage_percent / 100.0), status.should_failover)
            if key not in headroom or entry.remaining_ratio < headroom[key].remaining_ratio:
                headroom[key] = entry
        valid_for_s = answer.valid_for.ToTimedelta().total_seconds() or 1.0
        now_s = self._now_s()
        position.headroom = headroom
        position.refresh_at_s = now_s + valid_for_s
        # Kept twice as long as it is fresh, so that one slow answer does not blind the ranking.
        position.valid_until_s = now_s + 2 * valid_for_s
