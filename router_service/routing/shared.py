"""What all requests of one router share: its collaborators, and the little that changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from router_service.domain.completion import CompletionRequest
from router_service.domain.usage import AttemptOpened, AttemptSettled, AttemptStatus, UsageSource
from router_service.routing.admission import Admission
from router_service.routing.late_enquiries import LateEnquiries
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.ports import Prices, Provider, TokenCounter, UsageJournal
from router_service.routing.retry_budgets import RetryBudgets
from router_service.routing.scoreboard import Scoreboard
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import ServiceError

TURNPIKE = "turnpike"  # the provider of ledger rows for requests that we refused ourselves
NO_MODEL = "none"


@dataclass(slots=True)
class Shared:
    """`monotonic` is a steady clock in seconds, `new_event_id` makes UUIDv7s, `luck` gives numbers from 0 to 1."""

    providers: Mapping[str, Provider]
    journal: UsageJournal
    prices: Prices
    scoreboard: Scoreboard
    retry_budgets: RetryBudgets
    admission: Admission
    metrics: RoutingMetrics
    settings: RoutingSettings
    monotonic: Callable[[], float]
    new_event_id: Callable[[], UUID]
    luck: Callable[[], float]
    enquiries: LateEnquiries
    counter: TokenCounter | None
    draining: int = 0

    def begin_draining(self) -> bool:
        """Take one of the places for streams without a caller; False when all are taken."""
        if self.draining >= self.settings.max_draining:
            return False
        self.draining += 1
        self.metrics.set_draining(self.draining)
        return True

    def end_draining(self) -> None:
        self.draining -= 1
        self.metrics.set_draining(self.draining)


async def record_refusal(shared: Shared, request: CompletionRequest, error: ServiceError) -> None:
    """Write the one ledger row of a request that Turnpike itself refused for a limit."""
    opened = AttemptOpened(
        event_id=shared.new_event_id(),
        request_id=request.request_id,
        tenant_id=request.tenant_id,
        attempt=1,
        provider=TURNPIKE,
        model=request.model or NO_MODEL,
        funding=None,
        task_type=request.task_type.value,
        endpoint=request.endpoint,
        user_id=request.user_id,
        estimated_input_tokens=0,
        labels=request.labels,
    )
    await shared.journal.opened(opened)
    await shared.journal.settled(
        AttemptSettled(
            opened=opened,
            model=opened.model,
            status=AttemptStatus.RATE_LIMIT,
            usage=None,
            usage_source=UsageSource.NONE,
            latency_s=0.0,
            error_class=error.reason.lower(),
            error_message=error.message,
        )
    )
    shared.metrics.attempt_ended(TURNPIKE, AttemptStatus.RATE_LIMIT.value, error.reason.lower(), None)
