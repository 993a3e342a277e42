"""What is remembered of routes and keys, and what that forbids.

Three things are held apart, so that nobody pays for another's fault:

- a `RouteHealth` per route (provider, address, model): moving averages, and a `Breaker` for faults of the provider;
- a `Rest` per key: 401, 402 and 429 are about the key, so one tenant's bad key trips nobody else;
- a `Rest` per key and model: what this key may not use, what is gone, or what the provider wants left alone a while.

All values are immutable and take the time as an argument, in seconds of any steady clock.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import assert_never

import msgspec
from msgspec.structs import replace

from router_service.domain.errors import FailureKind, ProviderError

AVERAGE_WEIGHT = 0.2  # of the newest observation: about the last ten count
HEALTHY_ERROR_RATE = 0.2
ERROR_HALF_LIFE_S = 30.0  # a route that is passed over for its errors gets no attempt that could clear it: time does
SPEEDS_LAST_S = 300.0  # without an attempt for so long, nobody knows any more how fast a route is
KEY_RECOVERY_S = 300.0
RATE_LIMIT_RECOVERY_S = 60.0
CONSECUTIVE_FAILURES_TO_OPEN = 5
WINDOW_S = 10.0
WINDOW_MIN_ATTEMPTS = 20
WINDOW_FAILURE_RATIO = 0.5
PROBE_INTERVAL_S = 5.0
MAX_OPEN_S = 60.0
OUT_OF_TURN = 16  # attempts at a route that answered a moment ago, for requests that nobody else can serve
OUT_OF_TURN_PER_SUCCESS = 2  # so many more for each success of an attempt that began before the breaker opened
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


class Breaker(msgspec.Struct, frozen=True):
    """Keeps requests from a route that fails, and lets one probe through now and then.

    Opens on 5 failures in a row, or on half of at least 20 attempts within 10 s. Stays open 5 s, then twice as long
    after each failed probe, up to 60 s; `probe_due_at` is when that ends. `open_since` is None while closed;
    `probe_since` is None while no probe runs, else the beginning of the latest. `began_at` is when an attempt started.

    A route that still answered within 10 s before the breaker opened is sick and not dead. Requests that have no other
    candidate may go there out of turn, `out_of_turn` more of them; one that succeeds closes the breaker.
    """

    consecutive_failures: int = 0
    window_start: float = 0.0
    window_attempts: int = 0
    window_failures: int = 0
    open_since: float | None = None
    open_for_s: float = 0.0
    probe_due_at: float = 0.0
    probe_since: float | None = None
    last_success_at: float | None = None
    out_of_turn: int = 0

    def state(self, now: float) -> BreakerState:
        if self.open_since is None:
            return BreakerState.CLOSED
        if self._probe_is_running(now) or now >= self.probe_due_at:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def admits(self, now: float, *, is_only_candidate: bool) -> bool:
        """Whether a request may go through. An only candidate is never kept out for longer than one probe interval,
        not even by a probe that takes long to answer, and not at all while attempts out of turn are left.
        """
        if self.open_since is None:
            return True
        if is_only_candidate:
            return self.out_of_turn > 0 or now >= self._due_for_an_only_candidate(now)
        return not self._probe_is_running(now) and now >= self.probe_due_at

    def retry_after_s(self, now: float) -> float:
        """When the next probe may go, in seconds from now."""
        if self.open_since is None:
            return 0.0
        return max(0.0, self._due_for_an_only_candidate(now) - now)

    def started(self, now: float) -> Breaker:
        """An admitted attempt begins. On an open breaker it is the probe, if one is due."""
        if self.open_since is None:
            return self
        if self.out_of_turn > 0 and now < self._due_for_an_only_candidate(now):
            return replace(self, out_of_turn=self.out_of_turn - 1)
        return replace(self, probe_since=now)

    def succeeded(self, now: float, *, began_at: float) -> Breaker:
        """An attempt succeeded: whatever was held against the route is over. One that began before the breaker opened
        is only a sign of life, after which the next probe need not wait.
        """
        if self.open_since is not None:
            is_stale = began_at < self.open_since
            if is_stale:
                return replace(
                    self,
                    probe_due_at=min(self.probe_due_at, now),
                    last_success_at=now,
                    out_of_turn=min(OUT_OF_TURN, self.out_of_turn + OUT_OF_TURN_PER_SUCCESS),
                )
            return Breaker(last_success_at=now)
        fresh = self._window_at(now)
        return replace(fresh, consecutive_failures=0, window_attempts=fresh.window_attempts + 1, last_success_at=now)

    def failed(self, now: float, *, began_at: float) -> Breaker:
        """An attempt failed by the provider's fault. One that began before the breaker opened tells nothing new."""
        if self.open_since is not None:
            if self.probe_since is None or began_at < self.open_since:
                return self
            return self._opened(now, for_s=min(MAX_OPEN_S, self.open_for_s * 2), out_of_turn=self.out_of_turn)
        fresh = self._window_at(now)
        counted = replace(
            fresh,
            consecutive_failures=fresh.consecutive_failures + 1,
            window_attempts=fresh.window_attempts + 1,
            window_failures=fresh.window_failures + 1,
        )
        if not counted.has_seen_enough():
            return counted
        is_dead = self.last_success_at is None or now >= self.last_success_at + WINDOW_S
        return self._opened(now, for_s=PROBE_INTERVAL_S, out_of_turn=0 if is_dead else OUT_OF_TURN)

    def abandoned(self, *, began_at: float) -> Breaker:
        """An attempt ended without a verdict, for example because its caller left: if it was the probe, the next one
        may probe.
        """
        if self.probe_since is None or began_at < self.probe_since:
            return self
        return replace(self, probe_since=None)

    def _opened(self, now: float, *, for_s: float, out_of_turn: int) -> Breaker:
        return Breaker(
            open_since=now,
            open_for_s=for_s,
            probe_due_at=now + for_s,
            last_success_at=self.last_success_at,
            out_of_turn=out_of_turn,
        )

    def _probe_is_running(self, now: float) -> bool:
        return self.probe_since is not None and now < self.probe_since + PROBE_LEASE_S

    def _due_for_an_only_candidate(self, now: float) -> float:
        last_try = max(self.open_since or 0.0, self.probe_since or 0.0)
        due_at = last_try + min(self.open_for_s, PROBE_INTERVAL_S)
        return due_at if self._probe_is_running(now) else min(self.probe_due_at, due_at)

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


