from __future__ import annotations

import pytest

from turnpike_client import (
    AlreadyExists,
    Conflict,
    InferenceConfig,
    InvalidRequest,
    RouterClient,
    TokenState,
    TokenVerdict,
    UnknownTenant,
)
from turnpike_client.testing import FakeTurnpike

KEY = "gsk_canary_0123456789abcdef"


async def test_a_tenant_is_created_with_its_configuration_and_keys(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    config = InferenceConfig(
        preferred_provider="groq",
        auto_failover=False,
        preferred_models={"groq": "m"},
        score_weights={"price": 0.5},
        allowed_providers=("groq", "llm7"),
        allow_system_keys=False,
    )

    tenant = await router.tenants.create("acme", config=config, provider_tokens={"groq": KEY})

    assert tenant.config == config
    assert await router.tenants.get(tenant.id) == tenant
    [token] = tenant.provider_tokens
    assert (token.provider, token.last4, token.state) == ("groq", "cdef", TokenState.STORED)
    assert turnpike.tenants.tokens[tenant.id, "groq"] == KEY
    assert KEY not in repr(tenant)


async def test_what_a_configuration_leaves_out_has_its_documented_default(router: RouterClient) -> None:
    tenant = await router.tenants.create("acme")

    assert tenant.config == InferenceConfig(auto_failover=True, allow_system_keys=True)


async def test_only_the_named_fields_change(router: RouterClient) -> None:
    config = InferenceConfig(preferred_provider="groq", preferred_models={"groq": "m", "llm7": "n"})
    tenant = await router.tenants.create("acme", config=config)

    changed = await router.tenants.update(tenant.id, auto_failover=False, preferred_models={"groq": "other"})
    renamed = await router.tenants.update(tenant.id, name="Acme Ltd")

    assert changed.config.preferred_provider == "groq"
    assert changed.config.auto_failover is False
    assert changed.config.preferred_models == {"groq": "other"}
    assert (renamed.name, renamed.config) == ("Acme Ltd", changed.config)


async def test_a_change_based_on_an_old_version_is_a_conflict(router: RouterClient) -> None:
    tenant = await router.tenants.create("acme")
    await router.tenants.update(tenant.id, name="other")

    with pytest.raises(Conflict, match="read it again"):
        await router.tenants.update(tenant.id, name="mine", expected_config_version=tenant.config_version)


async def test_a_misspelt_field_is_refused_before_anything_is_sent(router: RouterClient) -> None:
    with pytest.raises(TypeError, match="auto_failovr"):
        await router.tenants.update("t", auto_failovr=False)  # type: ignore[call-arg]


async def test_every_tenant_is_listed_over_all_pages(router: RouterClient) -> None:
    made = [await router.tenants.create(f"tenant {index}") for index in range(7)]

    assert [tenant.id async for tenant in router.tenants.list(page_size=3)] == [tenant.id for tenant in made]


async def test_keys_are_stored_checked_and_removed(turnpike: FakeTurnpike, router: RouterClient) -> None:
    tenant = await router.tenants.create("acme")
    turnpike.tenants.rejected_tokens.add("a-bad-key-that-is-rejected")

    await router.tenants.set_token(tenant.id, "groq", "a-bad-key-that-is-rejected")
    rejected = await router.tenants.verify_token(tenant.id, "groq")
    await router.tenants.set_token(tenant.id, "groq", KEY)
    accepted = await router.tenants.verify_token(tenant.id, "groq")
    without = await router.tenants.delete_token(tenant.id, "groq")
    missing = await router.tenants.verify_token(tenant.id, "groq")

    assert (rejected.verdict, accepted.verdict) == (TokenVerdict.INVALID, TokenVerdict.VALID)
    assert without.provider_tokens == ()
    assert missing.verdict is TokenVerdict.UNKNOWN


async def test_the_cache_of_every_router_can_be_invalidated(turnpike: FakeTurnpike, router: RouterClient) -> None:
    await router.tenants.invalidate_cache()

    assert turnpike.tenants.invalidated_tenant_ids == [""]


async def test_refusals_name_what_is_wrong(router: RouterClient) -> None:
    tenant = await router.tenants.create("acme")

    with pytest.raises(UnknownTenant, match="nope"):
        await router.tenants.get("nope")
    with pytest.raises(AlreadyExists):
        await router.tenants.create("again", tenant_id=tenant.id)
    with pytest.raises(InvalidRequest) as caught:
        await router.tenants.set_token(tenant.id, "groq", "short")

    assert [violation.field for violation in caught.value.violations] == ["token"]
    assert "short" not in str(caught.value)


async def test_keys_of_one_tenant_are_sealed_anew_and_what_does_not_open_is_told(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    tenant = await router.tenants.create("acme", provider_tokens={"groq": KEY, "llm7": KEY})
    turnpike.tenants.outdated_tokens.add((tenant.id, "groq"))
    turnpike.tenants.unreadable_tokens[tenant.id, "llm7"] = "k0"

    first, again = [await router.tenants.reseal_tokens(tenant.id) for _ in range(2)]

    assert (first.tenant_id, first.resealed_providers, first.problem) == (tenant.id, ("groq",), "")
    assert [(token.provider, token.missing_key_id) for token in first.unreadable_tokens] == [("llm7", "k0")]
    assert (first.active_key_id, first.other_key_ids) == ("k2", ("k1",))
    assert not first.is_done
    assert again.resealed_providers == ()
    with pytest.raises(UnknownTenant):
        await router.tenants.reseal_tokens("nope")


async def test_keys_of_all_tenants_are_sealed_anew_over_all_pages_and_a_broken_tenant_stops_nothing(
    turnpike: FakeTurnpike, router: RouterClient
) -> None:
    made = [await router.tenants.create(f"tenant {index}", provider_tokens={"groq": KEY}) for index in range(7)]
    turnpike.tenants.outdated_tokens.update((tenant.id, "groq") for tenant in made)
    turnpike.tenants.broken_tenants[made[3].id] = "inference_config must be a JSON object"

    done = [resealed async for resealed in router.tenants.reseal_all_tokens(page_size=3)]

    assert [resealed.tenant_id for resealed in done] == [tenant.id for tenant in made]
    assert [resealed.is_done for resealed in done] == [True, True, True, False, True, True, True]
    assert done[3].problem == "inference_config must be a JSON object"
    assert turnpike.tenants.outdated_tokens == {(made[3].id, "groq")}
