"""What all requests of one router share: its collaborators, and the little that changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import structlog

from router_service.domain.candidate import Candidate
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

_log: Any = structlog.get_logger(__name__)


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
    gone_models: set[tuple[str, str]] = field(default_factory=set)

    def begin_draining(self) -> bool:
        """Take one of the places for streams without a caller; False when all are taken."""
        if self.draining >= self.settings.max_draining:
            return False
        self.draining += 1
        self.metrics.set_draining(self.draining)
        return True

    def note_gone_model(self, candidate: Candidate) -> None:
        """A provider says that it does not have a model: count it, and tell the operator once.

        Only of a model that the catalogue lists. A name that a caller or a tenant made up is theirs to mend, and they
        are told in the answer.
        """
        provider, model = candidate.provider, candidate.model.name
        if model not in candidate.spec.models:
            return
        self.metrics.model_gone(provider, model)
        if (provider, model) not in self.gone_models:
            self.gone_models.add((provider, model))
            remedy = "requests go elsewhere; let tenants prefer another of the provider's models"
            _log.warning("provider.model_gone", provider=provider, model=model, remedy=remedy)

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
        task_type=request.task_type,
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
    shared.metrics.attempt_ended(TURNPIKE, AttemptStatus.RATE_LIMIT, error.reason.lower(), None)