class RouteHealth(msgspec.Struct, frozen=True):
    """What was observed of a route. None means never observed. `error_rate` is that of `observed_at`; see `at`."""

    first_token_s: float | None = None
    tokens_per_s: float | None = None
    error_rate: float = 0.0
    attempts: int = 0
    breaker: Breaker = Breaker()
    observed_at: float = 0.0

    def at(self, now: float) -> RouteHealth:
        """The health as judged at `now`: half of the errors are forgotten every 30 s, speeds after 5 minutes."""
        if self.attempts == 0 or now <= self.observed_at:
            return self
        if now - self.observed_at >= SPEEDS_LAST_S:
            return RouteHealth(breaker=self.breaker, observed_at=now)
        if self.error_rate == 0.0:
            return self
        faded = self.error_rate * 0.5 ** ((now - self.observed_at) / ERROR_HALF_LIFE_S)
        return replace(self, error_rate=faded, observed_at=now)

    def is_well(self, now: float) -> bool:
        """Whether more requests do no harm: few failed lately, and the breaker is closed."""
        return self.breaker.open_since is None and self.at(now).error_rate <= HEALTHY_ERROR_RATE

    def started(self, now: float) -> RouteHealth:
        return replace(self, breaker=self.breaker.started(now))

    def succeeded(
        self, now: float, *, began_at: float, first_token_s: float | None, tokens_per_s: float | None
    ) -> RouteHealth:
        """An attempt succeeded; None where it gave nothing to measure."""
        return RouteHealth(
            first_token_s=self.first_token_s if first_token_s is None else average(self.first_token_s, first_token_s),
            tokens_per_s=self.tokens_per_s if tokens_per_s is None else average(self.tokens_per_s, tokens_per_s),
            error_rate=average(self.at(now).error_rate, 0.0),
            attempts=self.attempts + 1,
            breaker=self.breaker.succeeded(now, began_at=began_at),
            observed_at=now,
        )

    def failed(self, now: float, *, began_at: float) -> RouteHealth:
        return replace(
            self,
            error_rate=average(self.at(now).error_rate, 1.0),
            attempts=self.attempts + 1,
            breaker=self.breaker.failed(now, began_at=began_at),
            observed_at=now,
        )

    def abandoned(self, *, began_at: float) -> RouteHealth:
        return replace(self, breaker=self.breaker.abandoned(began_at=began_at))


