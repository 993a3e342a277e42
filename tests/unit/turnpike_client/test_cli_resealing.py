"""What the command says after sealing keys anew: an operator drops a key-encryption key on the strength of it."""

from __future__ import annotations

from typing import Any

import pytest

from turnpike_client import ResealedTenant, UnreadableToken
from turnpike_client.cli.resealing import advice, is_finished, key_rows, summary

LOST = UnreadableToken("llm7", "it was sealed with the key 'k0'; store it again", "k0")
ALTERED = UnreadableToken("groq", "it was altered; store it again", "")


def resealed(**fields: Any) -> ResealedTenant:
    defaults: dict[str, Any] = {
        "tenant_id": "acme",
        "resealed_providers": (),
        "unreadable_tokens": (),
        "problem": "",
        "active_key_id": "k2",
        "other_key_ids": ("k1",),
    }
    return ResealedTenant(**defaults | fields)


def test_when_all_is_sealed_anew_the_older_keys_may_be_dropped() -> None:
    done = [resealed(resealed_providers=("groq", "llm7")), resealed(tenant_id="globex")]

    [line] = advice(done, is_for_all=True)

    assert is_finished(done)
    assert summary(done) == "2 keys sealed anew with 'k2', 2 tenants looked at"
    assert key_rows(done) == [("acme", "groq", "yes", ""), ("acme", "llm7", "yes", "")]
    assert line.startswith("no stored key needs 'k1' any more: drop it from TURNPIKE_KEY_ENCRYPTION_KEYS")


def test_one_tenant_says_nothing_of_the_keys_that_the_others_need() -> None:
    assert advice([resealed()], is_for_all=False) == []


def test_without_older_keys_there_is_nothing_to_drop() -> None:
    assert advice([resealed(other_key_ids=())], is_for_all=True) == []


def test_a_key_whose_key_encryption_key_is_gone_names_what_has_to_be_put_back() -> None:
    done = [resealed(resealed_providers=("groq",), unreadable_tokens=(LOST,))]

    line = advice(done, is_for_all=True)[0]

    assert not is_finished(done)
    assert line.startswith("put 'k0' back into TURNPIKE_KEY_ENCRYPTION_KEYS")
    assert summary(done) == "1 key sealed anew with 'k2', 1 tenant looked at; 1 tenant not finished"
    assert ("acme", "llm7", "no", LOST.explanation) in key_rows(done)


def test_a_key_that_nothing_opens_has_to_be_stored_again() -> None:
    done = [resealed(unreadable_tokens=(ALTERED,))]

    assert not is_finished(done)
    assert "turnpike tenants set-token" in advice(done, is_for_all=True)[0]
    assert "put " not in " ".join(advice(done, is_for_all=True))


@pytest.mark.parametrize("is_for_all", [True, False])
def test_while_a_tenant_is_broken_no_older_key_may_be_dropped(is_for_all: bool) -> None:
    done = [resealed(resealed_providers=("groq",)), resealed(tenant_id="globex", problem="llm_tokens is broken")]

    [line] = advice(done, is_for_all=is_for_all)

    assert not is_finished(done)
    assert line.endswith("TURNPIKE_KEY_ENCRYPTION_KEYS must keep 'k1'")
    assert ("globex", "(all)", "no", "llm_tokens is broken") in key_rows(done)


def test_a_broken_tenant_is_to_be_mended_also_where_there_is_no_older_key() -> None:
    [line] = advice([resealed(problem="broken", other_key_ids=())], is_for_all=True)

    assert line.startswith("mend those tenants")


def test_routers_that_seal_with_different_keys_are_found_out() -> None:
    done = [resealed(), resealed(tenant_id="globex", active_key_id="k1", other_key_ids=())]

    [line] = advice(done, is_for_all=True)

    assert not is_finished(done)
    assert line.startswith("routers with different TURNPIKE_KEY_ENCRYPTION_KEYS answered")
    assert "'k1', 'k2'" in summary(done)


def test_no_tenants_are_no_failure() -> None:
    assert is_finished([])
    assert advice([], is_for_all=True) == []
    assert summary([]) == "no tenants: nothing to seal anew"
