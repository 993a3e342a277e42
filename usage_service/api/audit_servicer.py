"""`turnpike.usage.v1.AuditService`: the ledger's proof of itself."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc.aio

from service_runtime.call_context import current_call
from service_runtime.errors import FieldViolation
from turnpike.usage.v1 import audit_service_pb2 as pb
from turnpike.usage.v1 import audit_service_pb2_grpc
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.report_requests import RequestReader
from usage_service.domain import paging
from usage_service.domain.audit import CheckResult, LedgerCheck
from usage_service.domain.window import Window
from usage_service.metering.auditing import Auditing, AuditPage, AuditPosition

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_DEFAULT_WINDOW = timedelta(days=2)
_DEFAULT_DISCREPANCIES = 10
_MAX_DISCREPANCIES = 100
_LONGEST_PAGE_S = 20.0
# Of the deadline, so that the part that is begun last can be finished and answered.
_SHARE_OF_DEADLINE = 0.5
_CHECK = {check: pb.LedgerCheck.Value(f"LEDGER_CHECK_{check.name}") for check in LedgerCheck}


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Verifies on request. Raises InvalidRequest naming every bad field, and what `Auditing` raises."""

    def __init__(self, auditing: Auditing) -> None:
        self._auditing = auditing

    async def VerifyLedger(self, request: pb.VerifyLedgerRequest, _context: Context) -> pb.VerifyLedgerResponse:
        """Recount a part of the ledger."""
        reader = RequestReader(self._auditing.now())
        violations: list[FieldViolation] = []
        if not 0 <= request.max_discrepancies <= _MAX_DISCREPANCIES:
            violations.append(
                FieldViolation(
                    "max_discrepancies", f"must be 1 to {_MAX_DISCREPANCIES}, or 0, not {request.max_discrepancies}"
                )
            )
        tenant_id = reader.optional_uuid("tenant_id", request.tenant_id)
        window = reader.window(request, default_length=_DEFAULT_WINDOW)
        mark = _fingerprint(request)
        after = None
        if request.page_token:
            try:
                window, after = _resumed(request.page_token, mark)
            except ValueError as error:
                violations.append(FieldViolation("page_token", str(error)))
        reader.done_with(violations)
        page = await self._auditing.verify(
            window,
            tenant_id,
            most=request.max_discrepancies or _DEFAULT_DISCREPANCIES,
            after=after,
            budget_s=_budget_s(),
        )
        return _page_to_proto(page, "" if page.resume is None else _token(mark, window, page.resume))


def _budget_s() -> float:
    call = current_call()
    return _LONGEST_PAGE_S if call is None else min(_LONGEST_PAGE_S, call.remaining_s() * _SHARE_OF_DEADLINE)


def _fingerprint(request: pb.VerifyLedgerRequest) -> str:
    fields = copy.copy(request)
    fields.ClearField("page_token")
    return paging.fingerprint("audit", fields.SerializeToString(deterministic=True).hex())


def _token(mark: str, window: Window, resume: AuditPosition) -> str:
    position = (
        window.start.isoformat(),
        window.end.isoformat(),
        "" if resume.tenant_id is None else str(resume.tenant_id),
        resume.resume_at.isoformat(),
    )
    return paging.encode(paging.PageToken(mark, position))


def _resumed(text: str, mark: str) -> tuple[Window, AuditPosition]:
    """The window of the first page, and where to go on. Raises ValueError."""
    token = paging.decode(text, fingerprint=mark, position_length=4)
    try:
        start, end, tenant_id, resume_at = token.position
        window = Window(_instant(start), _instant(end))
        return window, AuditPosition(UUID(tenant_id) if tenant_id else None, _instant(resume_at))
    except (ValueError, OverflowError) as error:
        raise paging.BadPageToken("is not a token of this method; pass next_page_token unchanged") from error


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None or not 1970 <= instant.year < 2200:
        raise ValueError(text)
    return instant.astimezone(UTC)


def _page_to_proto(page: AuditPage, token: str) -> pb.VerifyLedgerResponse:
    return pb.VerifyLedgerResponse(
        results=[_result_to_proto(check, result) for check, result in page.results.items()],
        next_page_token=token,
        start_time=timestamp_to_proto(page.window.start),
        end_time=timestamp_to_proto(page.window.end),
    )


def _result_to_proto(check: LedgerCheck, result: CheckResult) -> pb.LedgerCheckResult:
    return pb.LedgerCheckResult(
        check=_CHECK[check],
        checked_count=result.checked,
        wrong_count=result.wrong,
        discrepancies=[
            pb.LedgerDiscrepancy(subject=one.key, expected=one.expected, actual=one.actual)
            for one in result.discrepancies
        ],
        unchecked=result.unchecked,
    )
