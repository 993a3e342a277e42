"""QuotaService: how close a tenant is to its limits, and the limits of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from turnpike.usage.v1 import quota_service_pb2 as pb
from turnpike.usage.v1 import quota_service_pb2_grpc
from usage_service.api.convert_limits import (
    limit_amount_to_text,
    limit_status_to_proto,
    tenant_status_to_proto,
    usage_limit_to_proto,
)
from usage_service.api.limit_requests import (
    DEFAULT_PAGE_SIZE,
    LimitReader,
    after_limit_to_position,
    limits_fingerprint,
)
from usage_service.api.report_requests import RequestReader
from usage_service.domain import paging
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting

Context = grpc.aio.ServicerContext[Any, Any]


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Answers from settled usage. Raises InvalidRequest naming every bad field, and what the other two do.

    `providers` are the catalogue names that limits can be set on.
    """

    def __init__(self, limiting: Limiting, setting: LimitSetting, *, providers: frozenset[str]) -> None:
        self._limiting = limiting
        self._setting = setting
        self._providers = providers

    async def CheckRateLimitStatus(
        self, request: pb.CheckRateLimitStatusRequest, context: Context
    ) -> pb.CheckRateLimitStatusResponse:
        del context
        reader = RequestReader(self._limiting.now())
        tenant_id = reader.uuid("tenant_id", request.tenant_id)
        provider = reader.provider("provider", request.provider)
        model = reader.name("model", request.model)
        reader.done()
        return limit_status_to_proto(await self._limiting.status(tenant_id, provider=provider, model=model))

    async def BatchCheckRateLimitStatus(
        self, request: pb.BatchCheckRateLimitStatusRequest, context: Context
    ) -> pb.BatchCheckRateLimitStatusResponse:
        del context
        reader = LimitReader(self._limiting.now(), self._providers)
        tenant_ids = reader.tenant_ids(request.tenant_ids)
        reader.done()
        found = await self._limiting.statuses(tenant_ids)
        response = pb.BatchCheckRateLimitStatusResponse()
        for text, tenant_id in zip(request.tenant_ids, tenant_ids, strict=True):
            response.results.append(tenant_status_to_proto(text, found[tenant_id]))
            await asyncio.sleep(0)  # as in `statuses`
        return response

    async def SetLimit(self, request: pb.SetLimitRequest, context: Context) -> pb.SetLimitResponse:
        del context
        reader = LimitReader(self._limiting.now(), self._providers)
        tenant_id, rule = reader.limit(request)
        reader.done()
        done = await self._setting.set(tenant_id, rule)
        previous = "" if done.previous is None else limit_amount_to_text(rule.metric, done.previous)
        return pb.SetLimitResponse(limit=usage_limit_to_proto(done.limit), previous_limit=previous)

    async def ListLimits(self, request: pb.ListLimitsRequest, context: Context) -> pb.ListLimitsResponse:
        del context
        reader = LimitReader(self._limiting.now(), self._providers)
        tenant_id = reader.optional_uuid("tenant_id", request.tenant_id)
        provider = reader.provider("provider", request.provider)
        size = reader.page_size(request.page_size, default=DEFAULT_PAGE_SIZE)
        fingerprint = limits_fingerprint(request)
        after = reader.after_limit(request.page_token, fingerprint)
        reader.done()
        found = await self._setting.page(tenant_id=tenant_id, provider=provider, after=after, limit=size + 1)
        response = pb.ListLimitsResponse(limits=map(usage_limit_to_proto, found[:size]))
        if len(found) > size:
            position = after_limit_to_position(found[size - 1])
            response.next_page_token = paging.encode(paging.PageToken(fingerprint, position))
        return response

    async def DeleteLimit(self, request: pb.DeleteLimitRequest, context: Context) -> pb.DeleteLimitResponse:
        del context
        reader = LimitReader(self._limiting.now(), self._providers)
        tenant_id, key = reader.key(request)
        reader.done()
        return pb.DeleteLimitResponse(limit=usage_limit_to_proto(await self._setting.delete(tenant_id, key)))
