"""A router's report on its journal, between the wire and the domain."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.errors import FieldViolation, InvalidRequest
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import instant_from_proto
from usage_service.domain.journal import JournalReport

_COUNTS = (
    "last_sequence",
    "first_waiting_sequence",
    "waiting_count",
    "open_count",
    "held_count",
    "dead_letter_count",
)


def report_from_proto(request: pb.ReportJournalStateRequest, *, now: datetime) -> JournalReport:
    """The report, received `now`. Raises InvalidRequest that names every bad field but `router_id` and `epoch`."""
    violations = [
        FieldViolation(field, f"must not be negative, and is {getattr(request, field)}")
        for field in _COUNTS
        if getattr(request, field) < 0
    ]
    if request.first_waiting_sequence > request.last_sequence >= 0:
        violations.append(
            FieldViolation(
                "first_waiting_sequence",
                f"must not be above last_sequence ({request.last_sequence}), and is {request.first_waiting_sequence}",
            )
        )
    oldest_waiting_at = _instant(request, "oldest_waiting_time", violations)
    oldest_open_at = _instant(request, "oldest_open_time", violations)
    if violations:
        raise InvalidRequest(violations)
    return JournalReport(
        reported_at=now,
        last_sequence=request.last_sequence,
        first_waiting_sequence=request.first_waiting_sequence,
        waiting=request.waiting_count,
        opened=request.open_count,
        held=request.held_count,
        dead_letters=request.dead_letter_count,
        oldest_waiting_at=oldest_waiting_at,
        oldest_open_at=oldest_open_at,
    )


def _instant(request: pb.ReportJournalStateRequest, field: str, violations: list[FieldViolation]) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]  # one of the two times
        return None
    timestamp: Timestamp = getattr(request, field)
    try:
        return instant_from_proto(timestamp)
    except ValueError as error:
        violations.append(FieldViolation(field, str(error)))
        return None
