"""The tenants' positions against their limits, as usage_service last told; asked for in the background.

What this costs follows the requests, not the tenants that are known: a tenant is asked about when one of its requests
finds the position missing or due, once however many do, and many tenants in one call. Those close to a limit are
followed between their requests as well, since their positions are good for seconds only. After a minute without a
request a tenant is forgotten.

A position is used for at most twice as long as usage_service says it may be, counted from when it was asked for: the
second half is for the request that finds it due, which does not wait, and for an answer that is late. After that the
tenant's position is unknown, and so it is while usage_service is away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

import grpc.aio

from router_service.routing.ports import LimitHeadroom
from turnpike.usage.v1 import quota_service_pb2, quota_service_pb2_grpc

_TIMEOUT_S = 2.0
_MAX_TENANTS = 10_000
_AT_ONCE = 100  # tenants in one call: the most that the contract allows
_FASTER = 4  # times as many in the next call, after one that went well
_PER_ROUND = 2000  # tenants asked about per `refresh`, so that one stays short
_RETRY_TENANT_S = 30.0  # for a tenant that usage_service cannot answer
_LONGEST_PAUSE_S = 30.0  # while usage_service is away
# UNIMPLEMENTED: one that is older than this router, while the two are being replaced.
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED})
_IDLE_S = 60.0  # a tenant without a request for so long is forgotten


@dataclass(slots=True)
class _Position:
    """What is known of a tenant: its tightest limit per provider and model, and until when that may be used."""

    used_at_s: float
    due_at_s: float = 0.0
    valid_until_s: float = 0.0
    headroom: dict[tuple[str, str], LimitHeadroom] | None = None


class LimitCache:
    """Implements `routing.ports.LimitLevels`. `now_s` is a monotonic clock; call `refresh` about once a second."""

    def __init__(self, channel: grpc.aio.Channel, *, now_s: Callable[[], float]) -> None:
        self._stub = quota_service_pb2_grpc.QuotaServiceStub(channel)
        self._now_s = now_s
        self._positions: OrderedDict[UUID, _Position] = OrderedDict()  # the one used last stands last
        self._due: dict[UUID, None] = {}  # those that a request found missing or due, in that order
        self._near: set[UUID] = set()  # those that were last told to be close to a limit
        self._at_once = _AT_ONCE
        self._outages_in_a_row = 0
        self._not_before_s = 0.0

    def headroom(self, tenant_id: UUID, provider: str, model: str) -> LimitHeadroom | None:
        """See `routing.ports.LimitLevels`."""
        now_s = self._now_s()
        position = self._positions.get(tenant_id)
        if position is None:
            self._positions[tenant_id] = _Position(now_s)
            self._due[tenant_id] = None
            if len(self._positions) > _MAX_TENANTS:
                self._forget_first()
            return None
        position.used_at_s = now_s
        self._positions.move_to_end(tenant_id)
        if now_s >= position.due_at_s:
            self._due[tenant_id] = None
        if position.headroom is None or now_s > position.valid_until_s:
            return None
        found = [position.headroom[key] for key in ((provider, model), (provider, "")) if key in position.headroom]
        return min(found, key=lambda entry: entry.remaining_ratio, default=None)

    async def refresh(self) -> None:
        """Ask about the tenants whose position a request found due. Without usage_service positions simply lapse."""
        self._forget_idle()
        now_s = self._now_s()
        if now_s < self._not_before_s:
            return
        self._due.update((key, None) for key in self._near if now_s >= self._positions[key].due_at_s)
        left = list(islice(self._due, _PER_ROUND))
        while left:
            # After an outage one tenant is enough to see whether usage_service is back; then ever more.
            some, left = left[: self._at_once], left[self._at_once :]
            if not await self._ask(some):
                return

    async def _ask(self, tenant_ids: Sequence[UUID]) -> bool:
        """Ask about some tenants; False when usage_service is away."""
        asked_at_s = self._now_s()
        request = quota_service_pb2.BatchCheckRateLimitStatusRequest(tenant_ids=map(str, tenant_ids))
        try:
            answer = await self._stub.BatchCheckRateLimitStatus(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AWAY:
                self._pause()
                return False
            if len(tenant_ids) == 1:
                self._postpone(tenant_ids[0])
                return True
            # One tenant's trouble is not the others': it is looked for, half by half.
            middle = len(tenant_ids) // 2
            return await self._ask(tenant_ids[:middle]) and await self._ask(tenant_ids[middle:])
        self._outages_in_a_row = 0
        self._at_once = min(_AT_ONCE, self._at_once * _FASTER)
        told = {result.tenant_id: result for result in answer.results}
        for tenant_id in tenant_ids:
            result = told.get(str(tenant_id))
            if result is None or not result.HasField("status"):
                self._postpone(tenant_id)
            else:
                self._keep(tenant_id, result.status, asked_at_s)
        return True

    def _keep(self, tenant_id: UUID, status: quota_service_pb2.CheckRateLimitStatusResponse, asked_at_s: float) -> None:
        self._due.pop(tenant_id, None)
        position = self._positions.get(tenant_id)
        if position is None:
            return  # forgotten meanwhile
        if status.level == quota_service_pb2.LIMIT_LEVEL_HEALTHY:
            self._near.discard(tenant_id)
        else:
            self._near.add(tenant_id)
        valid_for_s = status.valid_for.ToTimedelta().total_seconds() or 1.0
        position.headroom = _tightest(status.statuses)
        position.due_at_s = asked_at_s + valid_for_s
        position.valid_until_s = asked_at_s + 2 * valid_for_s

    def _postpone(self, tenant_id: UUID) -> None:
        self._due.pop(tenant_id, None)
        if (position := self._positions.get(tenant_id)) is not None:
            position.due_at_s = self._now_s() + _RETRY_TENANT_S

    def _pause(self) -> None:
        self._outages_in_a_row += 1
        self._not_before_s = self._now_s() + min(_LONGEST_PAUSE_S, 2.0 ** min(self._outages_in_a_row - 1, 10))
        self._at_once = 1

    def _forget_idle(self) -> None:
        oldest_s = self._now_s() - _IDLE_S
        while self._positions and next(iter(self._positions.values())).used_at_s < oldest_s:
            self._forget_first()

    def _forget_first(self) -> None:
        tenant_id, _ = self._positions.popitem(last=False)
        self._due.pop(tenant_id, None)
        self._near.discard(tenant_id)


def _tightest(statuses: Iterable[quota_service_pb2.RateLimitStatus]) -> dict[tuple[str, str], LimitHeadroom]:
    """By provider and model, where the empty model is all of them together."""
    headroom: dict[tuple[str, str], LimitHeadroom] = {}
    for status in statuses:
        key = (status.provider, status.model)
        entry = LimitHeadroom(max(0.0, 1.0 - status.usage_percent / 100.0), status.should_failover)
        if key not in headroom or entry.remaining_ratio < headroom[key].remaining_ratio:
            headroom[key] = entry
    return headroom
