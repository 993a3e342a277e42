"""Selections from memory are those that would be made anew."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.catalog import ModelFacts
from router_service.domain.selection import Needs, select
from router_service.domain.tenant import InferenceConfig, Tenant
from router_service.routing.selections import Selections
from tests.support.router_fakes import TODAY, key, spec, tenant

SMALL = ModelFacts("small", context_window_tokens=1_000, supports_tools=False)
LARGE = ModelFacts("large", context_window_tokens=50_000, retirement_date=TODAY + timedelta(days=2))
CATALOG = {
    "groq": replace(spec("groq"), models={"small": SMALL, "large": LARGE}, default_model="large"),
    "llm7": replace(spec("llm7"), models={"small": SMALL}, default_model="small"),
    "local": spec("local", needs_key=False),
}
SYSTEM = {"llm7": key("operator")}

needs = st.builds(
    Needs,
    model=st.sampled_from([None, "small", "large", "unheard-of"]),
    provider=st.sampled_from([None, "groq", "llm7"]),
    tools=st.booleans(),
    vision=st.booleans(),
    total_tokens=st.sampled_from([0, 1, 999, 1_000, 1_001, 50_000, 50_001, 10**9]),
)
configs = st.builds(
    InferenceConfig,
    preferred_provider=st.sampled_from([None, "groq"]),
    preferred_models=st.sampled_from([{}, {"groq": "small"}, {"llm7": "large"}]),
    allowed_providers=st.sampled_from([(), ("groq",), ("llm7", "local")]),
)
tenants = st.builds(lambda keys, config: tenant(keys=keys, config=config), st.sampled_from([(), ("groq",)]), configs)
days = st.sampled_from([TODAY, TODAY + timedelta(days=3)])


@given(st.lists(tenants, min_size=1, max_size=2), st.lists(st.tuples(needs, days, st.booleans()), max_size=12))
def test_whatever_was_asked_before_the_selection_is_the_one_that_would_be_made_anew(
    who: list[Tenant], asked: list[tuple[Needs, date, bool]]
) -> None:
    selections = Selections(CATALOG, SYSTEM)
    for what, today, is_other in asked:
        asking = who[-1 if is_other else 0]  # the same id with another configuration, as after a change

        assert selections.of(asking, what, today) == select(asking, CATALOG, SYSTEM, what, today=today)


def test_a_second_request_of_the_same_configuration_is_selected_from_memory() -> None:
    selections, who = Selections(CATALOG, SYSTEM), tenant(keys=["groq"])

    first = selections.of(who, Needs(total_tokens=10), TODAY)

    assert selections.of(who, Needs(total_tokens=500), TODAY) is first


def test_no_more_selections_are_kept_than_there_is_room_for() -> None:
    selections, who = Selections(CATALOG, SYSTEM, max_entries=1), tenant(keys=["groq"])
    first = selections.of(who, Needs(), TODAY)
    selections.of(who, Needs(tools=True), TODAY)

    assert selections.of(who, Needs(), TODAY) is not first