UNOBSERVED = RouteHealth()


class KeyTrouble(msgspec.Struct, frozen=True):
    """The last 401, 402 or 429 of a key, `age_s` ago. It outlives the rest that it caused, and fades."""

    kind: FailureKind
    age_s: float

    @property
    def recovered(self) -> float:
        """From 0 right after the trouble to 1 when it is forgotten."""
        lasts_s = RATE_LIMIT_RECOVERY_S if self.kind is FailureKind.RATE_LIMITED else KEY_RECOVERY_S
        return min(1.0, max(0.0, self.age_s / lasts_s))


class Rest(msgspec.Struct, frozen=True):
    """A key, or a key with a model, is left alone for a while. Until `asked_until` the provider itself wants it so."""

    kind: FailureKind
    since: float
    until: float
    asked_until: float = 0.0

    def admits(self, now: float, *, is_only_candidate: bool) -> bool:
        """Whether it may be used again. What the provider asked for is kept even by an only candidate."""
        return now >= self._end(is_only_candidate=is_only_candidate)

    def retry_after_s(self, now: float) -> float:
        return max(0.0, self._end(is_only_candidate=True) - now)

    def joined_by(self, newer: Rest) -> Rest:
        """The longer of two rests: a short one never cuts a long one, nor what the provider asked for."""
        longer = newer if newer.until >= self.until else self
        return replace(longer, asked_until=max(self.asked_until, newer.asked_until))

    def tried_again(self, now: float) -> Rest:
        """An only candidate is tried before the rest is over: the next try is a probe interval away."""
        return replace(self, since=now) if now < self.until else self

    def after_success(self, now: float) -> Rest | None:
        """What is left of it when an attempt succeeded all the same: only what the provider asked for."""
        return replace(self, until=self.asked_until) if now < self.asked_until else None

    def _end(self, *, is_only_candidate: bool) -> float:
        if not is_only_candidate:
            return self.until
        return max(self.asked_until, min(self.until, self.since + PROBE_INTERVAL_S))


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
    """How long what a failure is held against is left alone: zero long for failures of the route that ask for no wait.

    A wait that an ailing provider asks for is kept by the key that it was told, and outlasts even an only candidate's
    patience; for all others the breaker judges.
    """
    kind = error.cause
    if error.retry_after_s is not None:
        wait_s = min(max(error.retry_after_s, 0.0), MAX_RETRY_AFTER_S)
        is_asked_for = kind is FailureKind.RATE_LIMITED or culprit(kind) is Culprit.ROUTE
        return Rest(kind, now, now + wait_s, asked_until=now + wait_s if is_asked_for else 0.0)
    match culprit(kind):
        case Culprit.KEY:
            wait_s = DEFAULT_RATE_LIMIT_REST_S if kind is FailureKind.RATE_LIMITED else KEY_REST_S
        case Culprit.KEY_AND_MODEL:
            wait_s = MODEL_REST_S
        case Culprit.ROUTE | Culprit.NOBODY:
            wait_s = 0.0
    return Rest(kind, now, now + wait_s)
