import base64
import stat
from concurrent.futures import ThreadPoolExecutor
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


def test_a_key_whose_key_encryption_key_was_dropped_names_it() -> None:
    before = KeyRing({"old": OLD}, active="old").seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")
    after = KeyRing({"new": NEW}, active="new")

    with pytest.raises(UnreadableKey, match="'old', which is not in TURNPIKE_KEY_ENCRYPTION_KEYS") as refused:
        after.open(before.key, tenant_id=ACME, provider="groq")

    assert refused.value.missing_key_id == "old"


def test_a_key_that_was_replaced_under_the_same_id_is_told_as_one_possible_cause() -> None:
    before = KeyRing({"k1": OLD}, active="k1").seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")

    with pytest.raises(UnreadableKey, match="or with another key that was called 'k1'"):
        KeyRing({"k1": NEW}, active="k1").open(before.key, tenant_id=ACME, provider="groq")


@pytest.mark.parametrize("sealed", ["enc:v1:new:AAAA", "enc:v1:no id at all:AAAA", "enc:v1:" + "x" * 33 + ":AAAA", ""])
def test_what_no_key_encryption_key_could_have_sealed_names_none(sealed: str) -> None:
    with pytest.raises(UnreadableKey) as refused:
        RING.open(sealed, tenant_id=ACME, provider="groq")

    assert refused.value.missing_key_id == ""


def test_the_active_key_is_named_first() -> None:
    assert KeyRing({"old": OLD, "new": NEW}, active="new").key_ids == ("new", "old")


def test_a_fingerprint_survives_a_rotation_until_the_oldest_key_is_dropped() -> None:
    secret = Secret("gsk_12345678")
    rings = [KeyRing({"old": OLD}, active="old"), RING, KeyRing({"new": NEW}, active="new")]

    before, during, after = [ring.fingerprint(secret, tenant_id=ACME) for ring in rings]

    assert before == during != after


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


def test_workers_that_start_at_once_get_the_same_development_key(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "kek"
    with ThreadPoolExecutor(8) as workers:
        rings = list(workers.map(KeyRing.in_file, [path] * 32))

    sealed = rings[0].seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq").key

    assert {ring.open(sealed, tenant_id=ACME, provider="groq").reveal() for ring in rings} == {"gsk_12345678"}
    assert [entry.name for entry in path.parent.iterdir()] == ["kek"]


def test_a_key_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    KeyRing.in_file(path)
    path.chmod(0o644)

    with pytest.raises(StartupError, match="chmod 600"):
        KeyRing.in_file(path)


def test_a_key_file_that_cannot_be_made_or_read_is_one_line_for_the_operator(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "kek").write_bytes(b"\xff")
    (tmp_path / "kek").chmod(0o600)

    with pytest.raises(StartupError, match="cannot be used"):
        KeyRing.in_file(tmp_path / "file" / "kek")
    with pytest.raises(StartupError, match="cannot be used"):
        KeyRing.in_file(tmp_path / "kek")


def test_production_has_no_key_that_nobody_chose(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="TURNPIKE_KEY_ENCRYPTION_KEYS is required"):
        KeyRing.load("", data_dir=tmp_path, is_development=False)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_development", [True, False])
def test_a_given_ring_is_used_and_its_first_key_is_active(tmp_path: Path, *, is_development: bool) -> None:
    text = f"new:{base64.b64encode(NEW).decode()}, old:{base64.b64encode(OLD).decode()}"

    ring = KeyRing.load(text, data_dir=tmp_path, is_development=is_development)

    assert ring.seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq").key.startswith("enc:v1:new:")
    assert list(tmp_path.iterdir()) == []


def test_development_makes_a_key_in_the_data_directory(tmp_path: Path) -> None:
    KeyRing.load("", data_dir=tmp_path, is_development=True)

    assert (tmp_path / "keys" / "kek").exists()


def test_what_is_sealed_already_is_no_key() -> None:
    sealed = RING.seal(Secret("gsk_12345678"), tenant_id=ACME, provider="groq")

    assert checked_token(sealed.key) is None
