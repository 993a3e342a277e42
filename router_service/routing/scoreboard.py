"""The router's memory of routes and keys: the values of `domain/health` by key, the oldest forgotten first."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.completion import QuotaHeaders
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.health import UNOBSERVED, Culprit, KeyTrouble, Rest, RouteHealth, culprit, rest_after

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_RestsAndKey = tuple["Recent[tuple[str, ...], Rest]", tuple[str, ...]]

QUOTA_MEMORY_S = 60.0

_REST_WORDS = {
    FailureKind.KEY_REJECTED: "the provider rejected the key: store another one",
    FailureKind.NO_CREDIT: "the key's account has no credit left: top it up, or store another key",
    FailureKind.RATE_LIMITED: "the provider's rate limit for this key was hit",
    FailureKind.NOT_ALLOWED: "the provider does not allow this key to use the model",
    FailureKind.MODEL_GONE: "the provider no longer serves the model: choose another one",
    FailureKind.OVERLOADED: "the provider is overloaded and asked to be left alone",
}
KEY_KINDS = {FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT}


@dataclass(frozen=True, slots=True)
class Block:
    """A candidate that is kept out for now. `kind` is the failure behind a resting key, None for a breaker."""

    candidate: Candidate
    kind: FailureKind | None
    retry_after_s: float

    @property
    def exclusion(self) -> Exclusion:
        """The block in words, which a refusal that names the key's failure does not need."""
        kind = self.kind
        if kind is None:
            reason, words, what = "BREAKER_OPEN", "kept out after repeated failures", "probe"
        else:
            reason = "KEY_REJECTED" if kind is FailureKind.KEY_REJECTED else "COOLING_DOWN"
            words, what = _REST_WORDS.get(kind, f"resting after {kind.value}"), "try"
            if self.candidate.credential is None and kind in KEY_KINDS:
                words = "the provider does not answer without a key: store one"
        explanation = f"{words}; next {what} in {self.retry_after_s:.0f} s"
        return Exclusion(self.candidate.provider, self.candidate.model.name, reason, explanation)


