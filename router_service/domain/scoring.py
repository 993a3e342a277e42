"""Ranks candidates. Every term runs from 0 (worst) to 1 (best); the score is their weighted mean.

| term | value | weight |
|---|---|---|
| preference | 1 for the tenant's preferred provider while it is healthy, not throttled and fast enough, else 0 | 20 |
| health | 1 - moving average of failures, which fades with a half-life of 30 s while nobody tries | 4 |
| quota | what is left of the tightest limit: the tenant's, or the key's own at the provider | 2 |
| credential | 0 right after a 401, 402 or 429 of the key, back to 1 within 5 minutes (429: 1 minute) | 2 |
| funding | 1 for the tenant's own key or none, 0.5 for the operator's | 1 |
| latency | 0.5 / (0.5 + seconds to the first token) | by task |
| throughput | tokens per second / (100 + tokens per second) | by task |
| price | 1 / (1 + dollars per million tokens, three prompt tokens to one of output) | by task |
| task_fit | the catalogue's judgement of the model for the task, 0.5 where there is none | by task |
| context | window / (100 000 + window) | by task |

`preference` outweighs all others together, so a preferred provider that can serve is always first; it stops counting
when more than a fifth of the attempts fail, when the tenant's limit says to fail over, or when the caller's deadline
would pass before the provider's usual first token.

Nobody knows yet how fast a provider without attempts is, or one that nobody has tried for 5 minutes: it is taken for
average. `luck`, a random number per candidate, decides among scores that are nearly equal (within 0.02), so that equal
candidates share the load instead of all requests falling upon the one that was best a moment ago; a candidate without
fresh data has a wider spread (0.05), so that now and then one is tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType

import msgspec

from router_service.domain.candidate import Candidate
from router_service.domain.completion import TaskType
from router_service.domain.health import HEALTHY_ERROR_RATE, UNOBSERVED, KeyTrouble, RouteHealth
from router_service.domain.usage import Funding

UNKNOWN = 0.5
SPREAD = 0.02
SPREAD_WITHOUT_DATA = 0.05
_SURE_LEAD = SPREAD_WITHOUT_DATA + 0.001  # more than luck and rounding can make up

_HEALTH_WORDS = "{:.0%} of recent attempts failed, {} in all"
_LATENCY_WORDS = "first token after {:.0f} ms, averaged over {} attempts"
_LIMIT_WORDS = "{:.0%} of the tenant's tightest limit left"
_KEY_WORDS = "{:.0%} of the key's own limit at the provider left"

_COMMON = {"preference": 20.0, "health": 4.0, "quota": 2.0, "credential": 2.0, "funding": 1.0}


def _weights(
    *, latency: float, throughput: float, price: float, task_fit: float, context: float
) -> Mapping[str, float]:
    return MappingProxyType(
        {
            **_COMMON,
            "latency": latency,
            "throughput": throughput,
            "price": price,
            "task_fit": task_fit,
            "context": context,
        }
    )


TASK_WEIGHTS: Mapping[TaskType, Mapping[str, float]] = MappingProxyType(
    {
        TaskType.CHAT: _weights(latency=3, throughput=1, price=1, task_fit=1, context=0),
        TaskType.CODE: _weights(latency=1, throughput=2, price=0.5, task_fit=3, context=0.5),
        TaskType.REASONING: _weights(latency=0.5, throughput=0.5, price=0.5, task_fit=4, context=0.5),
        TaskType.SUMMARISATION: _weights(latency=0.5, throughput=0.5, price=3, task_fit=1, context=2),
        TaskType.EXTRACTION: _weights(latency=0.5, throughput=2, price=3, task_fit=1, context=0.5),
    }
)
TERM_NAMES = frozenset(TASK_WEIGHTS[TaskType.CHAT])
MAX_WEIGHT = 1e6  # a sum of huge weights would be infinite, and the score no number


# What a value was computed from: a format and its arguments. Most are never read, and to write them all out would cost
# a request more than its whole ranking does.
Words = tuple[object, ...]


class Term(msgspec.Struct, frozen=True):
    """One part of a score. `words` are what `evidence` is made of: a format string, then its arguments."""

    name: str
    value: float
    weight: float
    words: Words

    @property
    def evidence(self) -> str:
        """In words, what the value was computed from."""
        form, *arguments = self.words
        return str(form).format(*arguments)


class Facts(msgspec.Struct, frozen=True):
    """What is known of a candidate when a request is ranked. None means unknown. `luck` runs from 0 to 1.

    `limit_remaining_ratio` is of the tenant's own limits, `key_remaining_ratio` of the key's at the provider. `trouble`
    is the last 401, 402 or 429 of the key.
    """

    candidate: Candidate
    health: RouteHealth = UNOBSERVED
    price_usd_per_million: tuple[Decimal, Decimal] | None = None
    limit_remaining_ratio: float | None = None
    key_remaining_ratio: float | None = None
    trouble: KeyTrouble | None = None
    should_failover: bool = False
    luck: float = 0.5


class Scored(msgspec.Struct, frozen=True):
    """A candidate with its score and the terms that it is made of."""

    candidate: Candidate
    score: float
    terms: tuple[Term, ...]


def rank(
    facts: Sequence[Facts],
    *,
    task: TaskType,
    preferred_provider: str | None,
    weights: Mapping[str, float],
    remaining_s: float | None,
    preference_is_strict: bool = False,
) -> list[Scored]:
    """The candidates, best first, in whichever order they came. `weights` overrides those of the task, by term.

    `preference_is_strict` keeps the preferred provider first whatever its state: for tenants without failover.
    """
    effective = _effective(task, weights)
    preference = _Preference(preferred_provider, remaining_s, is_strict=preference_is_strict)
    ordered = sorted(
        ((_score(fact, task, preference.of(fact), effective, remaining_s), fact) for fact in facts),
        key=lambda pair: _place(*pair),
    )
    return [scored for scored, _ in ordered]


def is_surely_first(
    fact: Facts,
    *,
    task: TaskType,
    preferred_provider: str | None,
    weights: Mapping[str, float],
    remaining_s: float | None,
    preference_is_strict: bool = False,
) -> bool:
    """Whether `rank` puts this candidate first, whatever is known of candidates of other providers."""
    effective = _effective(task, weights)
    preference, _ = _Preference(preferred_provider, remaining_s, is_strict=preference_is_strict).of(fact)
    total = sum(effective.values())
    # It has at least what the preference gives it, and any other at most all the rest and the most of luck.
    return preference * effective["preference"] > total - effective["preference"] + _SURE_LEAD * total


def _effective(task: TaskType, weights: Mapping[str, float]) -> Mapping[str, float]:
    if not weights:
        return TASK_WEIGHTS[task]
    return {**TASK_WEIGHTS[task], **{name: weight for name, weight in weights.items() if name in TERM_NAMES}}


def _place(scored: Scored, fact: Facts) -> tuple[float, str, str]:
    """Sorts by score and luck; the names settle what is still even, so that the order of arrival never does."""
    candidate = scored.candidate
    return (-(scored.score + _spread(fact) * fact.luck), candidate.provider, candidate.model.name)


def _spread(fact: Facts) -> float:
    return SPREAD_WITHOUT_DATA if fact.health.attempts == 0 else SPREAD


def _score(
    fact: Facts,
    task: TaskType,
    preference: tuple[float, Words],
    weights: Mapping[str, float],
    remaining_s: float | None,
) -> Scored:
    measures = (
        ("preference", *preference),
        ("health", *_health(fact.health)),
        ("latency", *_latency(fact.health, remaining_s)),
        ("throughput", *_throughput(fact.health)),
        ("price", *_price(fact.price_usd_per_million)),
        ("quota", *_quota(fact)),
        ("credential", *_credential(fact.trouble)),
        ("task_fit", *_task_fit(fact.candidate, task)),
        ("context", *_context(fact.candidate)),
        ("funding", *_funding(fact.candidate)),
    )
    terms = tuple([Term(name, value, weights[name], words) for name, value, words in measures])
    weighted = total_weight = 0.0
    for term in terms:  # one pass: this is done for every candidate of every request
        weighted += term.value * term.weight
        total_weight += term.weight
    return Scored(fact.candidate, weighted / total_weight if total_weight > 0 else 0.0, terms)


class _Preference(msgspec.Struct, frozen=True):
    preferred: str | None
    remaining_s: float | None
    is_strict: bool

    def of(self, fact: Facts) -> tuple[float, Words]:
        if self.preferred is None:
            return 0.0, ("the tenant prefers none",)
        if fact.candidate.provider != self.preferred:
            return 0.0, ("the tenant prefers {}", self.preferred)
        return self._of_preferred(fact)

    def _of_preferred(self, fact: Facts) -> tuple[float, Words]:
        if self.is_strict:
            return 1.0, ("preferred by the tenant, without failover",)
        if fact.health.error_rate > HEALTHY_ERROR_RATE:
            return 0.0, ("preferred, but {:.0%} of its recent attempts failed", fact.health.error_rate)
        if fact.should_failover:
            return 0.0, ("preferred, but the tenant is near its limit here",)
        if _is_too_slow(fact.health, self.remaining_s):
            return 0.0, ("preferred, but too slow for the deadline",)
        return 1.0, ("preferred by the tenant",)


def _health(health: RouteHealth) -> tuple[float, Words]:
    if health.attempts == 0:
        return 1.0, ("no attempt yet",)
    return 1.0 - health.error_rate, (_HEALTH_WORDS, health.error_rate, health.attempts)


def _latency(health: RouteHealth, remaining_s: float | None) -> tuple[float, Words]:
    first_token_s = health.first_token_s
    if first_token_s is None:
        return UNKNOWN, ("no first token observed yet",)
    if _is_too_slow(health, remaining_s):
        return 0.0, (_LATENCY_WORDS + ": later than the deadline", first_token_s * 1000, health.attempts)
    return 0.5 / (0.5 + first_token_s), (_LATENCY_WORDS, first_token_s * 1000, health.attempts)


def _is_too_slow(health: RouteHealth, remaining_s: float | None) -> bool:
    return remaining_s is not None and health.first_token_s is not None and health.first_token_s > remaining_s


def _throughput(health: RouteHealth) -> tuple[float, Words]:
    speed = health.tokens_per_s
    if speed is None:
        return UNKNOWN, ("no throughput observed yet",)
    return speed / (100.0 + speed), ("{:.0f} tokens per second", speed)


def _price(price: tuple[Decimal, Decimal] | None) -> tuple[float, Words]:
    if price is None:
        return UNKNOWN, ("no price known",)
    input_usd, output_usd = price
    blended = float(3 * input_usd + output_usd) / 4
    return 1.0 / (1.0 + blended), ("${:f} in, ${:f} out per million tokens", input_usd, output_usd)


def _quota(fact: Facts) -> tuple[float, Words]:
    if fact.should_failover:
        return 0.0, ("the tenant's limit here says to fail over",)
    of_limit, of_key = fact.limit_remaining_ratio, fact.key_remaining_ratio
    if of_limit is None and of_key is None:
        return 1.0, ("no limit known",)
    if of_key is None:
        assert of_limit is not None
        return _ratio(of_limit), (_LIMIT_WORDS, of_limit)
    if of_limit is None:
        return _ratio(of_key), (_KEY_WORDS, of_key)
    return _ratio(min(of_limit, of_key)), (f"{_LIMIT_WORDS}, {_KEY_WORDS}", of_limit, of_key)


def _ratio(value: float) -> float:
    return min(1.0, max(0.0, value))


def _credential(trouble: KeyTrouble | None) -> tuple[float, Words]:
    if trouble is None:
        return 1.0, ("no complaint of the provider about the key",)
    return trouble.recovered, ("{} {:.0f} s ago", trouble.kind.value, trouble.age_s)


def _task_fit(candidate: Candidate, task: TaskType) -> tuple[float, Words]:
    quality = candidate.model.quality.get(task)
    if quality is None:
        return UNKNOWN, ("no judgement of {} for {}", candidate.model.name, task)
    return _ratio(quality), ("{} for {}", candidate.model.name, task)


def _context(candidate: Candidate) -> tuple[float, Words]:
    window = candidate.model.context_window_tokens
    if window is None:
        return UNKNOWN, ("context window unknown",)
    return window / (100_000 + window), ("context window of {} tokens", window)


def _funding(candidate: Candidate) -> tuple[float, Words]:
    if candidate.credential is None:
        return 1.0, ("no key needed",)
    match candidate.credential.funding:
        case Funding.TENANT_KEY:
            return 1.0, ("the tenant's own key",)
        case Funding.SYSTEM_KEY:
            return 0.5, ("the operator's key",)
