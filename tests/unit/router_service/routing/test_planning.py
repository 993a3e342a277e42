"""Plans: what is kept of a decision, what a preferred provider gets back, and that nobody excluded is ever tried."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from router_service.domain.candidate import Candidate, Exclusion
from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.completion import TaskType, Tool
from router_service.domain.errors import FailureKind
from router_service.domain.scoring import TERM_NAMES, Scored, Term
from router_service.domain.selection import Needs
from router_service.domain.tenant import InferenceConfig
from router_service.routing.planning import MAX_DECISION_LENGTH, Plan, Planner
from router_service.routing.scoreboard import Scoreboard
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import ServiceError
from tests.support.router_fakes import (
    TODAY,
    FakeLimits,
    FakePrices,
    FakeProvider,
    World,
    failure,
    key,
    request,
    spec,
    tenant,
)


def planner(board: Scoreboard, *names: str) -> Planner:
    return Planner(
        catalog={name: spec(name) for name in names},
        system_credentials={},
        prices=FakePrices(),
        limits=FakeLimits(),
        scoreboard=board,
        score_weights={},
        today=lambda: TODAY,
    )


def order(planned: Plan) -> list[str]:
    return [scored.candidate.provider for scored in planned.ranked]


def test_a_preferred_provider_that_failed_gets_its_place_back_without_being_asked() -> None:
    board = Scoreboard(max_entries=10)
    plans = planner(board, "groq", "llm7")
    who = tenant(keys=["groq", "llm7"], config=InferenceConfig(preferred_provider="groq"))
    preferred = Candidate(spec("groq"), spec("groq").facts("groq-model"), key("groq"))
    for _ in range(3):
        board.failed(preferred, failure(FailureKind.UPSTREAM_BROKEN), 0.0, began_at=0.0)

    orders = [
        order(plans.plan(who, Needs(), TaskType.CHAT, now=now, remaining_s=None, luck=lambda: 0.5))
        for now in (0.0, 60.0)
    ]

    assert orders == [["llm7", "groq"], ["groq", "llm7"]]


def test_the_decision_that_is_kept_says_who_why_and_who_not() -> None:
    plans = planner(Scoreboard(max_entries=10), "groq", "llm7", "openrouter")
    who = tenant(keys=["groq", "llm7"], config=InferenceConfig(preferred_provider="llm7"))

    planned = plans.plan(who, Needs(), TaskType.CODE, now=0.0, remaining_s=None, luck=lambda: 0.5)
    kept = json.loads(planned.decision())

    assert set(kept["terms"]) == TERM_NAMES
    assert [entry[:3] for entry in kept["rank"]] == [
        ["llm7", "llm7-model", "tenant_key"],
        ["groq", "groq-model", "tenant_key"],
    ]
    for entry, scored in zip(kept["rank"], planned.ranked, strict=True):
        values = dict(zip(kept["terms"], entry[4], strict=True))
        assert values == {term.name: round(term.value, 3) for term in scored.terms}
        mean = sum(value * weight for value, weight in zip(entry[4], kept["weights"], strict=True))
        assert entry[3] == pytest.approx(mean / sum(kept["weights"]), abs=0.002)
    assert kept["out"] == [["openrouter", "", "NO_KEY"]]
    assert "shortened" not in kept
    assert "canary" not in planned.decision()


@given(
    st.lists(st.text(max_size=200), max_size=12),
    st.lists(st.text(max_size=200), max_size=40),
)
def test_a_kept_decision_is_json_of_bounded_length_whatever_models_are_called(
    ranked: list[str], excluded: list[str]
) -> None:
    terms = tuple(Term(name, 1 / 3, 20.0, ("evidence",)) for name in sorted(TERM_NAMES))
    groq = spec("groq")
    planned = Plan(
        tenant(keys=["groq"]),
        tuple(Scored(Candidate(groq, ModelFacts(model), key("groq")), 1 / 3, terms) for model in ranked),
        tuple(Exclusion("groq", model, "MODEL_RETIRED", "words") for model in excluded),
    )

    text = planned.decision()

    assert len(text) <= MAX_DECISION_LENGTH
    assert isinstance(json.loads(text), dict)


providers = st.builds(
    lambda tools, window, days, has_key, is_allowed: (tools, window, days, has_key, is_allowed),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, 10, 100_000]),
    st.sampled_from([None, -1, 1]),
    st.booleans(),
    st.booleans(),
)


@given(st.lists(providers, min_size=1, max_size=4))
def test_whoever_is_excluded_is_never_tried(
    drawn: list[tuple[bool | None, int | None, int | None, bool, bool]],
) -> None:
    specs, keys, allowed = [], [], []
    for name, (tools, window, days, has_key, is_allowed) in zip("abcd", drawn, strict=False):
        ends = None if days is None else TODAY + timedelta(days=days)
        facts = ModelFacts(f"{name}-model", window, supports_tools=tools, retirement_date=ends)
        specs.append(spec(name, models={facts.name: facts}))
        keys += [name] if has_key else []
        allowed += [name] if is_allowed else []
    tried, planned, excluded = asyncio.run(_tried(specs, keys, tuple(allowed)))

    assert tried == planned
    assert not set(tried) & excluded
    assert set(tried) | excluded == {item.name for item in specs}


async def _tried(
    specs: list[ProviderSpec], keys: list[str], allowed: tuple[str, ...]
) -> tuple[list[str], list[str], set[str]]:
    """Who was called, in order, by a request that fails everywhere; who was to be; and who was out."""
    world = World(
        {item.name: FakeProvider([failure(FailureKind.TIMED_OUT)]) for item in specs},
        specs=specs,
        config=InferenceConfig(allowed_providers=allowed),
        tenant_keys=keys,
        settings=RoutingSettings(max_attempts=9),
    )
    asked = replace(request(), tools=(Tool("clock"),), estimated_tokens=50)
    needs = Needs.of(asked)
    explained = await world.router.explain(asked.tenant_id, needs, TaskType.CHAT)
    with pytest.raises(ServiceError):
        [event async for event in await world.router.stream(asked, deadline_s=None)]
    called = [attempt.provider for attempt in world.journal.opened_attempts]
    assert {name for name, provider in world.providers.items() if provider.calls} == set(called)
    planned = [scored.candidate.provider for scored in explained.candidates]
    return called, planned, {exclusion.provider for exclusion in explained.excluded}
