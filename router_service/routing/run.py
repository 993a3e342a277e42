"""One request's way through its candidates, in a task of its own.

The task is detached from the caller: whatever becomes of the caller, it settles every attempt that it opened, exactly
once, and only then says how the request ended.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from msgspec.structs import replace

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import CallerGonePolicy
from router_service.domain.completion import CompletionRequest, CompletionResult
from router_service.domain.errors import FailureKind
from router_service.domain.tokens import estimate_input_tokens
from router_service.domain.usage import AttemptOpened, AttemptStatus
from router_service.routing import failures
from router_service.routing.account import Account
from router_service.routing.attempt import (
    Attempt,
    Crashed,
    Failed,
    Outcome,
    Stopped,
    Succeeded,
)
from router_service.routing.planning import Plan
from router_service.routing.shared import Shared, record_refusal
from router_service.routing.sinks import Sink
from router_service.routing.succession import Succession
from router_service.routing.watchdog import Reason, Watchdog
from service_runtime.errors import ServiceError

MIN_TIME_TO_COUNT_S = 2.0

log: Any = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Following:
    """The attempt that takes over, opened already; `restart_reason` when the caller must discard what it has."""

    attempt: Attempt
    restart_reason: str


class Run:
    """One request being served. `pump` is the body of its task; `stop` ends it from outside."""

    def __init__(
        self,
        shared: Shared,
        request: CompletionRequest,
        plan: Plan,
        sink: Sink,
        *,
        arrived_at: float,
        deadline_at: float,
    ) -> None:
        self._shared = shared
        self._request = request
        self._plan = plan
        self._sink = sink
        self._deadline_at = deadline_at
        self._watch = Watchdog()
        self._succession = Succession(shared, request, plan, self._watch, deadline_at=deadline_at)
        self._current: Attempt | None = None
        self._unsettled: list[Attempt] = []
        self._holding_places: list[Attempt] = []
        self._account = Account(request, plan, arrived_at=arrived_at)
        self._input_tokens = 0
        self._decision = ""
        self._stop: Reason | None = None
        self._is_draining = False
        self._has_succeeded = False
        self._is_over = False

    # ── from outside ──────────────────────────────────────────────────────────────────────────────────────────────

    def stop(self, reason: Reason) -> None:
        """End the request: at once, or, where the provider's bill goes on, after its stream was read to the end.

        An answer that is whole and only has to be recorded is given out, though time is up or the router stops.
        """
        if self._is_over or (self._has_succeeded and reason is not Reason.CALLER_LEFT):
            return
        is_first = self._stop is None
        if is_first:
            self._stop = reason
        if reason is Reason.CALLER_LEFT:
            self._sink.abandon()
        else:
            self._sink.fail(self._stopped_error(reason))
        if reason is Reason.SHUTDOWN or (is_first and not self._drain()):
            self._watch.interrupt(reason)

    async def pump(self) -> None:
        """Serve the request. Raises nothing: the sink learns of every ending."""
        timer = asyncio.get_running_loop().call_later(
            max(0.0, self._deadline_at - self._shared.monotonic()), self.stop, Reason.DEADLINE
        )
        try:
            result = await self._serve()
        except ServiceError as error:
            await self._end_badly(error, error.reason)
        except Exception as error:
            log.exception("completion.crashed", **self._log_fields())
            await self._end_badly(error, "INTERNAL")
        else:
            self._end_well(result)
        finally:
            timer.cancel()
            self._watch.clear_clocks()
            self._leave()

    # ── the way ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _serve(self) -> CompletionResult:
        self._input_tokens = estimate_input_tokens(self._request)
        self._decision = self._plan.decision()
        candidate = self._succession.first()
        if candidate is None:
            raise await self._refused()
        attempt = await self._open(candidate)
        self._sink.route_chosen(self._account.route(attempt))
        while True:
            outcome = await self._try(attempt)
            following = await self._following(attempt, outcome)
            status = self._status(outcome)
            self._has_succeeded = status is AttemptStatus.SUCCESS
            await self._settle(attempt, outcome, status, absorbed=following is not None)
            if isinstance(outcome, Succeeded) and status is AttemptStatus.SUCCESS:
                return self._result(attempt, outcome)
            if following is None:
                raise self._failure(attempt)
            if following.restart_reason:
                self._sink.restarted(following.attempt.opened.attempt, following.restart_reason)
            attempt = following.attempt
            self._sink.route_chosen(self._account.route(attempt))

    async def _try(self, attempt: Attempt) -> Outcome:
        """Run an attempt, and learn from it. Its place at the provider is free afterwards."""
        shared, candidate = self._shared, attempt.candidate
        self._current = attempt
        outcome: Outcome = Crashed()
        try:
            outcome = await attempt.run(
                shared.providers[candidate.provider],
                self._request,
                self._sink,
                self._watch,
                clocks=self._succession.clocks(candidate, content_was_sent=self._sink.content_was_sent),
                max_answer=shared.settings.max_answer,
                now=shared.monotonic,
            )
        finally:
            self._current = None
            self._give_back(attempt)
            self._learn(attempt, outcome)
        return outcome

    def _give_back(self, attempt: Attempt) -> None:
        """Free the attempt's place at the provider, once."""
        if attempt not in self._holding_places:
            return
        self._holding_places.remove(attempt)
        self._shared.admission.leave_provider(attempt.opened.provider)

    def _learn(self, attempt: Attempt, outcome: Outcome) -> None:
        board, now = self._shared.scoreboard, self._shared.monotonic()
        if attempt.quota is not None:
            board.note_quota(attempt.candidate, attempt.quota, now)
        match outcome:
            case Succeeded():
                board.succeeded(
                    attempt.candidate,
                    now,
                    began_at=attempt.started_at,
                    first_token_s=attempt.first_token_s(),
                    tokens_per_s=attempt.tokens_per_s(now),
                )
            case Failed(error, is_evidence):
                self._account.failed(error)
                if error.kind is FailureKind.MODEL_GONE:
                    self._shared.note_gone_model(attempt.candidate)
                if is_evidence:
                    board.failed(attempt.candidate, error, now, began_at=attempt.started_at)
                else:
                    board.abandoned(attempt.candidate, began_at=attempt.started_at)
            case Stopped() | Crashed():
                board.abandoned(attempt.candidate, began_at=attempt.started_at)

    async def _following(self, attempt: Attempt, outcome: Outcome) -> _Following | None:
        """The attempt that takes over, opened, or None when this was the last one.

        It is opened before the failed one is settled, so that the ledger never calls an attempt absorbed that nothing
        followed.
        """
        if not isinstance(outcome, Failed) or self._stop is not None:
            return None
        content_was_sent = self._sink.content_was_sent
        candidate = await self._succession.after(attempt.candidate, outcome.error, content_was_sent=content_was_sent)
        if candidate is None:
            return None
        try:
            following = await self._open(candidate)
        except ServiceError:
            log.exception("completion.failover_not_recorded", **self._log_fields())
            return None
        return _Following(following, outcome.error.kind.value if content_was_sent else "")

    # ── the books ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self, candidate: Candidate) -> Attempt:
        """Record that an attempt begins. Gives its place back when that cannot be recorded."""
        shared, request = self._shared, self._request
        number = self._succession.attempts_made + 1
        opened = AttemptOpened(
            event_id=shared.new_event_id(),
            request_id=request.request_id,
            tenant_id=request.tenant_id,
            attempt=number,
            provider=candidate.provider,
            model=candidate.model.name,
            funding=candidate.funding,
            task_type=request.task_type,
            endpoint=request.endpoint,
            user_id=request.user_id,
            estimated_input_tokens=self._input_tokens,
            labels=request.labels,
            decision=self._decision,
        )
        try:
            await shared.journal.opened(opened)
        except BaseException:
            shared.admission.leave_provider(candidate.provider)
            shared.scoreboard.abandoned(candidate, began_at=shared.monotonic())
            raise
        self._succession.attempts_made = number
        attempt = Attempt(opened, candidate, started_at=shared.monotonic())
        self._unsettled.append(attempt)
        self._holding_places.append(attempt)
        return attempt

    async def _settle(self, attempt: Attempt, outcome: Outcome, status: AttemptStatus, *, absorbed: bool) -> None:
        """Record how an attempt ended. Once only: an attempt that is not among the unsettled was settled."""
        self._unsettled.remove(attempt)
        await self._count(attempt, outcome)
        ended_at = self._shared.monotonic()
        enquiries = self._shared.enquiries
        settled = attempt.settled(
            outcome, status, absorbed=absorbed, ended_at=ended_at, may_enquire=enquiries.has_place
        )
        self._account.ended(attempt.summary(outcome, status, ended_at=ended_at), settled)
        await self._shared.journal.settled(settled)
        if settled.enquiry is not None:
            enquiries.begin(settled.opened.event_id, settled.enquiry, attempt.candidate.credential)
        self._shared.metrics.attempt_ended(
            attempt.opened.provider, status, settled.error_class, settled.time_to_first_token_s
        )

    async def _count(self, attempt: Attempt, outcome: Outcome) -> None:
        """Count what the provider did not, where the model's tokenizer is at hand and there is time for it."""
        counter, now = self._shared.counter, self._shared.monotonic()
        if counter is None or self._stop is Reason.SHUTDOWN or self._deadline_at - now < MIN_TIME_TO_COUNT_S:
            return
        question = attempt.countable(outcome, self._request)
        if question is None:
            return
        try:
            counts = await counter.count(question.vocabulary, question.texts)
        except Exception:  # an estimate is no loss; a row that is never written is
            log.exception("completion.not_counted", **self._log_fields())
            return
        if counts is not None:
            attempt.counted = question.usage(counts)

    def _status(self, outcome: Outcome) -> AttemptStatus:
        if self._stop is Reason.SHUTDOWN:
            return AttemptStatus.INTERRUPTED
        if self._stop is not None:
            return AttemptStatus.CANCELLED
        match outcome:
            case Succeeded():
                return AttemptStatus.SUCCESS
            case Failed(error):
                limited = error.kind is FailureKind.RATE_LIMITED
                return AttemptStatus.RATE_LIMIT if limited else AttemptStatus.ERROR
            case Stopped() | Crashed():
                return AttemptStatus.ERROR

    # ── what the caller is told ───────────────────────────────────────────────────────────────────────────────────

    def _result(self, attempt: Attempt, outcome: Succeeded) -> CompletionResult:
        usage, source = attempt.consumed(outcome)
        assert usage is not None  # a success is counted or at least estimated
        model = outcome.finished.model or attempt.opened.model
        return self._account.result(
            attempt,
            outcome,
            usage=usage,
            source=source,
            cost_usd=self._shared.prices.cost_usd(attempt.opened.provider, model, usage),
            now=self._shared.monotonic(),
        )

    async def _refused(self) -> ServiceError:
        """The error of a request for which no candidate was free: another took the probe meanwhile, or every place."""
        blocks = self._succession.blocks()
        if len(blocks) == len(self._plan.ranked):
            return failures.nobody_to_ask(replace(self._plan, ranked=(), blocks=(*self._plan.blocks, *blocks)))
        error = self._shared.admission.all_busy(self._request)
        await record_refusal(self._shared, self._request, error)
        return error

    def _failure(self, attempt: Attempt) -> ServiceError:
        if self._stop is not None:
            return self._stopped_error(self._stop)
        return self._account.failure(attempt, content_was_sent=self._sink.content_was_sent)

    def _stopped_error(self, reason: Reason) -> ServiceError:
        return self._account.stopped(
            reason, self._current, content_was_sent=self._sink.content_was_sent, now=self._shared.monotonic()
        )

    # ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> bool:
        """Read on without a caller where the bill goes on anyway; False when there is nothing to read, or no place."""
        attempt, settings = self._current, self._shared.settings
        if attempt is None or attempt.candidate.spec.on_caller_gone is not CallerGonePolicy.DRAIN:
            return False
        if not self._shared.begin_draining():
            return False
        self._is_draining = True
        attempt.drain(settings.max_drain)
        self._watch.limit(settings.drain_s, Reason.CALLER_LEFT)
        return True

    def _leave(self) -> None:
        """Give back the request's place, once, and before its caller is told: the next request may follow at once."""
        if self._is_over:
            return
        self._is_over = True
        self._shared.admission.leave(self._request)
        if self._is_draining:
            self._shared.end_draining()

    async def _end_badly(self, error: Exception, reason: str) -> None:
        for attempt in tuple(self._holding_places):  # opened, but the journal failed before it could run
            self._give_back(attempt)
            self._shared.scoreboard.abandoned(attempt.candidate, began_at=attempt.started_at)
        for attempt in tuple(self._unsettled):
            try:
                await self._settle(attempt, Crashed(), AttemptStatus.ERROR, absorbed=False)
            except Exception:  # the others are still to be settled, and the caller to be told
                log.exception("completion.not_settled", event_id=str(attempt.opened.event_id))
        self._leave()
        self._sink.fail(error)
        self._shared.metrics.completion_ended(reason)
        log.info("completion.finished", outcome=reason, **self._log_fields())

    def _end_well(self, result: CompletionResult) -> None:
        self._leave()
        self._sink.finish(result)
        self._shared.metrics.completion_ended("success")
        first_token_s = result.time_to_first_token_s
        log.info(
            "completion.finished",
            outcome="success",
            provider=result.provider,
            model=result.model,
            finish_reason=result.finish_reason,
            first_token_ms=None if first_token_s is None else round(first_token_s * 1000),
            total_tokens=result.usage.total_tokens,
            usage_source=result.usage_source,
            **self._log_fields(),
        )

    def _log_fields(self) -> dict[str, object]:
        return {"attempts": self._succession.attempts_made, **self._account.log_fields(self._shared.monotonic())}
