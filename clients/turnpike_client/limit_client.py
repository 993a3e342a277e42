"""Administration of the tenants' own limits, reached as `UsageClient.own_limits`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

from turnpike.usage.v1 import quota_service_pb2 as pb
from turnpike.usage.v1 import quota_service_pb2_grpc
from turnpike_client.accounting import LimitChange, UsageLimit
from turnpike_client.connection import Connection, Deadlines
from turnpike_client.enums import LimitMetric, from_wire, to_wire
from turnpike_client.wire import instant, known_money, money, span, to_duration

# As a window: the calendar month, in UTC, however many days it has.
CALENDAR_MONTH = timedelta(days=31)


class LimitClient:
    """Sets, lists and deletes limits. How near a tenant is to all that apply to it is told by `UsageClient.limits`."""

    def __init__(self, connection: Connection, deadlines: Deadlines) -> None:
        self._connection = connection
        self._timeout_s = deadlines.call_s

    async def set(
        self,
        tenant_id: str,
        provider: str,
        metric: LimitMetric,
        window: timedelta,
        limit: Decimal | int,
        *,
        model: str = "",
    ) -> LimitChange:
        """Set a limit per `window`: 1 to 59 seconds, whole minutes up to 30 days, or `CALENDAR_MONTH`.

        `limit` is a count, or US dollars for LimitMetric.COST. The tenant's first limit at a provider takes the place
        of all of that provider's defaults.
        """
        request = pb.SetLimitRequest(
            tenant_id=tenant_id,
            provider=provider,
            model=model,
            metric=cast("Any", to_wire(metric)),
            window=to_duration(window),
            limit=f"{limit:f}" if isinstance(limit, Decimal) else str(limit),
        )
        response: pb.SetLimitResponse = await self._call(self._stub().SetLimit, request)
        return LimitChange(
            limit=_limit_from_proto(response.limit), previous=money(response.previous_limit), proto=response
        )

    async def list(self, *, tenant_id: str = "", provider: str = "", page_size: int = 0) -> AsyncIterator[UsageLimit]:
        """Limits of a tenant's own, or of all tenants, by tenant, provider, model, metric and window."""
        request = pb.ListLimitsRequest(tenant_id=tenant_id, provider=provider, page_size=page_size)
        while True:
            page: pb.ListLimitsResponse = await self._call(self._stub().ListLimits, request)
            for limit in page.limits:
                yield _limit_from_proto(limit)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete(
        self, tenant_id: str, provider: str, metric: LimitMetric, window: timedelta, *, model: str = ""
    ) -> UsageLimit:
        """Remove a limit and return what it was. Raises NotFound when there is none."""
        request = pb.DeleteLimitRequest(
            tenant_id=tenant_id,
            provider=provider,
            model=model,
            metric=cast("Any", to_wire(metric)),
            window=to_duration(window),
        )
        response: pb.DeleteLimitResponse = await self._call(self._stub().DeleteLimit, request)
        return _limit_from_proto(response.limit)

    def _stub(self) -> quota_service_pb2_grpc.QuotaServiceAsyncStub:
        return quota_service_pb2_grpc.QuotaServiceStub(self._connection.channel)

    async def _call(self, method: Any, request: Any) -> Any:
        return await self._connection.unary(method, request, timeout_s=self._timeout_s)


def _limit_from_proto(message: pb.UsageLimit) -> UsageLimit:
    return UsageLimit(
        tenant_id=message.tenant_id,
        provider=message.provider,
        model=message.model,
        metric=from_wire(LimitMetric, message.metric),
        window=span(message.window),
        limit=known_money(message.limit),
        updated_at=instant(message.update_time),
        proto=message,
    )
