"""`turnpike.usage.v1.UsageService`: recording here, the reports in `api/reports.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc.aio

from service_runtime.errors import FieldViolation, InvalidRequest
from service_runtime.faults import CrashPoint, crash_point
from turnpike.usage.v1 import usage_service_pb2 as pb
from turnpike.usage.v1 import usage_service_pb2_grpc
from usage_service.api.convert_event import result_to_proto, submission_from_proto
from usage_service.api.journal_report import report_from_proto
from usage_service.api.reports import ReportHandlers
from usage_service.api.watch import WatchHandler
from usage_service.metering.journals import JournalAudit
from usage_service.metering.recording import Batch, Recorder

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

MAX_BATCH_EVENTS = 1_000
MAX_ROUTER_NAME_CHARACTERS = 200


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """Takes usage events in and answers what was used."""

    def __init__(
        self,
        *,
        recorder: Recorder,
        reports: ReportHandlers,
        journals: JournalAudit,
        watch: WatchHandler,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._recorder = recorder
        self._reports = reports
        self._journals = journals
        self._watch = watch
        self._now = now

    async def RecordUsage(self, request: pb.RecordUsageRequest, _context: Context) -> pb.RecordUsageResponse:
        """Store a batch of events, each exactly once."""
        batch = _batch_from_proto(request)
        outcomes = await self._recorder.record(batch)
        await self._journals.note(batch, outcomes)
        response = pb.RecordUsageResponse(
            results=[
                result_to_proto(event.event_id, index, outcome)
                for index, (event, outcome) in enumerate(zip(request.events, outcomes, strict=True))
            ]
        )
        interval_s = self._recorder.min_send_interval_s()
        if interval_s is not None:
            response.min_send_interval.FromMilliseconds(max(1, round(interval_s * 1_000)))
        crash_point(CrashPoint.INGEST_BEFORE_ACKNOWLEDGEMENT)
        return response

    async def ReportJournalState(
        self, request: pb.ReportJournalStateRequest, _context: Context
    ) -> pb.ReportJournalStateResponse:
        """Take in how a router's journal stands."""
        violations = _journal_violations(request.router_id, request.epoch)
        if not request.epoch:
            violations.append(FieldViolation("epoch", "must name the epoch of the journal"))
        if violations:
            raise InvalidRequest(violations)
        report = report_from_proto(request, now=self._now())
        journal = await self._journals.report(request.router_id, request.epoch, report)
        return pb.ReportJournalStateResponse(missing_count=journal.missing_count)

    async def GetTenantUsageStats(
        self, request: pb.GetTenantUsageStatsRequest, _context: Context
    ) -> pb.GetTenantUsageStatsResponse:
        """Sum a tenant's usage by provider and model over a window."""
        return await self._reports.get_tenant_usage_stats(request)

    async def ListDailyCosts(self, request: pb.ListDailyCostsRequest, _context: Context) -> pb.ListDailyCostsResponse:
        """List a tenant's cost per day and provider."""
        return await self._reports.list_daily_costs(request)

    async def ListErrors(self, request: pb.ListErrorsRequest, _context: Context) -> pb.ListErrorsResponse:
        """List a tenant's failures."""
        return await self._reports.list_errors(request)

    async def ListUsageRecords(
        self, request: pb.ListUsageRecordsRequest, _context: Context
    ) -> pb.ListUsageRecordsResponse:
        """List single usage records."""
        return await self._reports.list_usage_records(request)

    async def QueryUsageTimeSeries(
        self, request: pb.QueryUsageTimeSeriesRequest, _context: Context
    ) -> pb.QueryUsageTimeSeriesResponse:
        """Sum a tenant's usage step by step."""
        return await self._reports.query_usage_time_series(request)

    async def GetLatencyDistribution(
        self, request: pb.GetLatencyDistributionRequest, _context: Context
    ) -> pb.GetLatencyDistributionResponse:
        """Show how a tenant's latencies are distributed."""
        return await self._reports.get_latency_distribution(request)

    async def WatchUsage(
        self, request: pb.WatchUsageRequest, _context: Context
    ) -> AsyncIterator[pb.WatchUsageResponse]:
        """Stream a tenant's live totals."""
        async with aclosing(self._watch.watch(request)) as messages:  # type: ignore[type-var]  # it is a generator
            async for message in messages:
                yield message


def _batch_from_proto(request: pb.RecordUsageRequest) -> Batch:
    violations = _journal_violations(request.router_id, request.epoch)
    if not 1 <= len(request.events) <= MAX_BATCH_EVENTS:
        violations.append(
            FieldViolation("events", f"must hold 1 to {MAX_BATCH_EVENTS} events, not {len(request.events)}")
        )
    if violations:
        raise InvalidRequest(violations)
    return Batch(request.router_id, request.epoch, [submission_from_proto(event) for event in request.events])


def _journal_violations(router_id: str, epoch: str) -> list[FieldViolation]:
    violations = [*_name_violations("router_id", router_id), *_name_violations("epoch", epoch)]
    if not router_id:
        violations.append(FieldViolation("router_id", "must name the router that sends the events"))
    return violations


def _name_violations(field: str, text: str) -> list[FieldViolation]:
    violations = []
    if len(text) > MAX_ROUTER_NAME_CHARACTERS:
        violations.append(
            FieldViolation(field, f"must have at most {MAX_ROUTER_NAME_CHARACTERS} characters, not {len(text)}")
        )
    if "\x00" in text:
        violations.append(FieldViolation(field, "must not hold the character U+0000"))
    return violations
