"""Attempts for tests of the journal and what comes after it."""

from __future__ import annotations

from uuid import UUID

from prometheus_client import CollectorRegistry

from router_service.domain.usage import AttemptOpened, AttemptSettled, AttemptStatus, Funding, TokenUsage, UsageSource
from router_service.usage.metrics import UsageMetrics

TENANT = UUID("018f3f2e-0000-7000-8000-00000000000a")


def opened_attempt(event_id: UUID, *, estimated_input_tokens: int = 12) -> AttemptOpened:
    """An attempt at groq that is about to be sent."""
    return AttemptOpened(
        event_id=event_id,
        request_id=UUID(int=7),
        tenant_id=TENANT,
        attempt=1,
        provider="groq",
        model="groq-model",
        funding=Funding.TENANT_KEY,
        task_type="chat",
        endpoint="/test",
        user_id="u1",
        estimated_input_tokens=estimated_input_tokens,
        labels={"team": "red"},
    )


def settled_attempt(event_id: UUID, *, output_tokens: int = 5) -> AttemptSettled:
    """The same attempt, ended well."""
    return AttemptSettled(
        opened=opened_attempt(event_id),
        model="groq-model",
        status=AttemptStatus.SUCCESS,
        usage=TokenUsage(input_tokens=10, output_tokens=output_tokens),
        usage_source=UsageSource.PROVIDER,
        latency_s=0.25,
        time_to_first_token_s=0.1,
    )


def journal_metrics() -> UsageMetrics:
    """Metrics in a registry of their own."""
    return UsageMetrics(CollectorRegistry())
