"""What is remembered of routes and keys, and what that forbids.

Three things are held apart, so that nobody pays for another's fault:

- a `RouteHealth` per route (provider, address, model): moving averages, and a `Breaker` for faults of the provider;
- a `Rest` per key: 401, 402 and 429 are about the key, so one tenant's bad key trips nobody else;
- a `Rest` per key and model: what this key may not use, or what is gone.

All values are immutable and take the time as an argument, in seconds of any steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import assert_never

from router_service.domain.errors import FailureKind, ProviderError

AVERAGE_WEIGHT = 0.2  # of the newest observation: about the last ten count
CONSECUTIVE_FAILURES_TO_OPEN = 5
WINDOW_S = 10.0
WINDOW_MIN_ATTEMPTS = 20
WINDOW_FAILURE_RATIO = 0.5
PROBE_INTERVAL_S = 5.0
MAX_OPEN_S = 60.0
PROBE_LEASE_S = 60.0  # a probe without a verdict after this long is given up for lost
MAX_RETRY_AFTER_S = 60.0
DEFAULT_RATE_LIMIT_REST_S = 5.0
KEY_REST_S = 60.0
MODEL_REST_S = 60.0


def average(current: float | None, observed: float) -> float:
    """Exponentially weighted moving average; the first observation stands for itself."""
    return observed if current is None else current + AVERAGE_WEIGHT * (observed - current)


class BreakerState(StrEnum):
    """State of a breaker as reported to operators."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """Keeps requests from a route that fails, and lets one probe through now and then.

    Opens on 5 failures in a row, or on half of at least 20 attempts within 10 s. Stays open 5 s, then twice as long
    after each failed probe, up to 60 s. `open_since` is None while closed; `probe_since` is None while no probe runs.
    """

    consecutive_failures: int = 0
    window_start: float = 0.0
    window_attempts: int = 0
    window_failures: int = 0
    open_since: float | None = None
    open_for_s: float = 0.0
    probe_since: float | None = None

    def state(self, now: float) -> BreakerState:
        if self.open_since is None:
            return BreakerState.CLOSED
        if self._probe_is_running(now) or now >= self.open_since + self.open_for_s:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def admits(self, now: float, *, is_only_candidate: bool) -> bool:
        """Whether a request may go through. An only candidate is never kept out for longer than one probe interval."""
        if self.open_since is None:
            return True
        if self._probe_is_running(now):
            return False
        patience = min(self.open_for_s, PROBE_INTERVAL_S) if is_only_candidate else self.open_for_s
        return now >= self.open_since + patience

    def retry_after_s(self, now: float) -> float:
        """When the next probe may go, in seconds from now."""
        if self.open_since is None:
            return 0.0
        if self._probe_is_running(now):
            return PROBE_INTERVAL_S
        return max(0.0, self.open_since + min(self.open_for_s, PROBE_INTERVAL_S) - now)

    def started(self, now: float) -> Breaker:
        """An admitted attempt begins. On an open breaker it is the probe."""
        return self if self.open_since is None else replace(self, probe_since=now)

    def succeeded(self, now: float) -> Breaker:
        """An attempt succeeded: whatever was held against the route is over."""
        if self.open_since is not None:
            return Breaker()
        fresh = self._window_at(now)
        return replace(fresh, consecutive_failures=0, window_attempts=fresh.window_attempts + 1)

    def failed(self, now: float) -> Breaker:
        """An attempt failed by the provider's fault."""
        if self.open_since is not None:
            if self.probe_since is None:
                return self  # began before the breaker opened: tells nothing new
            return replace(self, open_since=now, open_for_s=min(MAX_OPEN_S, self.open_for_s * 2), probe_since=None)
        fresh = self._window_at(now)
        counted = replace(
            fresh,
            consecutive_failures=fresh.consecutive_failures + 1,
            window_attempts=fresh.window_attempts + 1,
            window_failures=fresh.window_failures + 1,
        )
        return Breaker(open_since=now, open_for_s=PROBE_INTERVAL_S) if counted.has_seen_enough() else counted

    def abandoned(self) -> Breaker:
        """An attempt ended without a verdict, for example because its caller left: the next one may probe."""
        return self if self.probe_since is None else replace(self, probe_since=None)

    def _probe_is_running(self, now: float) -> bool:
        return self.probe_since is not None and now < self.probe_since + PROBE_LEASE_S

    def _window_at(self, now: float) -> Breaker:
        if now < self.window_start + WINDOW_S:
            return self
        return replace(self, window_start=now, window_attempts=0, window_failures=0)

    def has_seen_enough(self) -> bool:
        """Whether the failures counted while closed are enough to open."""
        if self.consecutive_failures >= CONSECUTIVE_FAILURES_TO_OPEN:
            return True
        return (
            self.window_attempts >= WINDOW_MIN_ATTEMPTS
            and self.window_failures >= WINDOW_FAILURE_RATIO * self.window_attempts
        )


