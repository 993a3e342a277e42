"""How many attempts beyond the first a router may spend, so that retries never become the overload.

Within a window of ten seconds, attempts again on the same route may be a tenth of the requests, and all further
attempts together, failovers included, a fifth. Below that stands a floor of attempts running at once, so that a
quiet router always retries and always fails over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

WINDOW_S = 10.0
SAME_ROUTE_RATIO = 0.1
SAME_ROUTE_FLOOR = 3
FAILOVER_RATIO = 0.2
FAILOVER_FLOOR = 64


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """Counts of the current and the previous window, and the further attempts that are running now."""

    window_start: float = 0.0
    requests: int = 0
    further_attempts: int = 0
    previous_requests: int = 0
    previous_further_attempts: int = 0
    running: int = 0

    def request_arrived(self, now: float) -> RetryBudget:
        fresh = self._window_at(now)
        return replace(fresh, requests=fresh.requests + 1)

    def allows_same_route(self, now: float) -> bool:
        """Whether another attempt on the same route is within the budget."""
        return self.running < SAME_ROUTE_FLOOR or self._window_at(now).is_below(SAME_ROUTE_RATIO)

    def allows_failover(self, now: float) -> bool:
        """Whether an attempt on another candidate is within the budget."""
        return self.running < FAILOVER_FLOOR or self._window_at(now).is_below(FAILOVER_RATIO)

    def further_attempt_started(self, now: float) -> RetryBudget:
        fresh = self._window_at(now)
        return replace(fresh, further_attempts=fresh.further_attempts + 1, running=fresh.running + 1)

    def further_attempt_ended(self) -> RetryBudget:
        return replace(self, running=max(0, self.running - 1))

    def is_below(self, ratio: float) -> bool:
        """Whether one further attempt more stays within `ratio` of the requests of both windows."""
        further = self.further_attempts + self.previous_further_attempts
        return further + 1 <= ratio * (self.requests + self.previous_requests)

    def _window_at(self, now: float) -> RetryBudget:
        age_s = now - self.window_start
        if age_s < WINDOW_S:
            return self
        if age_s >= 2 * WINDOW_S:
            return RetryBudget(window_start=now, running=self.running)
        return RetryBudget(
            window_start=self.window_start + WINDOW_S,
            previous_requests=self.requests,
            previous_further_attempts=self.further_attempts,
            running=self.running,
        )
