from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from router_service.api.convert_tenant import (
    change_from_proto,
    new_tenant_from_proto,
    new_token_from_proto,
    resealed_to_proto,
)
from router_service.domain.catalog import ProviderNames
from router_service.tenants.rows import StoredKey, TenantRow
from router_service.tenants.store import Resealed
from service_runtime.errors import Category, InvalidRequest, ServiceError
from tests.support.catalogs import CATALOG
from turnpike.router.v1 import tenant_service_pb2 as pb

NAMES = ProviderNames(CATALOG)
ACME = "018f3f2e-0000-7000-8000-000000000001"
CANARY = "gsk canary with spaces"
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def row(config: str) -> TenantRow:
    return TenantRow(UUID(ACME), "Acme", "{}", config, 1, NOW, NOW)


def violated(error: InvalidRequest) -> set[str]:
    return {violation.field for violation in error.violations}


def test_every_bad_field_of_a_new_tenant_is_named_at_once() -> None:
    request = pb.CreateTenantRequest(
        tenant_id="acme",
        name=" ",
        inference_config=pb.InferenceConfig(
            preferred_provider="nobody",
            preferred_models={"groq": ""},
            allowed_providers=["groq", "nobody"],
            score_weights={"luck": 1.0, "price": -1.0},
        ),
        provider_tokens={"groq": CANARY, "nobody": "gsk_12345678"},
    )

    with pytest.raises(InvalidRequest) as refused:
        new_tenant_from_proto(request, NAMES)

    assert violated(refused.value) == {
        "tenant_id",
        "name",
        "inference_config.preferred_provider",
        "inference_config.preferred_models['groq']",
        "inference_config.allowed_providers[1]",
        "inference_config.score_weights['luck']",
        "inference_config.score_weights['price']",
        "provider_tokens['groq']",
        "provider_tokens",
    }
    assert CANARY not in repr(refused.value.violations)


def test_friendly_names_become_catalogue_names() -> None:
    request = pb.CreateTenantRequest(
        name="Acme",
        inference_config=pb.InferenceConfig(preferred_provider="Groq (Llama 3.3 70B)"),
        provider_tokens={"OpenRouter": "sk-or-12345678"},
    )

    new = new_tenant_from_proto(request, NAMES)

    assert new.tenant_id is None
    assert new.config == {"preferred_provider": "groq"}
    assert list(new.tokens) == ["openrouter"]


def test_a_key_with_a_line_break_inside_is_refused_without_being_quoted() -> None:
    request = pb.SetProviderTokenRequest(tenant_id=ACME, provider="groq", token="gsk_canary\n12345678")

    with pytest.raises(InvalidRequest) as refused:
        new_token_from_proto(request, NAMES)

    assert violated(refused.value) == {"token"}
    assert "canary" not in str(refused.value)


def test_a_masked_field_changes_and_the_others_stay() -> None:
    request = pb.UpdateTenantRequest(
        tenant_id=ACME,
        inference_config=pb.InferenceConfig(auto_failover=False, preferred_provider="llm7"),
        update_mask=FieldMask(paths=["inference_config.auto_failover"]),
    )

    name, config = change_from_proto(request, NAMES).apply(row('{"preferred_provider": "groq"}'))

    assert name == "Acme"
    assert config == {"preferred_provider": "groq", "auto_failover": False}


def test_a_masked_field_that_is_not_set_is_cleared() -> None:
    request = pb.UpdateTenantRequest(
        tenant_id=ACME, update_mask=FieldMask(paths=["inference_config.preferred_provider"])
    )

    _, config = change_from_proto(request, NAMES).apply(row('{"preferred_provider": "groq", "auto_failover": true}'))

    assert config == {"auto_failover": True}


def test_without_a_mask_the_fields_that_are_set_change() -> None:
    request = pb.UpdateTenantRequest(
        tenant_id=ACME, name="Acme 2", inference_config=pb.InferenceConfig(allow_system_keys=False)
    )

    name, config = change_from_proto(request, NAMES).apply(row('{"preferred_provider": "groq"}'))

    assert name == "Acme 2"
    assert config == {"preferred_provider": "groq", "allow_system_keys": False}


def test_a_change_of_nothing_and_a_path_that_cannot_change_are_refused() -> None:
    with pytest.raises(InvalidRequest) as nothing:
        change_from_proto(pb.UpdateTenantRequest(tenant_id=ACME), NAMES)
    mask = FieldMask(paths=["provider_tokens"])
    with pytest.raises(InvalidRequest) as unknown:
        change_from_proto(pb.UpdateTenantRequest(tenant_id=ACME, update_mask=mask), NAMES)

    assert violated(nothing.value) == {"update_mask"}
    assert violated(unknown.value) == {"update_mask.paths[0]"}


def test_an_update_can_mend_a_broken_configuration() -> None:
    request = pb.UpdateTenantRequest(tenant_id=ACME, inference_config=pb.InferenceConfig(preferred_provider="groq"))

    _, config = change_from_proto(request, NAMES).apply(row("[]"))

    assert config == {"preferred_provider": "groq"}


