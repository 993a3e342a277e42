"""An audit as it was set."""

# ruff: noqa: N802, ARG002 - the contract names the method and what it is given
from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from turnpike.usage.v1 import audit_service_pb2, audit_service_pb2_grpc
from turnpike_client.wire import to_timestamp


class FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    """Answers with `pages`, one after the other; without any, everything is right and there was nothing to check."""

    def __init__(self) -> None:
        self.pages: list[audit_service_pb2.VerifyLedgerResponse] = []
        self.requests: list[audit_service_pb2.VerifyLedgerRequest] = []

    async def VerifyLedger(
        self, request: audit_service_pb2.VerifyLedgerRequest, context: Any
    ) -> audit_service_pb2.VerifyLedgerResponse:
        self.requests.append(request)
        place = int(request.page_token or 0)
        response = audit_service_pb2.VerifyLedgerResponse()
        if place < len(self.pages):
            response.CopyFrom(self.pages[place])
            response.next_page_token = str(place + 1) if place + 1 < len(self.pages) else ""
        else:
            checks = [number for number in audit_service_pb2.LedgerCheck.values() if number]
            response.results.extend(audit_service_pb2.LedgerCheckResult(check=check) for check in checks)
        now = datetime.now(UTC)
        if not response.HasField("end_time"):
            response.start_time.CopyFrom(to_timestamp(now - timedelta(days=2)))
            response.end_time.CopyFrom(to_timestamp(now))
        return response
