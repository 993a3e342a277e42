"""The router: takes a checked request in, gives events or a whole answer out."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Self
from uuid import UUID

import msgspec

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.catalog import ProviderSpec
from router_service.domain.completion import CompletionRequest, CompletionResult, RouterEvent, TaskType
from router_service.domain.health import BreakerState
from router_service.domain.scoring import Scored
from router_service.domain.selection import Needs, credential_for
from router_service.domain.tenant import Credential, Tenant
from router_service.domain.usage import Funding
from router_service.routing import failures
from router_service.routing.admission import Admission
from router_service.routing.late_enquiries import LateEnquiries
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.planning import Plan, Planner
from router_service.routing.ports import LimitLevels, Prices, Provider, Tenants, TokenCounter, UsageJournal
from router_service.routing.retry_budgets import RetryBudgets
from router_service.routing.run import Run
from router_service.routing.scoreboard import Scoreboard
from router_service.routing.settings import RoutingSettings
from router_service.routing.shared import Shared, record_refusal
from router_service.routing.sinks import Gathering, Handover, Sink, WholeAnswer
from router_service.routing.watchdog import Reason
from service_runtime.errors import QuotaExceeded, ServiceError

NOBODY = Tenant(UUID(int=0), "", 0)
SETTLE_S = 5.0  # after the cut, a run has only its journal to write


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a request would be routed: candidates in the order in which they would be tried, and who would not be."""

    candidates: tuple[Scored, ...]
    excluded: tuple[Exclusion, ...]
    auto_failover: bool
    config_version: int


@dataclass(frozen=True, slots=True)
class ProviderState:
    """A provider of the catalogue as one tenant finds it. `unusable_reason` is empty when it can be used."""

    spec: ProviderSpec
    unusable_reason: str
    funding: Funding | None
    breaker: BreakerState
    today: date


class _Accepted(msgspec.Struct, frozen=True):
    """A request that will be served. Times are of the router's steady clock."""

    request: CompletionRequest
    plan: Plan
    arrived_at: float
    deadline_at: float


class EventStream:
    """The events of a request that is being served: iterate over them; the last one is the `CompletionResult`.

    Iterating raises `ServiceError` when the request fails. Closing before the end means that the caller has left: the
    attempt is settled all the same.
    """

    __slots__ = ("_handover", "_run")

    def __init__(self, handover: Handover, run: Run) -> None:
        self._handover = handover
        self._run = run

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, RouterEvent]:
        return self._handover.take()

    def close(self) -> None:
        """No more events are wanted."""
        self._run.stop(Reason.CALLER_LEFT)


def today_utc() -> date:
    """Today's date in UTC, by which models retire."""
    return datetime.now(UTC).date()


