from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from router_service.domain.catalog import CallerGonePolicy, Clocks, ProviderNames
from router_service.providers.catalog import CATALOG, build_catalog, with_clocks

TODAY = date(2026, 11, 23)
SEEDED = [
    ("groq", "llama-3.3-70b-versatile"),
    ("groq", "llama-3.1-70b-versatile"),
    ("groq", "mixtral-8x7b-32768"),
    ("openrouter", "deepseek/deepseek-r1"),
    ("openrouter", "anthropic/claude-3.5-sonnet"),
    ("openrouter", "google/gemini-pro-1.5"),
    ("llm7", "gpt-4o-mini"),
    ("llm7", "gpt-4o"),
    ("llm7", "gpt-4-turbo"),
    ("local", "default"),
]
RETIRED = {
    "llama-3.3-70b-versatile",
    "llama-3.1-70b-versatile",
    "mixtral-8x7b-32768",
    "anthropic/claude-3.5-sonnet",
    "google/gemini-pro-1.5",
    "gpt-4-turbo",
}


@pytest.mark.parametrize(("provider", "model"), SEEDED)
def test_every_model_that_the_contracts_price_is_listed(provider: str, model: str) -> None:
    assert model in CATALOG[provider].models


def test_the_retired_models_are_marked_and_no_others() -> None:
    retired = {name for spec in CATALOG.values() for name, facts in spec.models.items() if facts.is_retired(TODAY)}

    assert retired == RETIRED


@pytest.mark.parametrize("name", CATALOG)
def test_every_default_model_is_listed_and_living(name: str) -> None:
    spec = CATALOG[name]

    assert not spec.models[spec.default_model].is_retired(TODAY)


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_named_as_it_is_filed(name: str) -> None:
    assert CATALOG[name].name == name
    assert all(facts.name == model for model, facts in CATALOG[name].models.items())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Groq (Llama 3.3 70B)", "groq"),
        ("GROQ", "groq"),
        ("OpenRouter (DeepSeek R1)", "openrouter"),
        ("open-router", "openrouter"),
        ("LLM7 (GPT-4o mini)", "llm7"),
        ("llm7.io", "llm7"),
        ("Local (Ollama)", "local"),
        ("Local LLM", "local"),
        ("LM Studio", "local"),
        ("vLLM", "local"),
        ("Sandbox", "sandbox"),
        ("Groq (Llama (3.3) 70B)", "groq"),
        ("Groq )(", "groq"),
        ("Acme", None),
        pytest.param("(" * 3_000_000, None, id="so many brackets that work in their square would take hours"),
    ],
)
def test_friendly_names_become_catalogue_names(written: str, name: str | None) -> None:
    assert ProviderNames(CATALOG).normalise(written) == name


def test_no_two_providers_share_a_name() -> None:
    names = ProviderNames(CATALOG)

    for spec in CATALOG.values():
        assert {names.normalise(text) for text in (spec.name, spec.display_name, *spec.aliases)} == {spec.name}


def test_only_groq_bills_on_after_its_caller_has_gone() -> None:
    draining = {name for name, spec in CATALOG.items() if spec.on_caller_gone is CallerGonePolicy.DRAIN}

    assert draining == {"groq"}


def test_addresses_can_be_replaced_and_an_empty_one_keeps_the_vendors() -> None:
    catalog = build_catalog({"groq": "https://gateway.example/v1/", "llm7": ""})

    assert catalog["groq"].base_url == "https://gateway.example/v1"
    assert catalog["llm7"].base_url == CATALOG["llm7"].base_url


@pytest.mark.parametrize("urls", [{"acme": "https://a"}, {"sandbox": "https://a"}, {"groq": "ftp://a"}])
def test_an_address_that_cannot_be_is_refused(urls: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        build_catalog(urls, sandbox_enabled=True)


def test_the_local_model_is_the_operators_choice() -> None:
    local = build_catalog(local_model="qwen3:8b")["local"]

    assert local.default_model == "qwen3:8b"
    assert set(local.models) == {"qwen3:8b", "default"}


def test_the_sandbox_is_there_only_when_asked_for() -> None:
    assert "sandbox" not in build_catalog()
    assert build_catalog(sandbox_enabled=True)["sandbox"].is_sandbox


def test_judgements_of_quality_stay_between_nothing_and_all() -> None:
    values = [Decimal(str(v)) for spec in CATALOG.values() for m in spec.models.values() for v in m.quality.values()]

    assert values
    assert all(0 <= value <= 1 for value in values)


def test_clocks_are_replaced_one_by_one() -> None:
    catalog = with_clocks(CATALOG, {"groq": {"first_content_s": 7.0}})

    assert catalog["groq"].clocks == Clocks(first_content_s=7.0)
    assert {name: spec for name, spec in catalog.items() if name != "groq"} == {
        name: spec for name, spec in CATALOG.items() if name != "groq"
    }


def test_clocks_of_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="'grok'"):
        with_clocks(CATALOG, {"grok": {"first_content_s": 7.0}})
