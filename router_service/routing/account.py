"""What became of one request so far, and what its caller is told of it: the route, the result, or one error."""

from __future__ import annotations

from decimal import Decimal

from router_service.domain.completion import (
    AttemptSummary,
    CompletionFailure,
    CompletionRequest,
    CompletionResult,
    RouteChosen,
)
from router_service.domain.errors import ProviderError
from router_service.domain.usage import AttemptSettled, AttemptStatus, TokenUsage, UsageSource
from router_service.routing import failures
from router_service.routing.attempt import Attempt, Stopped, Succeeded
from router_service.routing.planning import Plan
from router_service.routing.watchdog import Reason
from service_runtime.errors import ServiceError


class Account:
    """Collects what the attempts of one request came to. Times are seconds of the router's steady clock."""

    def __init__(self, request: CompletionRequest, plan: Plan, *, arrived_at: float) -> None:
        self._request = request
        self._plan = plan
        self._arrived_at = arrived_at
        self._summaries: list[AttemptSummary] = []
        self._errors: list[ProviderError] = []
        self._partial: tuple[TokenUsage | None, UsageSource] = (None, UsageSource.NONE)

    def failed(self, error: ProviderError) -> None:
        """An attempt failed."""
        self._errors.append(error)

    def ended(self, summary: AttemptSummary, settled: AttemptSettled) -> None:
        """An attempt is over, in whichever way."""
        self._summaries.append(summary)
        if settled.status is not AttemptStatus.SUCCESS:
            self._partial = (settled.usage, settled.usage_source)

    def route(self, attempt: Attempt) -> RouteChosen:
        """Who is asked now."""
        opened = attempt.opened
        return RouteChosen(
            request_id=opened.request_id,
            provider=opened.provider,
            model=opened.model,
            attempt=opened.attempt,
            funding=opened.funding,
            config_version=self._plan.tenant.version,
        )

    def result(
        self,
        attempt: Attempt,
        outcome: Succeeded,
        *,
        usage: TokenUsage,
        source: UsageSource,
        cost_usd: Decimal | None,
        now: float,
    ) -> CompletionResult:
        """The end of a request that succeeded with `attempt`."""
        opened, first_content_at = attempt.opened, attempt.first_content_at
        return CompletionResult(
            request_id=self._request.request_id,
            provider=opened.provider,
            model=outcome.finished.model or opened.model,
            requested_model=opened.model,
            finish_reason=outcome.finished.finish_reason,
            usage=usage,
            usage_source=source,
            cost_usd=cost_usd,
            latency_s=now - self._arrived_at,
            time_to_first_token_s=None if first_content_at is None else first_content_at - self._arrived_at,
            attempts=tuple(self._summaries),
            funding=opened.funding,
            config_version=self._plan.tenant.version,
        )

    def failure(self, attempt: Attempt, *, content_was_sent: bool) -> ServiceError:
        """The error of a request whose last attempt failed."""
        usage, source = self._partial if content_was_sent else (None, UsageSource.NONE)
        detail = CompletionFailure(self._request.request_id, tuple(self._summaries), usage, source)
        return failures.provider_failed(
            attempt.candidate, self._errors, self._plan, detail, content_was_sent=content_was_sent
        )

    def stopped(self, reason: Reason, running: Attempt | None, *, content_was_sent: bool, now: float) -> ServiceError:
        """The error of a request that we end, with the attempt that runs at that moment as far as it came."""
        summaries, partial = tuple(self._summaries), self._partial
        if running is not None:
            outcome = Stopped(reason)
            status = AttemptStatus.INTERRUPTED if reason is Reason.SHUTDOWN else AttemptStatus.CANCELLED
            summaries += (running.summary(outcome, status, ended_at=now),)
            partial = running.consumed(outcome)
        detail = CompletionFailure(self._request.request_id, summaries, *partial)
        return failures.stopped(reason, detail, content_was_sent=content_was_sent)

    def log_fields(self, now: float) -> dict[str, object]:
        """What a line in the log says of the request."""
        return {
            "tenant_id": str(self._request.tenant_id),
            "request_id": str(self._request.request_id),
            "tried": [f"{summary.provider}:{summary.error_class or 'ok'}" for summary in self._summaries],
            "latency_ms": round((now - self._arrived_at) * 1000),
        }