class Scoreboard:
    """Health by route, and rests by key and by key and model. Times are seconds of one steady clock."""

    def __init__(self, *, max_entries: int) -> None:
        self._routes: Recent[tuple[str, str, str], RouteHealth] = Recent(max_entries)
        # Apart, because a caller may name models without end: those push no key's rest out.
        self._key_rests: Recent[tuple[str, ...], Rest] = Recent(max_entries)
        self._model_rests: Recent[tuple[str, ...], Rest] = Recent(max_entries)
        self._quotas: Recent[tuple[str, str], tuple[float, float]] = Recent(max_entries)
        self._troubles: Recent[tuple[str, str], tuple[FailureKind, float]] = Recent(max_entries)

    def health(self, candidate: Candidate) -> RouteHealth:
        return self._routes.get(candidate.route_key) or UNOBSERVED

    def block(self, candidate: Candidate, now: float, *, is_only_candidate: bool) -> Block | None:
        """Why the candidate is kept out now, or None when it may be tried."""
        for rests, key in self._rests_of(candidate):
            rest = rests.get(key)
            if rest is not None and not rest.admits(now, is_only_candidate=is_only_candidate):
                return Block(candidate, rest.kind, rest.retry_after_s(now))
        health = self._routes.get(candidate.route_key)
        if health is None or health.breaker.admits(now, is_only_candidate=is_only_candidate):
            return None
        return Block(candidate, None, health.breaker.retry_after_s(now))

    def started(self, candidate: Candidate, now: float) -> None:
        """An attempt begins; takes the probe where the candidate is being probed."""
        health = self._routes.get(candidate.route_key)
        if health is not None and health.breaker.open_since is not None:
            self._routes.put(candidate.route_key, health.started(now))
        for rests, key in self._rests_of(candidate):
            rest = rests.get(key)
            if rest is not None:
                rests.put(key, rest.tried_again(now))

    def succeeded(
        self,
        candidate: Candidate,
        now: float,
        *,
        began_at: float,
        first_token_s: float | None,
        tokens_per_s: float | None,
    ) -> None:
        health = self.health(candidate).succeeded(
            now, began_at=began_at, first_token_s=first_token_s, tokens_per_s=tokens_per_s
        )
        self._routes.put(candidate.route_key, health)
        for rests, key in self._rests_of(candidate):
            rest = rests.get(key)
            if rest is None:
                continue
            remaining = rest.after_success(now)
            if remaining is None:
                rests.drop(key)
            else:
                rests.put(key, remaining)

    def failed(self, candidate: Candidate, error: ProviderError, now: float, *, began_at: float) -> None:
        """Hold the failure of an attempt that began at `began_at` against whom it concerns."""
        if error.quota is not None:
            self.note_quota(candidate, error.quota, now)
        whose = culprit(error.cause)
        if whose is Culprit.ROUTE:
            self._routes.put(candidate.route_key, self.health(candidate).failed(now, began_at=began_at))
            if error.retry_after_s is None:
                return
        else:
            self.abandoned(candidate, began_at=began_at)
            if whose is Culprit.NOBODY:
                return
        if whose is Culprit.KEY:
            self._troubles.put(candidate.credential_key, (error.cause, now))
        of_key, of_model = self._rests_of(candidate)
        rests, key = of_key if whose is Culprit.KEY else of_model
        rest, earlier = rest_after(error, now), rests.get(key)
        rests.put(key, rest if earlier is None else earlier.joined_by(rest))

    def abandoned(self, candidate: Candidate, *, began_at: float) -> None:
        """An attempt ended without a verdict on the route."""
        health = self._routes.get(candidate.route_key)
        if health is not None:
            self._routes.put(candidate.route_key, health.abandoned(began_at=began_at))

    def note_quota(self, candidate: Candidate, quota: QuotaHeaders, now: float) -> None:
        """Remember what the provider's headers say is left of the key's own limits."""
        parts = (
            (quota.remaining_requests, quota.limit_requests, quota.reset_requests_s),
            (quota.remaining_tokens, quota.limit_tokens, quota.reset_tokens_s),
        )
        known = [
            (remaining / limit, min(QUOTA_MEMORY_S, QUOTA_MEMORY_S if reset_s is None else reset_s))
            for remaining, limit, reset_s in parts
            if remaining is not None and limit
        ]
        if known:
            ratio, memory_s = min(known)
            self._quotas.put(candidate.credential_key, (ratio, now + memory_s))

    def _rests_of(self, candidate: Candidate) -> tuple[_RestsAndKey, _RestsAndKey]:
        return (self._key_rests, candidate.credential_key), (self._model_rests, candidate.key_and_model)

    def trouble(self, candidate: Candidate, now: float) -> KeyTrouble | None:
        """The key's last 401, 402 or 429, as long as it is not forgotten."""
        last = self._troubles.get(candidate.credential_key)
        if last is None:
            return None
        trouble = KeyTrouble(last[0], now - last[1])
        return trouble if trouble.recovered < 1.0 else None

    def quota_ratio(self, candidate: Candidate, now: float) -> float | None:
        """What is left of the key's tightest limit at the provider, from 0 to 1; None when nothing recent is known."""
        known = self._quotas.get(candidate.credential_key)
        return known[0] if known is not None and now < known[1] else None


class Recent(Generic[K, V]):
    """A mapping that forgets what was written longest ago once it is full."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._values: dict[K, V] = {}
        self.get: Callable[[K], V | None] = self._values.get  # itself: a request looks things up twenty times

    def put(self, key: K, value: V) -> None:
        self._values.pop(key, None)
        self._values[key] = value
        if len(self._values) > self._max_entries:
            del self._values[next(iter(self._values))]

    def drop(self, key: K) -> None:
        self._values.pop(key, None)
