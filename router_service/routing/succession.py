"""Who serves a request next: turns the pure decisions of `domain/failover` into a candidate with its place taken."""

from __future__ import annotations

import asyncio

from router_service.domain.candidate import Candidate
from router_service.domain.completion import CompletionRequest
from router_service.domain.errors import ProviderError
from router_service.domain.failover import Among, GiveUp, NextCandidate, Restart, RetrySame, Situation, after
from router_service.domain.usage import Funding
from router_service.routing.attempt import AttemptClocks
from router_service.routing.planning import Plan
from router_service.routing.retry_budgets import Further
from router_service.routing.scoreboard import Block
from router_service.routing.shared import Shared
from router_service.routing.watchdog import Interrupted, Watchdog

FIRST_TOKEN_PATIENCE = 3.0  # times the usual first token, before a pressed request goes elsewhere


class Succession:
    """The candidates of one request that were not tried yet.

    A candidate that is handed out has taken its place at the provider, and its probe: whoever gets it gives the place
    back.
    """

    def __init__(
        self, shared: Shared, request: CompletionRequest, plan: Plan, watch: Watchdog, *, deadline_at: float
    ) -> None:
        self.attempts_made = 0
        self._shared = shared
        self._request = request
        self._is_last_resort = plan.is_last_resort
        self._remaining = [scored.candidate for scored in plan.ranked]
        self._watch = watch
        self._deadline_at = deadline_at
        self._retried: Candidate | None = None

    def first(self) -> Candidate | None:
        """The best candidate that is free, or None when all places are taken or all were blocked meanwhile."""
        return self._choose(Among.ANY, current=None)

    def blocks(self) -> list[Block]:
        """What keeps out, at this moment, candidates that were not tried yet."""
        board, now = self._shared.scoreboard, self._shared.monotonic()
        found = [board.block(each, now, is_only_candidate=self._is_last_resort) for each in self._remaining]
        return [block for block in found if block is not None]

    async def after(self, current: Candidate, error: ProviderError, *, content_was_sent: bool) -> Candidate | None:
        """Who goes on after `current` failed; may wait a little for `current` itself. None when nobody does."""
        others = [c for c in self._remaining if self._is_open_to(c, current)] if self._may_go_on() else []
        situation = Situation(
            content_was_sent=content_was_sent,
            on_midstream_failure=self._request.on_midstream_failure,
            funding=current.funding,
            others_left=bool(others),
            elsewhere_left=any(_is_elsewhere(candidate, current) for candidate in others),
            retried_same=self._retried is current,
            luck=self._shared.luck(),
        )
        match after(error, situation):
            case GiveUp():
                return None
            case RetrySame(after_s):
                if await self._may_retry(current, after_s):
                    return current
                return self._choose(Among.ANY, current=current) if others else None
            case NextCandidate(among):
                return self._choose(among, current=current)
            case Restart(among):
                return self._choose(among, current=current)

    def clocks(self, candidate: Candidate, *, content_was_sent: bool) -> AttemptClocks:
        """The provider's own clocks, shortened where the caller's time is short.

        Such a request spends at most half of what is left on one silent candidate while it may go on to another,
        unless this one is known to need longer. The caller's deadline itself is watched by the run.
        """
        clocks = candidate.spec.clocks
        left_s = max(0.0, self._deadline_at - self._shared.monotonic())
        first_content_s = clocks.first_content_s
        if self._remaining and self.attempts_made < self._shared.settings.max_attempts and not content_was_sent:
            usual_s = self._shared.scoreboard.health(candidate).first_token_s or 0.0
            patience_s = max(left_s / 2, FIRST_TOKEN_PATIENCE * usual_s)
            if left_s - patience_s >= self._shared.settings.min_start_s:
                first_content_s = min(first_content_s, patience_s)
        return AttemptClocks(
            connect_s=min(clocks.connect_s, left_s),
            first_content_s=first_content_s,
            content_gap_s=clocks.content_gap_s,
            total_s=clocks.total_s,
            is_shortened=first_content_s < clocks.first_content_s,
        )

    def _choose(self, among: Among, *, current: Candidate | None) -> Candidate | None:
        shared = self._shared
        for candidate in tuple(self._remaining):
            if not _is_among(candidate, among, current) or not self._is_open_to(candidate, current):
                continue
            if shared.admission.enter_provider(candidate.provider):
                self._remaining.remove(candidate)
                now = shared.monotonic()
                if current is not None:
                    shared.retry_budgets.spend(self._further(candidate, current, now), self._request.tenant_id, now)
                shared.scoreboard.started(candidate, now)
                return candidate
        return None

    def _is_open_to(self, candidate: Candidate, current: Candidate | None) -> bool:
        """Whether nothing keeps the candidate out, and the budget has room for it after `current`."""
        shared, now = self._shared, self._shared.monotonic()
        if shared.scoreboard.block(candidate, now, is_only_candidate=self._is_last_resort) is not None:
            return False
        if current is None:
            return True
        return shared.retry_budgets.allow(self._further(candidate, current, now), self._request.tenant_id, now)

    def _further(self, candidate: Candidate, current: Candidate, now: float) -> Further:
        board = self._shared.scoreboard
        if not board.health(candidate).is_well(now):
            return Further.RETRY
        is_kept_out = board.block(current, now, is_only_candidate=False) is not None
        return Further.STRAGGLER if is_kept_out else Further.FAILOVER

    def _may_go_on(self) -> bool:
        now, settings = self._shared.monotonic(), self._shared.settings
        return self.attempts_made < settings.max_attempts and self._deadline_at - now >= settings.min_start_s

    async def _may_retry(self, candidate: Candidate, after_s: float) -> bool:
        """Wait for another attempt at the same candidate; False when there is no budget, time or place for it."""
        shared = self._shared
        now = shared.monotonic()
        has_time = self._deadline_at - now - after_s >= shared.settings.min_start_s
        has_attempts = self.attempts_made < shared.settings.max_attempts
        if not has_time or not has_attempts:
            return False
        if not shared.retry_budgets.allow(Further.RETRY, self._request.tenant_id, now):
            return False
        if shared.scoreboard.block(candidate, now + after_s, is_only_candidate=self._is_last_resort) is not None:
            return False  # this very failure has closed the route
        self._retried = candidate
        if after_s > 0:
            try:
                with self._watch:
                    await asyncio.sleep(after_s)
            except Interrupted:
                return False
        if not shared.admission.enter_provider(candidate.provider):
            return False
        now = shared.monotonic()
        shared.retry_budgets.spend(Further.RETRY, self._request.tenant_id, now)
        shared.scoreboard.started(candidate, now)
        return True


def _is_elsewhere(candidate: Candidate, current: Candidate) -> bool:
    return candidate.route_key[:2] != current.route_key[:2]


def _is_among(candidate: Candidate, among: Among, current: Candidate | None) -> bool:
    match among:
        case Among.ANY:
            return True
        case Among.ELSEWHERE:
            return current is None or _is_elsewhere(candidate, current)
        case Among.OWN_MONEY:
            return candidate.funding is not Funding.SYSTEM_KEY
        case Among.LARGER_WINDOW:
            window = candidate.model.context_window_tokens
            too_small = current.model.context_window_tokens if current is not None else None
            return window is not None and (too_small is None or window > too_small)
