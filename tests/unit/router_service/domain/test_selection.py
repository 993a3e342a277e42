"""Who could serve a request, and why the others could not."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.selection import Needs, Selection, select
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import Funding
from tests.support.router_fakes import TODAY, key, spec, tenant

GROQ, LLM7, LOCAL = spec("groq"), spec("llm7"), spec("local", needs_key=False)
SANDBOX = spec("sandbox", needs_key=False, is_sandbox=True)


def chosen(
    who: Tenant,
    needs: Needs | None = None,
    *specs: ProviderSpec,
    system: dict[str, Credential] | None = None,
    today: date = TODAY,
) -> Selection:
    catalog = {item.name: item for item in specs or (GROQ, LLM7, LOCAL, SANDBOX)}
    return select(who, catalog, system or {}, needs or Needs(), today=today)


def names(selection: Selection) -> list[str]:
    return [candidate.provider for candidate in selection.candidates]


def reasons(selection: Selection) -> dict[str, str]:
    return {out.provider: out.reason for out in selection.exclusions}


def only(selection: Selection) -> Candidate:
    (candidate,) = selection.candidates
    return candidate


def test_a_key_opens_its_provider_and_a_provider_without_keys_is_open() -> None:
    selection = chosen(tenant(keys=["groq"]))

    assert names(selection) == ["groq", "local"]
    assert reasons(selection) == {"llm7": "NO_KEY", "sandbox": "SANDBOX_NOT_REQUESTED"}


def test_a_missing_key_names_both_remedies() -> None:
    out = next(out for out in chosen(tenant()).exclusions if out.provider == "groq")

    assert "GROQ_API_KEY" in out.explanation
    assert f"turnpike tenants set-token {tenant().id} groq" in out.explanation


def test_the_tenants_key_goes_before_the_operators() -> None:
    system = {"groq": key("s", Funding.SYSTEM_KEY), "llm7": key("t", Funding.SYSTEM_KEY)}

    selection = chosen(tenant(keys=["groq"]), None, GROQ, LLM7, system=system)

    assert [candidate.funding for candidate in selection.candidates] == [Funding.TENANT_KEY, Funding.SYSTEM_KEY]


def test_the_operators_key_needs_the_tenants_leave() -> None:
    who = tenant(config=InferenceConfig(allow_system_keys=False))

    assert reasons(chosen(who, None, GROQ, system={"groq": key("s", Funding.SYSTEM_KEY)})) == {"groq": "NO_KEY"}


def test_a_broken_key_is_not_replaced_by_the_operators() -> None:
    who = replace(tenant(), unusable_credentials={"groq": "sealed with an unknown key"})

    selection = chosen(who, None, GROQ, system={"groq": key("s", Funding.SYSTEM_KEY)})

    assert reasons(selection) == {"groq": "KEY_UNREADABLE"}
    assert "sealed with an unknown key" in selection.exclusions[0].explanation


def test_a_requested_provider_is_the_only_one() -> None:
    selection = chosen(tenant(keys=["groq", "llm7"]), Needs(provider="llm7"))

    assert names(selection) == ["llm7"]
    assert set(reasons(selection).values()) == {"NOT_REQUESTED"}


def test_a_provider_that_is_not_allowed_is_out_even_on_request() -> None:
    who = tenant(keys=["groq", "llm7"], config=InferenceConfig(allowed_providers=("groq",)))

    assert reasons(chosen(who, Needs(provider="llm7"), LLM7)) == {"llm7": "NOT_ALLOWED"}


@pytest.mark.parametrize(
    ("needs", "config"),
    [
        (Needs(provider="sandbox"), InferenceConfig()),
        (Needs(model="sandbox-model"), InferenceConfig()),
        (Needs(), InferenceConfig(preferred_provider="sandbox")),
    ],
)
def test_the_sandbox_answers_when_it_is_asked_for(needs: Needs, config: InferenceConfig) -> None:
    assert "sandbox" in names(chosen(tenant(config=config), needs))


def test_a_preferred_sandbox_stays_out_of_requests_for_others() -> None:
    who = tenant(keys=["groq"], config=InferenceConfig(preferred_provider="sandbox"))

    assert names(chosen(who, Needs(model="groq-model"))) == ["groq"]


def test_a_known_model_goes_to_the_providers_that_list_it() -> None:
    selection = chosen(tenant(keys=["groq", "llm7"]), Needs(model="llm7-model"))

    assert names(selection) == ["llm7"]
    assert reasons(selection)["groq"] == "MODEL_NOT_OFFERED"


def test_an_unknown_model_goes_to_the_provider_that_is_named_beside_it() -> None:
    selection = chosen(tenant(keys=["groq"]), Needs(model="brand-new", provider="groq"))

    assert only(selection).model == ModelFacts("brand-new")


def test_an_unknown_model_alone_goes_to_the_preferred_provider() -> None:
    who = tenant(keys=["groq", "llm7"], config=InferenceConfig(preferred_provider="llm7"))

    assert names(chosen(who, Needs(model="brand-new"))) == ["llm7"]


def test_an_unknown_model_without_a_home_is_refused_everywhere() -> None:
    selection = chosen(tenant(keys=["groq"]), Needs(model="brand-new"), GROQ, LOCAL)

    assert set(reasons(selection).values()) == {"MODEL_UNKNOWN"}


def test_a_preferred_model_counts_as_served() -> None:
    who = tenant(keys=["groq"], config=InferenceConfig(preferred_models={"groq": "my-finetune"}))

    assert only(chosen(who, Needs(model="my-finetune"), GROQ, LLM7)).provider == "groq"


def test_the_preferred_model_goes_before_the_default() -> None:
    who = tenant(keys=["groq"], config=InferenceConfig(preferred_models={"groq": "better"}))

    assert only(chosen(who, None, GROQ)).model.name == "better"


RETIRED = ModelFacts("old", retirement_date=TODAY)


def test_a_retired_preferred_model_gives_way_to_the_default_and_is_named() -> None:
    provider = spec("groq", models={"old": RETIRED, "groq-model": ModelFacts("groq-model")})
    who = tenant(keys=["groq"], config=InferenceConfig(preferred_models={"groq": "old"}))

    selection = chosen(who, None, provider)

    assert only(selection).model.name == "groq-model"
    assert [(out.model, out.reason) for out in selection.exclusions] == [("old", "MODEL_RETIRED")]


def test_a_model_serves_until_the_day_it_retires() -> None:
    provider = spec("groq", models={"old": RETIRED})
    needs = Needs(model="old")

    assert names(chosen(tenant(keys=["groq"]), needs, provider, today=date(2026, 11, 22))) == ["groq"]
    assert reasons(chosen(tenant(keys=["groq"]), needs, provider)) == {"groq": "MODEL_RETIRED"}


@pytest.mark.parametrize(
    ("default", "remedy"),
    [
        (ModelFacts("groq-model"), "use groq-model or another"),
        (ModelFacts("groq-model", retirement_date=TODAY), "use another that the provider serves"),
    ],
)
def test_no_retired_model_is_proposed_in_place_of_one(default: ModelFacts, remedy: str) -> None:
    provider = spec("groq", models={"old": RETIRED, "groq-model": default})

    selection = chosen(tenant(keys=["groq"]), Needs(model="old"), provider)

    assert [out.explanation for out in selection.exclusions] == [f"retired on {TODAY}: {remedy}"]


@pytest.mark.parametrize(
    ("facts", "needs", "reason"),
    [
        (ModelFacts("groq-model", supports_tools=False), Needs(tools=True), "NO_TOOLS"),
        (ModelFacts("groq-model", supports_json=False), Needs(json=True), "NO_JSON"),
        (ModelFacts("groq-model", supports_vision=False), Needs(vision=True), "NO_VISION"),
        (ModelFacts("groq-model", context_window_tokens=10), Needs(total_tokens=11), "CONTEXT_TOO_SMALL"),
    ],
)
def test_a_model_that_surely_cannot_is_out_and_an_unknown_one_is_in(
    facts: ModelFacts, needs: Needs, reason: str
) -> None:
    unable, unknown = (spec("groq", models={"groq-model": model}) for model in (facts, ModelFacts("groq-model")))

    assert reasons(chosen(tenant(keys=["groq"]), needs, unable)) == {"groq": reason}
    assert names(chosen(tenant(keys=["groq"]), needs, unknown)) == ["groq"]


def test_no_explanation_holds_a_key() -> None:
    selection = chosen(tenant(keys=["groq", "llm7"]), Needs(model="nothing-known"))

    assert "canary" not in repr(selection)
