"""How many attempts beyond the first may be spent, so that retries never become the overload.

Two things are told apart, because they load different servers:

- a *retry* asks a route that is unwell: the same one again, or another one that fails too. A tenth of the requests, and
  at least three: a sick provider never gets more than 1.1 times what callers ask for;
- a *failover* asks a route that is well. All further attempts together stay within a fifth of the requests, and at
  least 32, which is what it takes until breakers and scores send no more first attempts to the one that fails.

A failover from a route or key that is kept out by now is free: it was under way when the breaker opened, and such
stragglers are bounded by the provider's bulkhead. The decision record on this in `docs/decisions` has measurements.
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

WINDOW_S = 10.0
RETRY_RATIO = 0.1
RETRY_FLOOR = 3
FURTHER_RATIO = 0.2
FURTHER_FLOOR = 32


class RetryBudget(msgspec.Struct, frozen=True):
    """Counts of the current window of 10 s and of the one before it. Ratios and floors hold for both together."""

    window_start: float = 0.0
    requests: int = 0
    retries: int = 0
    failovers: int = 0
    previous_requests: int = 0
    previous_retries: int = 0
    previous_failovers: int = 0

    def request_arrived(self, now: float) -> RetryBudget:
        fresh = self._window_at(now)
        return replace(fresh, requests=fresh.requests + 1)

    def allows_retry(self, now: float) -> bool:
        """Whether one more attempt at a route that is unwell is within the budget."""
        fresh = self._window_at(now)
        retries = fresh.retries + fresh.previous_retries
        return retries + 1 <= max(RETRY_FLOOR, RETRY_RATIO * fresh.all_requests())

    def allows_failover(self, now: float, *, share: float = 1.0) -> bool:
        """Whether one more attempt at a route that is well is within `share` of the budget."""
        fresh = self._window_at(now)
        further = fresh.retries + fresh.previous_retries + fresh.failovers + fresh.previous_failovers
        return further + 1 <= share * max(FURTHER_FLOOR, FURTHER_RATIO * fresh.all_requests())

    def retried(self, now: float) -> RetryBudget:
        fresh = self._window_at(now)
        return replace(fresh, retries=fresh.retries + 1)

    def failed_over(self, now: float) -> RetryBudget:
        fresh = self._window_at(now)
        return replace(fresh, failovers=fresh.failovers + 1)

    def all_requests(self) -> int:
        return self.requests + self.previous_requests

    def _window_at(self, now: float) -> RetryBudget:
        age_s = now - self.window_start
        if age_s < WINDOW_S:
            return self
        if age_s >= 2 * WINDOW_S:
            return RetryBudget(window_start=now)
        return RetryBudget(
            window_start=self.window_start + WINDOW_S,
            previous_requests=self.requests,
            previous_retries=self.retries,
            previous_failovers=self.failovers,
        )