def test_a_key_and_its_provider_that_were_swapped_are_not_quoted() -> None:
    create = pb.CreateTenantRequest(name="Acme", provider_tokens={"gsk_canary_12345678": "groq"})
    store = pb.SetProviderTokenRequest(tenant_id=ACME, provider="gsk_canary_12345678", token="groq")

    with pytest.raises(InvalidRequest) as refused_create:
        new_tenant_from_proto(create, NAMES)
    with pytest.raises(InvalidRequest) as refused_store:
        new_token_from_proto(store, NAMES)

    assert "canary" not in repr((refused_create.value.violations, refused_store.value.violations))
    assert violated(refused_create.value) == {"provider_tokens"}
    assert violated(refused_store.value) == {"provider", "token"}


def test_two_spellings_of_one_provider_are_refused() -> None:
    request = pb.CreateTenantRequest(name="Acme", provider_tokens={"Groq": "gsk_12345678", "groq": "gsk_12345679"})

    with pytest.raises(InvalidRequest) as refused:
        new_tenant_from_proto(request, NAMES)

    assert violated(refused.value) == {"provider_tokens['groq']"}


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "two\nlines", "nul\x00", "\x1b[31mred"])
def test_a_name_is_one_line_of_1_to_200_characters(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        new_tenant_from_proto(pb.CreateTenantRequest(name=name), NAMES)

    assert violated(refused.value) == {"name"}


def test_a_refusal_is_no_larger_than_it_needs_to_be() -> None:
    request = pb.UpdateTenantRequest(tenant_id=ACME, update_mask=FieldMask(paths=["nothing"] * 64))

    with pytest.raises(InvalidRequest) as refused:
        change_from_proto(request, NAMES)

    assert len(refused.value.violations) == 50


def test_a_negative_version_is_refused() -> None:
    request = pb.UpdateTenantRequest(tenant_id=ACME, name="Acme", expected_config_version=-1)

    with pytest.raises(InvalidRequest) as refused:
        change_from_proto(request, NAMES)

    assert violated(refused.value) == {"expected_config_version"}


def test_lists_and_maps_that_are_too_long_are_refused_whole() -> None:
    many = [f"nobody-{number}" for number in range(65)]
    config = pb.InferenceConfig(
        allowed_providers=many, preferred_models=dict.fromkeys(many, "m"), score_weights=dict.fromkeys(many, 1.0)
    )

    with pytest.raises(InvalidRequest) as new:
        new_tenant_from_proto(
            pb.CreateTenantRequest(name="Acme", inference_config=config, provider_tokens=dict.fromkeys(many, "k" * 20)),
            NAMES,
        )
    with pytest.raises(InvalidRequest) as change:
        change_from_proto(pb.UpdateTenantRequest(tenant_id=ACME, update_mask=FieldMask(paths=many)), NAMES)

    assert violated(new.value) == {
        "provider_tokens",
        "inference_config.allowed_providers",
        "inference_config.preferred_models",
        "inference_config.score_weights",
    }
    assert violated(change.value) == {"update_mask.paths"}


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_is_a_number_that_is_not_negative(weight: float) -> None:
    config = pb.InferenceConfig(score_weights={"price": weight})

    with pytest.raises(InvalidRequest) as refused:
        new_tenant_from_proto(pb.CreateTenantRequest(name="Acme", inference_config=config), NAMES)

    assert violated(refused.value) == {"inference_config.score_weights['price']"}


@pytest.mark.parametrize("stored", ["[" * 100_000, '{"preferred_provider": "gr', "null"])
def test_an_update_starts_from_nothing_where_the_stored_configuration_cannot_be_read(stored: str) -> None:
    request = pb.UpdateTenantRequest(tenant_id=ACME, inference_config=pb.InferenceConfig(auto_failover=False))

    _, config = change_from_proto(request, NAMES).apply(row(stored))

    assert config == {"auto_failover": False}


def test_replacing_the_whole_configuration_drops_what_the_request_does_not_say() -> None:
    request = pb.UpdateTenantRequest(
        tenant_id=ACME,
        inference_config=pb.InferenceConfig(preferred_models={"Groq": "llama-3.3-70b-versatile"}),
        update_mask=FieldMask(paths=["inference_config"]),
    )

    _, config = change_from_proto(request, NAMES).apply(row('{"preferred_provider": "groq", "of_a_newer_version": 1}'))

    assert config == {"preferred_models": {"groq": "llama-3.3-70b-versatile"}}


def test_what_was_sealed_anew_is_told_beside_what_does_not_open() -> None:
    lost = StoredKey("llm7", "", "", NOW, "it was sealed with the key 'k0'; store it again", "k0")

    message = resealed_to_proto(Resealed(UUID(ACME), ("groq", "local"), (lost,)))

    assert (message.tenant_id, list(message.resealed_providers)) == (ACME, ["groq", "local"])
    assert [(token.provider, token.explanation, token.missing_key_id) for token in message.unreadable_tokens] == [
        ("llm7", "it was sealed with the key 'k0'; store it again", "k0")
    ]
    assert not message.HasField("error")


def test_a_tenant_that_could_not_be_sealed_anew_has_the_error_that_its_own_call_would_have() -> None:
    broken = ServiceError(Category.FAILED_PRECONDITION, "TENANT_CONFIG_INVALID", "the configuration is invalid")

    message = resealed_to_proto(Resealed(UUID(ACME), error=broken))

    assert (message.error.code, message.error.message) == (9, "the configuration is invalid")
    assert list(message.resealed_providers) == list(message.unreadable_tokens) == []
