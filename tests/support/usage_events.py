"""Usage events for tests: a plain one, of which each test says only what matters to it."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import AttemptStatus, Funding, ReportedEvent, UsageSource
from usage_service.metering.recording import Submission

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_numbers = itertools.count(1)

TENANT = "11111111-1111-4111-8111-111111111111"
OTHER_TENANT = "22222222-2222-4222-8222-222222222222"
REQUEST = "33333333-3333-4333-8333-333333333333"


def event_id_at(used_at: datetime, number: int | None = None) -> UUID:
    """A UUIDv7 for a usage time; ids differ by `number`, which counts up by itself."""
    unix_ms = (used_at - _EPOCH) // timedelta(milliseconds=1)
    serial = next(_numbers) if number is None else number
    return UUID(int=(unix_ms << 80) | (7 << 76) | (0b10 << 62) | serial)


def reported_event(used_at: datetime, **overrides: Any) -> ReportedEvent:
    """A successful call of llama-3.3-70b-versatile at groq with 1000 tokens in and 500 out."""
    plain = ReportedEvent(
        event_id=str(event_id_at(used_at)),
        tenant_id=TENANT,
        request_id=REQUEST,
        attempt=1,
        provider="groq",
        model="llama-3.3-70b-versatile",
        requested_model="",
        endpoint="/v1/chat",
        user_id="user-7",
        status=AttemptStatus.SUCCESS,
        error_class="",
        error_message="",
        absorbed=False,
        tokens=TokenCounts(input_tokens=1_000, output_tokens=500),
        usage_source=UsageSource.PROVIDER,
        funding=Funding.TENANT_KEY,
        latency_ms=812,
        first_token_ms=95,
        provider_reported_cost_usd="",
        labels={"team": "search"},
        sequence=1,
        task_type="chat",
        decision='{"score": 0.9}',
    )
    return plain._replace(**overrides)


def submission(event: ReportedEvent) -> Submission:
    """The event as a router would send it; equal events have equal bytes."""
    return Submission(event, repr(event).encode())
