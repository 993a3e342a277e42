"""QuotaService: how close a tenant is to its limits."""

from __future__ import annotations

from typing import Any

import grpc

from turnpike.usage.v1 import quota_service_pb2, quota_service_pb2_grpc
from usage_service.api.convert_reports import limit_status_to_proto
from usage_service.api.report_requests import RequestReader
from usage_service.metering.limiting import Limiting


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Answers from settled usage. Raises InvalidRequest naming every bad field, and what `Limiting` raises."""

    def __init__(self, limiting: Limiting) -> None:
        self._limiting = limiting

    async def CheckRateLimitStatus(
        self,
        request: quota_service_pb2.CheckRateLimitStatusRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> quota_service_pb2.CheckRateLimitStatusResponse:
        del context
        reader = RequestReader(self._limiting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        provider = reader.provider("provider", request.provider)
        model = reader.name("model", request.model)
        reader.done()
        return limit_status_to_proto(await self._limiting.status(tenant_id, provider=provider, model=model))
