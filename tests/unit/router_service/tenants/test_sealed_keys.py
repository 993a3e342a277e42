import base64
import stat
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.secret import Secret
from router_service.tenants.sealed_keys import KeyRing, UnreadableKey, checked_token
from service_runtime.startup import StartupError

ACME, GLOBEX = UUID(int=1), UUID(int=2)
OLD, NEW = bytes(32), bytes(range(32))
RING = KeyRing({"new": NEW, "old": OLD}, active="new")
PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=512)


@given(PRINTABLE)
def test_a_sealed_key_opens_to_what_was_sealed(text: str) -> None:
    sealed = RING.seal(Secret(text), tenant_id=ACME, provider="groq")

    assert RING.open(sealed.key, tenant_id=ACME, provider="groq").reveal() == text
    assert text not in sealed.key


@pytest.mark.parametrize(("tenant_id", "provider"), [(GLOBEX, "groq"), (ACME, "openrouter")])
def test_k2_a_key_copied_to_another_tenant_or_provider_does_not_open(tenant_id: UUID, provider: str) -> None:
    sealed = RING.seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")

    with pytest.raises(UnreadableKey, match="another tenant or provider"):
        RING.open(sealed.key, tenant_id=tenant_id, provider=provider)


def test_a_key_sealed_before_a_rotation_still_opens_and_is_known_not_to_be_current() -> None:
    before = KeyRing({"old": OLD}, active="old").seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")

    assert RING.open(before.key, tenant_id=ACME, provider="groq").reveal() == "gsk_12345678"
    assert not RING.is_current(before.key)
    assert RING.is_current(RING.seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq").key)


def test_equal_keys_have_equal_fingerprints_within_a_tenant_and_others_across_tenants() -> None:
    first = RING.fingerprint(Secret("gsk_12345678"), tenant_id=ACME)

    assert first == RING.fingerprint(Secret("gsk_12345678"), tenant_id=ACME)
    assert first != RING.fingerprint(Secret("gsk_12345678"), tenant_id=GLOBEX)
    assert first != RING.fingerprint(Secret("gsk_12345679"), tenant_id=ACME)


@given(st.binary(max_size=100))
def test_no_bytes_that_were_not_sealed_open(raw: bytes) -> None:
    with pytest.raises(UnreadableKey):
        RING.open(f"enc:v1:new:{base64.b64encode(raw).decode()}", tenant_id=ACME, provider="groq")


@pytest.mark.parametrize(
    "text", ["", "short", "has space inside", "tab\tinside-key", "nul\x00inside-key", "ключ-ключ", "x" * 513]
)
def test_text_that_cannot_be_a_header_is_no_key(text: str) -> None:
    assert checked_token(text) is None


def test_white_space_around_a_pasted_key_is_removed() -> None:
    secret = checked_token("  gsk_12345678\n")

    assert secret is not None
    assert secret.reveal() == "gsk_12345678"


@pytest.mark.parametrize("text", ["", "k1", "k1:not-base64!", "k1:c2hvcnQ=", f"k 1:{base64.b64encode(NEW).decode()}"])
def test_a_malformed_ring_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(StartupError) as refused:
        KeyRing.parse(text)

    assert "TURNPIKE_KEY_ENCRYPTION_KEYS" in str(refused.value)
    assert text.partition(":")[2] == "" or text.partition(":")[2] not in str(refused.value)


def test_the_development_key_is_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "kek"

    sealed = KeyRing.in_file(path).seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")

    assert KeyRing.in_file(path).open(sealed.key, tenant_id=ACME, provider="groq").reveal() == "gsk_12345678"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
