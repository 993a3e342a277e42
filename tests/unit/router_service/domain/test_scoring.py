"""The ranking: what counts, and what counts most."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import ModelFacts
from router_service.domain.completion import TaskType
from router_service.domain.errors import FailureKind
from router_service.domain.health import KeyTrouble, RouteHealth
from router_service.domain.scoring import TASK_WEIGHTS, TERM_NAMES, Facts, Scored, is_surely_first, rank
from router_service.domain.usage import Funding
from tests.support.router_fakes import key, spec


def facts(name: str, **changes: object) -> Facts:
    provider = spec(name)
    base = Facts(Candidate(provider, provider.facts(provider.default_model), key(name)))
    return replace(base, **changes)


def ranked(
    *candidates: Facts,
    task: TaskType = TaskType.CHAT,
    preferred: str | None = None,
    weights: dict[str, float] | None = None,
    remaining_s: float | None = None,
    strict: bool = False,
) -> list[str]:
    scored = rank(
        candidates,
        task=task,
        preferred_provider=preferred,
        weights=weights or {},
        remaining_s=remaining_s,
        preference_is_strict=strict,
    )
    return [entry.candidate.provider for entry in scored]


def term(scored: Scored, name: str) -> float:
    return next(entry.value for entry in scored.terms if entry.name == name)


PERFECT = RouteHealth(first_token_s=0.01, tokens_per_s=5000.0, attempts=100)
POOR = RouteHealth(first_token_s=20.0, tokens_per_s=1.0, error_rate=0.19, attempts=100)


@pytest.mark.parametrize("task", TaskType)
def test_a_preferred_provider_that_can_serve_is_always_first(task: TaskType) -> None:
    poor = facts("groq", health=POOR, price_usd_per_million=(Decimal(100), Decimal(500)), limit_remaining_ratio=0.0)
    perfect = facts("llm7", health=PERFECT, price_usd_per_million=(Decimal(0), Decimal(0)), luck=1.0)

    assert ranked(perfect, poor, task=task, preferred="groq") == ["groq", "llm7"]


@pytest.mark.parametrize(
    "trouble",
    [
        {"health": RouteHealth(first_token_s=0.1, error_rate=0.5, attempts=9)},
        {"should_failover": True},
        {"health": RouteHealth(first_token_s=9.0, attempts=9)},
    ],
)
def test_a_preference_stops_counting_when_the_provider_is_in_trouble(trouble: dict[str, object]) -> None:
    preferred, other = facts("groq", **trouble), facts("llm7")

    assert ranked(preferred, other, preferred="groq", remaining_s=5.0)[0] == "llm7"


def test_without_failover_the_preference_is_strict() -> None:
    failing = facts("groq", health=RouteHealth(error_rate=0.9, attempts=9))

    assert ranked(facts("llm7"), failing, preferred="groq", strict=True)[0] == "groq"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (
            {"health": RouteHealth(first_token_s=0.1, attempts=9)},
            {"health": RouteHealth(first_token_s=3.0, attempts=9)},
        ),
        ({"health": RouteHealth(tokens_per_s=900, attempts=9)}, {"health": RouteHealth(tokens_per_s=9, attempts=9)}),
        ({"health": RouteHealth(attempts=9)}, {"health": RouteHealth(error_rate=0.6, attempts=9)}),
        (
            {"price_usd_per_million": (Decimal("0.1"), Decimal("0.1"))},
            {"price_usd_per_million": (Decimal(9), Decimal(30))},
        ),
        ({"limit_remaining_ratio": 0.9}, {"limit_remaining_ratio": 0.1}),
    ],
)
def test_each_term_can_decide(better: dict[str, object], worse: dict[str, object]) -> None:
    assert ranked(facts("llm7", **worse), facts("groq", **better)) == ["groq", "llm7"]


def test_the_tenants_own_key_goes_before_the_operators() -> None:
    operators = facts("llm7")
    operators = replace(
        operators, candidate=dataclasses.replace(operators.candidate, credential=key("x", Funding.SYSTEM_KEY))
    )

    assert ranked(operators, facts("groq")) == ["groq", "llm7"]


def test_a_task_chooses_what_it_favours() -> None:
    strong = ModelFacts("strong", quality={"reasoning": 1.0, "chat": 0.6})
    quick = ModelFacts("quick", quality={"reasoning": 0.3, "chat": 0.5})
    slow_strong = facts("groq", health=RouteHealth(first_token_s=1.5, attempts=9))
    slow_strong = replace(slow_strong, candidate=dataclasses.replace(slow_strong.candidate, model=strong))
    fast_weak = facts("llm7", health=RouteHealth(first_token_s=0.1, attempts=9))
    fast_weak = replace(fast_weak, candidate=dataclasses.replace(fast_weak.candidate, model=quick))

    assert ranked(slow_strong, fast_weak, task=TaskType.REASONING)[0] == "groq"
    assert ranked(slow_strong, fast_weak, task=TaskType.CHAT)[0] == "llm7"


def test_weights_can_be_overridden_and_unknown_names_count_nothing() -> None:
    cheap = facts("groq", price_usd_per_million=(Decimal(0), Decimal(0)), health=POOR)
    fast = facts("llm7", price_usd_per_million=(Decimal(9), Decimal(9)), health=PERFECT)

    assert ranked(cheap, fast)[0] == "llm7"
    assert ranked(cheap, fast, weights={"price": 100.0, "moon_phase": 1e9})[0] == "groq"


def test_equal_candidates_share_the_load_by_luck() -> None:
    firsts = Counter(
        ranked(
            facts("groq", luck=luck, health=RouteHealth(attempts=9)),
            facts("llm7", luck=1 - luck, health=RouteHealth(attempts=9)),
        )[0]
        for luck in (0.1, 0.3, 0.7, 0.9)
    )

    assert firsts == {"groq": 2, "llm7": 2}


def test_a_candidate_without_attempts_is_tried_now_and_then() -> None:
    known = RouteHealth(first_token_s=0.45, tokens_per_s=105.0, attempts=50)

    assert ranked(facts("groq", health=known, luck=0.5), facts("llm7", luck=0.0))[0] == "groq"
    assert ranked(facts("groq", health=known, luck=0.5), facts("llm7", luck=1.0))[0] == "llm7"


@pytest.mark.parametrize(("kind", "forgotten_s"), [(FailureKind.RATE_LIMITED, 60.0), (FailureKind.NO_CREDIT, 300.0)])
def test_a_key_that_was_in_trouble_lately_stands_behind_until_that_is_forgotten(
    kind: FailureKind, forgotten_s: float
) -> None:
    fresh = facts("groq", trouble=KeyTrouble(kind, 1.0), luck=0.5)
    old = facts("groq", trouble=KeyTrouble(kind, forgotten_s), luck=0.5)

    assert ranked(fresh, facts("llm7")) == ["llm7", "groq"]
    assert ranked(old, facts("llm7")) == ["groq", "llm7"]


def test_both_limits_are_told_and_the_tighter_one_counts() -> None:
    both = facts("groq", limit_remaining_ratio=0.4, key_remaining_ratio=0.12)

    (scored,) = rank([both], task=TaskType.CHAT, preferred_provider=None, weights={}, remaining_s=None)
    quota = next(entry for entry in scored.terms if entry.name == "quota")

    assert quota.value == pytest.approx(0.12)
    assert quota.evidence == "40% of the tenant's tightest limit left, 12% of the key's own limit at the provider left"


RATIOS = st.none() | st.floats(0, 1)
ANY_FACTS = st.builds(
    facts,
    st.sampled_from(["groq", "llm7", "openrouter", "local", "sandbox"]),
    health=st.builds(
        RouteHealth,
        first_token_s=st.none() | st.floats(0, 60),
        tokens_per_s=st.none() | st.floats(0, 5000),
        error_rate=st.floats(0, 1),
        attempts=st.integers(0, 3),
    ),
    limit_remaining_ratio=RATIOS,
    key_remaining_ratio=RATIOS,
    trouble=st.none() | st.builds(KeyTrouble, st.just(FailureKind.NO_CREDIT), st.floats(0, 400)),
    should_failover=st.booleans(),
    luck=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(
    st.lists(ANY_FACTS, max_size=5, unique_by=lambda fact: fact.candidate.provider).flatmap(
        lambda given: st.tuples(st.just(given), st.permutations(given))
    ),
    st.sampled_from(TaskType),
    st.floats(0.1, 60) | st.none(),
)
def test_the_order_of_candidates_does_not_depend_on_how_they_came(
    given: tuple[list[Facts], list[Facts]], task: TaskType, remaining_s: float | None
) -> None:
    one, other = (ranked(*candidates, task=task, preferred="groq", remaining_s=remaining_s) for candidates in given)

    assert one == other


@pytest.mark.parametrize("task", TaskType)
def test_equal_candidates_share_the_load_over_many_requests(task: TaskType) -> None:
    luck = random.Random(20261124)
    names = ["groq", "llm7", "local", "openrouter"]
    observed = RouteHealth(first_token_s=0.4, tokens_per_s=80.0, attempts=40)

    firsts = Counter(
        ranked(*(facts(name, health=observed, luck=luck.random()) for name in names), task=task)[0] for _ in range(1000)
    )

    assert all(200 <= firsts[name] <= 300 for name in names)


@given(
    st.sampled_from(TaskType),
    st.dictionaries(st.sampled_from(sorted(TERM_NAMES)), st.floats(0, 100)),
    st.floats(0, 1),
    st.floats(0, 50),
)
def test_a_score_is_the_weighted_mean_of_values_from_0_to_1(
    task: TaskType, weights: dict[str, float], error_rate: float, first_token_s: float
) -> None:
    fact = facts("groq", health=RouteHealth(first_token_s, 10.0, error_rate, 5), limit_remaining_ratio=7.0)

    scored = rank([fact], task=task, preferred_provider="groq", weights=weights, remaining_s=1.0)[0]

    assert {entry.name for entry in scored.terms} == TERM_NAMES
    assert all(0 <= entry.value <= 1 and entry.evidence for entry in scored.terms)
    total = sum(entry.weight for entry in scored.terms)
    mean = sum(entry.value * entry.weight for entry in scored.terms) / total if total else 0.0
    assert scored.score == pytest.approx(mean)


@pytest.mark.parametrize("task", TaskType)
def test_no_other_terms_together_outweigh_the_preference(task: TaskType) -> None:
    weights = TASK_WEIGHTS[task]

    assert weights["preference"] > sum(weights.values()) - weights["preference"]


SHARES = st.floats(0.0, 1.0)
HEALTHS = st.builds(
    RouteHealth,
    first_token_s=st.none() | st.floats(0.0, 60.0),
    tokens_per_s=st.none() | st.floats(0.0, 1e6),
    error_rate=SHARES,
    attempts=st.integers(0, 100),
)
CHANGES = st.fixed_dictionaries(
    {
        "health": HEALTHS,
        "limit_remaining_ratio": st.none() | SHARES,
        "key_remaining_ratio": st.none() | SHARES,
        "should_failover": st.booleans(),
        "luck": SHARES,
    }
)


@given(
    changes=st.lists(CHANGES, min_size=2, max_size=2),
    task=st.sampled_from(TaskType),
    preferred=st.sampled_from([None, "groq", "llm7"]),
    weights=st.dictionaries(st.sampled_from(sorted(TERM_NAMES)), st.floats(0.0, 40.0), max_size=3),
    remaining_s=st.none() | st.floats(0.0, 60.0),
    strict=st.booleans(),
)
def test_who_is_surely_first_is_first_whatever_is_known_of_others(
    *,
    changes: list[dict[str, object]],
    task: TaskType,
    preferred: str | None,
    weights: dict[str, float],
    remaining_s: float | None,
    strict: bool,
) -> None:
    both = [facts("groq", **changes[0]), facts("llm7", **changes[1])]

    sure = [
        each.candidate.provider
        for each in both
        if is_surely_first(
            each,
            task=task,
            preferred_provider=preferred,
            weights=weights,
            remaining_s=remaining_s,
            preference_is_strict=strict,
        )
    ]

    order = ranked(*both, task=task, preferred=preferred, weights=weights, remaining_s=remaining_s, strict=strict)
    assert sure in ([], order[:1])


@pytest.mark.parametrize("task", TaskType)
def test_by_the_usual_weights_a_preferred_provider_that_is_well_is_surely_first(task: TaskType) -> None:
    assert is_surely_first(facts("groq"), task=task, preferred_provider="groq", weights={}, remaining_s=None)