class Router:
    """Routes completions. Every request is served by a task of its own, which `drain` waits for."""

    def __init__(
        self,
        *,
        tenants: Tenants,
        providers: Mapping[str, Provider],
        catalog: Mapping[str, ProviderSpec],
        system_credentials: Mapping[str, Credential],
        journal: UsageJournal,
        prices: Prices,
        limits: LimitLevels,
        metrics: RoutingMetrics,
        new_event_id: Callable[[], UUID],
        counter: TokenCounter | None = None,
        settings: RoutingSettings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        today: Callable[[], date] = today_utc,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings or RoutingSettings()
        self._tenants = tenants
        self._catalog = catalog
        self._system_credentials = system_credentials
        self._today = today
        scoreboard = Scoreboard(max_entries=self._settings.max_remembered_routes)
        self._shared = Shared(
            providers=providers,
            journal=journal,
            prices=prices,
            scoreboard=scoreboard,
            retry_budgets=RetryBudgets(max_tenants=self._settings.max_remembered_routes),
            admission=Admission(
                max_running_per_tenant=self._settings.max_running_per_tenant,
                max_running_per_provider=self._settings.max_running_per_provider,
            ),
            metrics=metrics,
            settings=self._settings,
            monotonic=monotonic,
            new_event_id=new_event_id,
            luck=luck,
            enquiries=LateEnquiries(
                providers=providers,
                catalog=catalog,
                tenants=tenants,
                system_credentials=system_credentials,
                journal=journal,
                metrics=metrics,
                settings=self._settings,
            ),
            counter=counter,
        )
        self._planner = Planner(
            catalog=catalog,
            system_credentials=system_credentials,
            prices=prices,
            limits=limits,
            scoreboard=scoreboard,
            score_weights=self._settings.score_weights,
            today=today,
        )
        self._runs: dict[asyncio.Task[None], Run] = {}
        metrics.count_in_flight(lambda: self.running)
        self._refusals: set[asyncio.Task[None]] = set()
        self._is_closing = False

    @property
    def running(self) -> int:
        """Requests whose provider is still being read, with or without a caller."""
        return len(self._runs)

    async def stream(self, request: CompletionRequest, *, deadline_s: float | None) -> EventStream:
        """Serve a request as events, which must be closed. `deadline_s` is what is left of the caller's time.

        Raises `ServiceError` for a request that is refused.
        """
        accepted = await self._accept(request, deadline_s)
        handover = Handover(max_unread=self._settings.max_unread)
        return EventStream(handover, self._begin(accepted, handover))

    async def complete(
        self, request: CompletionRequest, *, deadline_s: float | None
    ) -> tuple[CompletionResult, WholeAnswer]:
        """Serve a request whole. Fails over even in the middle of an answer. Raises `ServiceError`."""
        accepted = await self._accept(request, deadline_s)
        gathering = Gathering()
        run = self._begin(accepted, gathering)
        try:
            return await gathering.result()
        finally:
            run.stop(Reason.CALLER_LEFT)

    async def explain(
        self, tenant_id: UUID, needs: Needs, task: TaskType, *, remaining_s: float | None = None
    ) -> Explanation:
        """How such a request would be routed now, without calling anybody. Raises `ServiceError` for the tenant."""
        tenant = await self._tenants.get(tenant_id)
        now = self._shared.monotonic()
        plan = self._planner.plan(
            tenant, needs, task, now=now, remaining_s=remaining_s, luck=lambda: 0.5, ranks_all=True
        )
        excluded = (*plan.exclusions, *(block.exclusion for block in plan.blocks))
        ranked = plan.ranked
        if plan.rejected_key is not None:
            words = (
                f"not tried, so that the tenant learns of its rejected key for {plan.rejected_key.candidate.provider}"
            )
            excluded += tuple(_passed_over(scored.candidate, words) for scored in ranked)
            ranked = ()
        return Explanation(ranked, excluded, tenant.config.auto_failover, tenant.version)

    async def providers_for(self, tenant_id: UUID | None) -> list[ProviderState]:
        """The providers by name, as the tenant finds them; for None, with the system keys only."""
        tenant = NOBODY if tenant_id is None else await self._tenants.get(tenant_id)
        return [self._state(self._catalog[name], tenant) for name in sorted(self._catalog)]

    async def resume(self) -> None:
        """Take up what an earlier run left behind: records that wait for a provider's late count."""
        await self._shared.enquiries.resume()

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, let the running ones end for `grace_s`, then cut them; all of them are settled.

        No record stays held behind: late counts that do not come within moments are given up.
        """
        self._is_closing = True
        if self._runs:
            await asyncio.wait(self._runs, timeout=grace_s)
        for run in tuple(self._runs.values()):
            run.stop(Reason.SHUTDOWN)
        remaining = {*self._runs, *self._refusals}
        if remaining:
            await asyncio.wait(remaining, timeout=SETTLE_S)
        await self._shared.enquiries.stop(self._settings.last_enquiry_s)

    async def _accept(self, request: CompletionRequest, deadline_s: float | None) -> _Accepted:
        """Everything that may refuse a request, before anything is made that only a served one needs."""
        shared, settings = self._shared, self._settings
        arrived_at = shared.monotonic()
        if self._is_closing:
            raise failures.stopped(Reason.SHUTDOWN, None, content_was_sent=False)
        left_s = (
            settings.total_s if deadline_s is None else min(settings.total_s, deadline_s - settings.answer_margin_s)
        )
        if left_s < settings.min_start_s:
            raise failures.stopped(Reason.DEADLINE, None, content_was_sent=False)
        deadline_at = arrived_at + left_s
        tenant = await self._tenants.get(request.tenant_id, min_version=request.min_config_version)
        try:
            shared.admission.check(request)
        except QuotaExceeded as error:
            await self._book(request, error)
            raise
        try:
            plan = self._plan(tenant, request, deadline_at)
        except Exception as error:
            shared.metrics.completion_ended(error.reason if isinstance(error, ServiceError) else "INTERNAL")
            raise
        return _Accepted(request, plan, arrived_at, deadline_at)

    def _begin(self, accepted: _Accepted, sink: Sink) -> Run:
        """Begin to serve. Nothing may be awaited since the request was accepted, nor here: it is counted now."""
        request, shared = accepted.request, self._shared
        run = Run(
            shared, request, accepted.plan, sink, arrived_at=accepted.arrived_at, deadline_at=accepted.deadline_at
        )
        task = asyncio.create_task(run.pump(), name="completion")
        shared.admission.enter(request)
        self._runs[task] = run
        task.add_done_callback(self._runs.pop)
        return run

    async def _book(self, request: CompletionRequest, error: QuotaExceeded) -> None:
        """Write the row of a request over a limit, in a task of its own: who leaves cannot leave half of it."""
        task = asyncio.create_task(record_refusal(self._shared, request, error))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)
        await asyncio.shield(task)

    def _plan(self, tenant: Tenant, request: CompletionRequest, deadline_at: float) -> Plan:
        shared = self._shared
        now = shared.monotonic()
        needs, task, remaining_s = Needs.of(request), request.task_type, deadline_at - now
        plan = self._planner.plan(tenant, needs, task, now=now, remaining_s=remaining_s, luck=shared.luck)
        if plan.rejected_key is not None:
            raise failures.key_rejected(plan.rejected_key, tenant)
        # Behind the refusals of a rejected key: they ask nothing of anybody, and widen nobody's budget.
        shared.retry_budgets.request_arrived(request.tenant_id, now)
        if not plan.ranked:
            raise failures.nobody_to_ask(plan)
        return plan

    def _state(self, spec: ProviderSpec, tenant: Tenant) -> ProviderState:
        key = credential_for(spec, tenant, self._system_credentials)
        credential = None if isinstance(key, Exclusion) else key
        allowed = tenant.config.allowed_providers
        candidate = Candidate(spec, spec.facts(spec.default_model), credential)
        now = self._shared.monotonic()
        block = self._shared.scoreboard.block(candidate, now, is_only_candidate=False)
        if isinstance(key, Exclusion):
            reason = key.explanation
        elif allowed and spec.name not in allowed:
            reason = f"the tenant allows only {', '.join(allowed)}"
        elif not spec.base_url and not spec.is_sandbox:
            reason = f"no address is set for {spec.display_name}"
        else:
            # A breaker says nothing of whether the provider is set up; it has a field of its own.
            reason = block.exclusion.explanation if block is not None and block.kind is not None else ""
        breaker = self._shared.scoreboard.health(candidate).breaker.state(now)
        return ProviderState(spec, reason, candidate.funding, breaker, self._today())


def _passed_over(candidate: Candidate, words: str) -> Exclusion:
    return Exclusion(candidate.provider, candidate.model.name, "BEHIND_REJECTED_KEY", words)
