"""Tells usage_service how the journal stands, so that a lost event shows from outside."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc.aio
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from router_service.usage.journal import JournalState, SqliteJournal
from router_service.usage.metrics import JournalMetrics
from service_runtime.errors import Category, ServiceError
from turnpike.usage.v1 import usage_service_pb2, usage_service_pb2_grpc

_log = structlog.get_logger(__name__)

_CALL_TIMEOUT_S = 2.0


class JournalReporter:
    """Reports one journal under the router's name."""

    def __init__(
        self, journal: SqliteJournal, channel: grpc.aio.Channel, *, router_id: str, metrics: JournalMetrics
    ) -> None:
        self._journal = journal
        self._usage = usage_service_pb2_grpc.UsageServiceStub(channel)
        self._router_id = router_id
        self._metrics = metrics
        self._missing = 0

    async def report(self) -> None:
        """Report once. Raises ServiceError UNAVAILABLE when usage_service does not take it; the next report will do."""
        request = _request(self._router_id, self._journal.epoch, await self._journal.state())
        try:
            response = await self._usage.ReportJournalState(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise ServiceError(
                Category.UNAVAILABLE,
                "USAGE_UNAVAILABLE",
                f"usage_service did not take the journal's report ({error.code().name}); see to it that it runs",
            ) from error
        if response.missing_count > self._missing:
            _log.error("journal.events_missing", count=response.missing_count, epoch=self._journal.epoch)
        self._missing = response.missing_count
        self._metrics.missing.set(response.missing_count)


def _request(router_id: str, epoch: str, state: JournalState) -> usage_service_pb2.ReportJournalStateRequest:
    return usage_service_pb2.ReportJournalStateRequest(
        router_id=router_id,
        epoch=epoch,
        last_sequence=state.last_sequence,
        first_waiting_sequence=state.first_waiting,
        waiting_count=state.waiting,
        open_count=state.opened,
        held_count=state.held,
        dead_letter_count=state.dead_letters,
        oldest_waiting_time=_timestamp(state.oldest_waiting_s),
        oldest_open_time=_timestamp(state.oldest_open_s),
    )


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.fromtimestamp(seconds, UTC))
    return timestamp
