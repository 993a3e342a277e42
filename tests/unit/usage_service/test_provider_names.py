"""What people write for a provider."""

import pytest

from usage_service.domain.provider_names import normalise_provider


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("groq", "groq"),
        ("Groq (Llama 3.3 70B)", "groq"),
        ("OpenRouter", "openrouter"),
        ("Open Router", "openrouter"),
        ("LLM7 (free)", "llm7"),
        (" LOCAL ", "local"),
    ],
)
def test_a_friendly_name_becomes_the_catalogue_name(written: str, name: str) -> None:
    assert normalise_provider(written) == name


def test_an_unknown_provider_stays_recognisable() -> None:
    assert normalise_provider("Acme AI (beta)") == "acme ai"


def test_a_provider_of_the_operator_is_known_when_it_is_named() -> None:
    assert normalise_provider("Acme-AI", known={"acme_ai"}) == "acme_ai"
