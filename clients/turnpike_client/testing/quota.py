"""Limits as set, and positions against them as a test says."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from turnpike.usage.v1 import quota_service_pb2, quota_service_pb2_grpc
from turnpike_client.testing.pages import page_of
from turnpike_client.wire import to_timestamp

Key = tuple[str, str, str, int, int]


class FakeQuota(quota_service_pb2_grpc.QuotaServiceServicer):
    """Keeps the tenants' own limits in `limits`; Positions are `response`, at first without any."""

    def __init__(self) -> None:
        self.response = quota_service_pb2.CheckRateLimitStatusResponse(
            level=quota_service_pb2.LIMIT_LEVEL_HEALTHY, valid_for=Duration(seconds=5)
        )
        self.limits: dict[Key, quota_service_pb2.UsageLimit] = {}

    async def CheckRateLimitStatus(
        self, request: quota_service_pb2.CheckRateLimitStatusRequest, context: Any
    ) -> quota_service_pb2.CheckRateLimitStatusResponse:
        return self.response

    async def BatchCheckRateLimitStatus(
        self, request: quota_service_pb2.BatchCheckRateLimitStatusRequest, context: Any
    ) -> quota_service_pb2.BatchCheckRateLimitStatusResponse:
        results = [
            quota_service_pb2.TenantRateLimitStatus(tenant_id=tenant_id, status=self.response)
            for tenant_id in request.tenant_ids
        ]
        return quota_service_pb2.BatchCheckRateLimitStatusResponse(results=results)

    async def SetLimit(
        self, request: quota_service_pb2.SetLimitRequest, context: Any
    ) -> quota_service_pb2.SetLimitResponse:
        limit = quota_service_pb2.UsageLimit(
            tenant_id=request.tenant_id,
            provider=request.provider,
            model=request.model,
            metric=request.metric,
            window=request.window,
            limit=request.limit,
            update_time=to_timestamp(datetime.now(UTC)),
        )
        before = self.limits.get(_key(request))
        self.limits[_key(request)] = limit
        return quota_service_pb2.SetLimitResponse(limit=limit, previous_limit=before.limit if before else "")

    async def ListLimits(
        self, request: quota_service_pb2.ListLimitsRequest, context: Any
    ) -> quota_service_pb2.ListLimitsResponse:
        found = [
            limit
            for _, limit in sorted(self.limits.items())
            if request.tenant_id in ("", limit.tenant_id) and request.provider in ("", limit.provider)
        ]
        page, token = page_of(found, request)
        return quota_service_pb2.ListLimitsResponse(limits=page, next_page_token=token)

    async def DeleteLimit(
        self, request: quota_service_pb2.DeleteLimitRequest, context: Any
    ) -> quota_service_pb2.DeleteLimitResponse:
        if _key(request) not in self.limits:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such limit")
        return quota_service_pb2.DeleteLimitResponse(limit=self.limits.pop(_key(request)))


def _key(request: quota_service_pb2.SetLimitRequest | quota_service_pb2.DeleteLimitRequest) -> Key:
    return (request.tenant_id, request.provider, request.model, request.metric, request.window.seconds)