@dataclass(frozen=True, slots=True)
class RouteHealth:
    """What was observed of a route. None means never observed."""

    first_token_s: float | None = None
    tokens_per_s: float | None = None
    error_rate: float = 0.0
    attempts: int = 0
    breaker: Breaker = Breaker()

    def started(self, now: float) -> RouteHealth:
        return replace(self, breaker=self.breaker.started(now))

    def succeeded(self, now: float, *, first_token_s: float | None, tokens_per_s: float | None) -> RouteHealth:
        """An attempt succeeded; None where it gave nothing to measure."""
        return RouteHealth(
            first_token_s=self.first_token_s if first_token_s is None else average(self.first_token_s, first_token_s),
            tokens_per_s=self.tokens_per_s if tokens_per_s is None else average(self.tokens_per_s, tokens_per_s),
            error_rate=average(self.error_rate, 0.0),
            attempts=self.attempts + 1,
            breaker=self.breaker.succeeded(now),
        )

    def failed(self, now: float) -> RouteHealth:
        return replace(
            self,
            error_rate=average(self.error_rate, 1.0),
            attempts=self.attempts + 1,
            breaker=self.breaker.failed(now),
        )

    def abandoned(self) -> RouteHealth:
        return replace(self, breaker=self.breaker.abandoned())


UNOBSERVED = RouteHealth()


@dataclass(frozen=True, slots=True)
class Rest:
    """A key, or a key with a model, is left alone for a while; `is_asked_for` when the provider named the time."""

    kind: FailureKind
    since: float
    until: float
    is_asked_for: bool = False

    def admits(self, now: float, *, is_only_candidate: bool) -> bool:
        """Whether it may be used again. What the provider asked for is kept even by an only candidate."""
        return now >= self._end(is_only_candidate=is_only_candidate)

    def retry_after_s(self, now: float) -> float:
        return max(0.0, self._end(is_only_candidate=True) - now)

    def joined_by(self, newer: Rest) -> Rest:
        """The longer of two rests: a short one never cuts a long one."""
        return newer if newer.until >= self.until else self

    def tried_again(self, now: float) -> Rest:
        """An only candidate is tried before the rest is over: the next try is a probe interval away."""
        return replace(self, since=now) if now < self.until else self

    def _end(self, *, is_only_candidate: bool) -> float:
        if is_only_candidate and not self.is_asked_for:
            return min(self.until, self.since + PROBE_INTERVAL_S)
        return self.until


class Culprit(Enum):
    """What a failure is held against."""

    NOBODY = "nobody"
    ROUTE = "route"
    KEY = "key"
    KEY_AND_MODEL = "key_and_model"


def culprit(kind: FailureKind) -> Culprit:
    """What a failure of this kind is held against."""
    match kind:
        case FailureKind.KEY_REJECTED | FailureKind.NO_CREDIT | FailureKind.RATE_LIMITED:
            return Culprit.KEY
        case FailureKind.NOT_ALLOWED | FailureKind.MODEL_GONE:
            return Culprit.KEY_AND_MODEL
        case (
            FailureKind.OVERLOADED
            | FailureKind.UPSTREAM_BROKEN
            | FailureKind.PROTOCOL_VIOLATION
            | FailureKind.CONNECT_FAILED
            | FailureKind.TRANSPORT_FAILED
            | FailureKind.TIMED_OUT
            | FailureKind.STREAM_BROKEN
        ):
            return Culprit.ROUTE
        case (
            FailureKind.BAD_REQUEST
            | FailureKind.CONTENT_REFUSED
            | FailureKind.CONTEXT_TOO_LONG
            | FailureKind.REQUEST_TOO_LARGE
            | FailureKind.MODEL_MISBEHAVED
            | FailureKind.POLICY_REFUSED
        ):
            return Culprit.NOBODY
        case _:
            assert_never(kind)


def rest_after(error: ProviderError, now: float) -> Rest:
    """How long what a failure is held against is left alone. For failures of a key, or of a key with a model."""
    if error.retry_after_s is not None:
        wait_s = min(max(error.retry_after_s, 0.0), MAX_RETRY_AFTER_S)
        return Rest(error.kind, now, now + wait_s, is_asked_for=error.kind is FailureKind.RATE_LIMITED)
    match culprit(error.kind):
        case Culprit.KEY:
            wait_s = DEFAULT_RATE_LIMIT_REST_S if error.kind is FailureKind.RATE_LIMITED else KEY_REST_S
        case Culprit.KEY_AND_MODEL:
            wait_s = MODEL_REST_S
        case Culprit.ROUTE | Culprit.NOBODY:
            wait_s = 0.0
    return Rest(error.kind, now, now + wait_s)
