"""One attempt at a provider: reads its stream under the clocks, and knows at any time what it has consumed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from decimal import Decimal

import msgspec

from router_service.domain.candidate import Candidate
from router_service.domain.completion import (
    AttemptSummary,
    CompletionRequest,
    ContentDelta,
    FinishReason,
    ProviderAccepted,
    ProviderFinished,
    ProviderIdentified,
    ProviderItem,
    QuotaHeaders,
)
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.tokens import Countable, OutputMeter, countable
from router_service.domain.usage import (
    AttemptOpened,
    AttemptSettled,
    AttemptStatus,
    LateEnquiry,
    TokenUsage,
    UsageSource,
)
from router_service.routing.ports import Provider
from router_service.routing.sinks import Sink
from router_service.routing.watchdog import Interrupted, Reason, Watchdog
from service_runtime.faults import CrashPoint, crash_point

MAX_ERROR_MESSAGE = 500
MIN_TOKENS_FOR_SPEED = 8
MIN_SECONDS_FOR_SPEED = 0.05

Clock = Callable[[], float]


class AttemptClocks(msgspec.Struct, frozen=True):
    """Bounds of one attempt in seconds. `is_shortened`: the caller's deadline, not the provider's own bound, set
    `first_content_s`, so that running out of it proves nothing against the provider.
    """

    connect_s: float
    first_content_s: float
    content_gap_s: float
    total_s: float
    is_shortened: bool = False


class Succeeded(msgspec.Struct, frozen=True):
    """The provider finished its answer well."""

    finished: ProviderFinished


class Failed(msgspec.Struct, frozen=True):
    """The provider failed. `is_evidence`: it may be held against the provider or the key."""

    error: ProviderError
    is_evidence: bool = True


class Stopped(msgspec.Struct, frozen=True):
    """We stopped it: the caller left, its deadline passed, or the router shuts down."""

    reason: Reason


class Crashed(msgspec.Struct, frozen=True):
    """A fault of our own broke it."""


Outcome = Succeeded | Failed | Stopped | Crashed

_STOP_CLASSES = {
    Reason.CALLER_LEFT: "caller_left",
    Reason.DEADLINE: "deadline_exceeded",
    Reason.SHUTDOWN: "shutdown",
}


class Attempt:
    """The mutable record of one attempt. Times are seconds of the router's steady clock."""

    __slots__ = (
        "_drain_left",
        "_meter",
        "_was_accepted",
        "answering_model",
        "candidate",
        "counted",
        "finished",
        "first_content_at",
        "opened",
        "quota",
        "response_id",
        "started_at",
        "was_sent",
    )

    def __init__(self, opened: AttemptOpened, candidate: Candidate, *, started_at: float) -> None:
        self.opened = opened
        self.candidate = candidate
        self.started_at = started_at
        self.first_content_at: float | None = None
        self.finished: ProviderFinished | None = None
        self.quota: QuotaHeaders | None = None
        self.response_id = ""
        self.answering_model = ""
        self.was_sent = False
        self._was_accepted = False
        self._meter = OutputMeter(keeps_text=bool(candidate.model.vocabulary))
        self.counted: TokenUsage | None = None
        self._drain_left: int | None = None

    async def run(
        self,
        provider: Provider,
        request: CompletionRequest,
        sink: Sink,
        watch: Watchdog,
        *,
        clocks: AttemptClocks,
        max_answer: int,
        now: Clock,
    ) -> Outcome:
        """Call the provider and hand its content to the sink, until the stream ends in one way or another."""
        stream = provider.stream(self.candidate, request, connect_timeout_s=clocks.connect_s)
        try:
            with watch:
                crash_point(CrashPoint.ATTEMPT_BEFORE_CONNECT)
                self.was_sent = True
                watch.expect(clocks.first_content_s, Reason.FIRST_CONTENT)  # the sooner one first: one timer for both
                watch.limit(clocks.total_s, Reason.TOTAL)
                await self._read(stream, sink, watch, gap_s=clocks.content_gap_s, max_answer=max_answer, now=now)
        except Interrupted as interruption:
            return self._interrupted(interruption.reason, clocks)
        except ProviderError as error:
            return Failed(error)
        finally:
            await stream.aclose()
        return self._judged(request)

    def drain(self, max_bytes: int) -> None:
        """Read on without a caller, but not further than `max_bytes`."""
        self._drain_left = max_bytes

    def first_token_s(self) -> float | None:
        """From sending to the first content."""
        return None if self.first_content_at is None else self.first_content_at - self.started_at

    def tokens_per_s(self, ended_at: float) -> float | None:
        """Speed of the answer, when it is long enough to tell."""
        if self.first_content_at is None or self.finished is None or self.finished.usage is None:
            return None
        tokens = self.finished.usage.output_tokens + self.finished.usage.reasoning_tokens
        seconds = ended_at - self.first_content_at
        if tokens < MIN_TOKENS_FOR_SPEED or seconds < MIN_SECONDS_FOR_SPEED:
            return None
        return tokens / seconds

    def settled(
        self, outcome: Outcome, status: AttemptStatus, *, absorbed: bool, ended_at: float, may_enquire: bool = False
    ) -> AttemptSettled:
        """The attempt's end as the ledger keeps it. `may_enquire`: hold it where the provider can count late."""
        usage, source = self.consumed(outcome)
        error_class, error_message = describe(outcome)
        return AttemptSettled(
            opened=self.opened,
            model=self._model(outcome),
            status=status,
            usage=usage,
            usage_source=source,
            latency_s=ended_at - self.started_at,
            time_to_first_token_s=self.first_token_s(),
            error_class=error_class,
            error_message=error_message,
            absorbed=absorbed,
            reported_cost_usd=self._reported_cost_usd(outcome),
            enquiry=self.enquiry(outcome) if may_enquire else None,
        )

    def enquiry(self, outcome: Outcome) -> LateEnquiry | None:
        """What to ask the provider afterwards, when it can tell what we can only estimate."""
        if not self.candidate.spec.counts_late or not self.response_id:
            return None
        if self.consumed(outcome)[1] not in (UsageSource.COUNTED, UsageSource.ESTIMATED):
            return None
        return LateEnquiry(self.candidate.provider, self.response_id, self.candidate.credential_key[1])

    def summary(self, outcome: Outcome, status: AttemptStatus, *, ended_at: float) -> AttemptSummary:
        """The attempt's end as the caller may see it."""
        error_class, error_message = describe(outcome)
        return AttemptSummary(
            attempt=self.opened.attempt,
            provider=self.opened.provider,
            model=self.opened.model,
            funding=self.opened.funding,
            status=status,
            latency_s=ended_at - self.started_at,
            usage_event_id=self.opened.event_id,
            error_class=error_class,
            error_message=error_message,
        )

    def consumed(self, outcome: Outcome) -> tuple[TokenUsage | None, UsageSource]:
        """The tokens and how sure they are: as reported, else estimated if any byte may have reached the provider."""
        if self.finished is not None and self.finished.usage is not None:
            return self.finished.usage, UsageSource.PROVIDER
        if isinstance(outcome, Failed) and outcome.error.usage is not None:
            return outcome.error.usage, UsageSource.PROVIDER
        if not self._may_have_cost(outcome):
            return None, UsageSource.NONE
        if self.counted is not None:
            return self.counted, UsageSource.COUNTED
        return self._meter.estimate(self.opened.estimated_input_tokens), UsageSource.ESTIMATED

    def countable(self, outcome: Outcome, request: CompletionRequest) -> Countable | None:
        """What can be counted by the tokenizer of the model that answered, where the provider counted nothing."""
        if self.consumed(outcome)[1] is not UsageSource.ESTIMATED:
            return None
        return countable(self.candidate.spec.facts(self._model(outcome)).vocabulary, request, self._meter)

    def _model(self, outcome: Outcome) -> str:
        """The model that answered, whatever was asked for, and however far the answer came."""
        of_end = self.finished.model if self.finished is not None else ""
        of_error = outcome.error.model if isinstance(outcome, Failed) else ""
        return of_end or of_error or self.answering_model or self.opened.model

    def _reported_cost_usd(self, outcome: Outcome) -> Decimal | None:
        if self.finished is not None:
            return self.finished.reported_cost_usd
        return outcome.error.reported_cost_usd if isinstance(outcome, Failed) else None

    def _may_have_cost(self, outcome: Outcome) -> bool:
        if self._was_accepted or self._meter.total_bytes or self.finished is not None:
            return True
        if isinstance(outcome, Failed):
            # A refusal by status consumed nothing; a silence may have.
            return outcome.error.may_have_reached_provider and outcome.error.status is None
        return self.was_sent

    async def _read(
        self,
        stream: AsyncIterator[ProviderItem],
        sink: Sink,
        watch: Watchdog,
        *,
        gap_s: float,
        max_answer: int,
        now: Clock,
    ) -> None:
        async for item in stream:
            if isinstance(item, ContentDelta):
                if self.first_content_at is None:
                    self.first_content_at = now()
                    crash_point(CrashPoint.ATTEMPT_BEFORE_FIRST_TOKEN)
                size = self._meter.add(item)
                self._bound(size, max_answer)
                if not sink.put(item, size):
                    # The caller is slow, not the provider: no clock of the provider's runs meanwhile but the total.
                    watch.expect_nothing()
                    await sink.room()
                watch.expect(gap_s, Reason.CONTENT_GAP)
            elif isinstance(item, ProviderAccepted):
                self._was_accepted = True
                self.quota = item.quota
                self.response_id = item.response_id
                crash_point(CrashPoint.ATTEMPT_AFTER_CONNECT)
            elif isinstance(item, ProviderIdentified):
                self.response_id = self.response_id or item.response_id
                self.answering_model = item.model
            else:
                self.finished = item
                return

    def _bound(self, size: int, max_answer: int) -> None:
        if self._meter.total_bytes > max_answer:
            raise ProviderError(FailureKind.PROTOCOL_VIOLATION, f"the answer is longer than {max_answer} bytes")
        if self._drain_left is not None:
            self._drain_left -= size
            if self._drain_left < 0:
                raise Interrupted(Reason.CALLER_LEFT)

    def _interrupted(self, reason: Reason, clocks: AttemptClocks) -> Outcome:
        match reason:
            case Reason.FIRST_CONTENT:
                message = f"no content within {clocks.first_content_s:.1f} s"
                return Failed(ProviderError(FailureKind.TIMED_OUT, message), is_evidence=not clocks.is_shortened)
            case Reason.CONTENT_GAP:
                message = f"no further content within {clocks.content_gap_s:.1f} s"
            case Reason.TOTAL:
                message = f"the answer took longer than {clocks.total_s:.1f} s"
            case Reason.CALLER_LEFT | Reason.DEADLINE | Reason.SHUTDOWN:
                return Stopped(reason)
        return Failed(ProviderError(FailureKind.TIMED_OUT, message))

    def _judged(self, request: CompletionRequest) -> Outcome:
        finished = self.finished
        if finished is None:
            return Failed(ProviderError(FailureKind.STREAM_BROKEN, "the stream ended without a finish reason"))
        is_empty = self.first_content_at is None
        if is_empty and finished.finish_reason is FinishReason.STOP and not request.sampling.stop:
            return Failed(ProviderError(FailureKind.MODEL_MISBEHAVED, "the model answered with nothing"))
        return Succeeded(finished)


def describe(outcome: Outcome) -> tuple[str, str]:
    """Class and message of what went wrong; both empty on success."""
    match outcome:
        case Succeeded():
            return "", ""
        case Failed(error):
            return error.kind.value, error.message[:MAX_ERROR_MESSAGE]
        case Stopped(reason):
            return _STOP_CLASSES[reason], reason.value
        case Crashed():
            return "internal", "internal error"
