"""Limits as set."""

# ruff: noqa: N802, ARG002 - the contract names the methods and what they are given
from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from turnpike.usage.v1 import quota_service_pb2, quota_service_pb2_grpc


class FakeQuota(quota_service_pb2_grpc.QuotaServiceServicer):
    """Answers `response` as it was set; at first there is no limit."""

    def __init__(self) -> None:
        self.response = quota_service_pb2.CheckRateLimitStatusResponse(
            level=quota_service_pb2.LIMIT_LEVEL_HEALTHY, valid_for=Duration(seconds=5)
        )

    async def CheckRateLimitStatus(
        self, request: quota_service_pb2.CheckRateLimitStatusRequest, context: Any
    ) -> quota_service_pb2.CheckRateLimitStatusResponse:
        return self.response
