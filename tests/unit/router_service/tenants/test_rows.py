from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.domain.tenant import InferenceConfig
from router_service.tenants.rows import MAX_JSON_CHARACTERS, ParsedTenant, RowReader, TenantRow
from router_service.tenants.sealed_keys import KeyRing
from service_runtime.errors import ServiceError
from tests.support.catalogs import CATALOG

ACME = UUID(int=1)
NOW = datetime(2026, 11, 23, tzinfo=UTC)
READER = RowReader(ProviderNames(CATALOG), KeyRing({"k1": bytes(32)}, active="k1"), accepts_plaintext=True)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["preferred_provider", "auto_failover", "preferred_models", "score_weights", "allowed_providers", "groq", "local"]
)


def read(*, tokens: object = None, config: object = None) -> ParsedTenant:
    return READER.read(TenantRow(ACME, "Acme", json.dumps(tokens or {}), json.dumps(config or {}), 1, NOW, NOW))


@given(st.dictionaries(FIELDS, ANY_JSON) | ANY_JSON, st.dictionaries(FIELDS, ANY_JSON) | ANY_JSON)
def test_any_json_is_understood_or_refused_as_a_broken_configuration(tokens: object, config: object) -> None:
    row = TenantRow(ACME, "Acme", json.dumps(tokens), json.dumps(config), 1, NOW, NOW)

    refused: ServiceError | None = None
    try:
        parsed = READER.read(row)
    except ServiceError as error:
        refused = error

    if refused is None:
        assert {key.provider for key in parsed.keys} <= set(CATALOG)
    else:
        assert refused.reason == "TENANT_CONFIG_INVALID"
        assert refused.metadata["field"].startswith(("llm_tokens", "inference_config"))


def test_friendly_names_are_understood_everywhere() -> None:
    parsed = read(
        tokens={"Open Router": "sk-or-12345678"},
        config={
            "preferred_provider": "Groq (Llama 3.3 70B)",
            "preferred_models": {"LLM7": "gpt-4o-mini"},
            "allowed_providers": ["Groq", "groq", "LLM7"],
        },
    )

    assert list(parsed.tenant.credentials) == ["openrouter"]
    assert parsed.tenant.config == InferenceConfig(
        preferred_provider="groq", preferred_models={"llm7": "gpt-4o-mini"}, allowed_providers=("groq", "llm7")
    )


def test_null_means_the_default_and_an_unknown_field_is_left_to_a_newer_version() -> None:
    config = dict.fromkeys(("preferred_provider", "auto_failover", "preferred_models", "allowed_providers"))

    parsed = read(tokens={"groq": None, "somebody": None}, config=config | {"of_a_newer_version": [1]})

    assert parsed.tenant.config == InferenceConfig()
    assert parsed.tenant.credentials == {}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"auto_failover": 1}, "inference_config.auto_failover"),
        ({"preferred_provider": "x" * 201}, "inference_config.preferred_provider"),
        ({"preferred_models": {"nobody": "m"}}, "inference_config.preferred_models"),
        ({"preferred_models": {"groq": 7}}, "inference_config.preferred_models.groq"),
        ({"allowed_providers": "groq"}, "inference_config.allowed_providers"),
        ({"allowed_providers": ["groq", ""]}, "inference_config.allowed_providers"),
        ({"allowed_providers": ["groq", "nobody"]}, "inference_config.allowed_providers[1]"),
        ({"score_weights": []}, "inference_config.score_weights"),
        ({"score_weights": {"price": True}}, "inference_config.score_weights.price"),
    ],
)
def test_a_broken_preference_is_named_by_its_path(config: object, field: str) -> None:
    with pytest.raises(ServiceError) as refused:
        read(config=config)

    assert refused.value.metadata["field"] == field


def test_json_that_was_cut_off_is_said_to_be_too_long_and_not_malformed() -> None:
    row = TenantRow(ACME, "Acme", '{"groq": "' + "x" * MAX_JSON_CHARACTERS, "{}", 1, NOW, NOW)

    with pytest.raises(ServiceError, match="longer than"):
        READER.read(row)


def test_when_a_key_was_stored_is_read_however_it_was_written() -> None:
    ring = KeyRing({"k1": bytes(32)}, active="k1")
    entry = ring.seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")
    times = {
        "2026-11-23T00:00:00+00:00": NOW,
        "2026-11-23T00:00:00": NOW,
        "yesterday": None,
    }

    read_times = {text: read(tokens={"groq": entry.to_json(text)}).keys[0].created_at for text in times}

    assert read_times == times
