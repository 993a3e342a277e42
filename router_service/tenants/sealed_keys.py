"""Provider keys at rest: sealed with AES-256-GCM, bound to the tenant and provider that they belong to.

A sealed key stands in `tenants.llm_tokens` as

    {"groq": {"key": "enc:v1:<kid>:<base64>", "fp": "<fingerprint>", "last4": "a1b2", "created": "<ISO 8601>"}}

The associated data names purpose, tenant, provider and key id, so that a row copied to another tenant or provider does
not open. The key-encryption key is never used itself: HKDF derives one key per tenant and purpose from it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from router_service.domain.secret import Secret
from service_runtime.startup import StartupError

SEALED_PREFIX = "enc:v1:"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_FINGERPRINT_HEX_DIGITS = 12
_TOKEN = re.compile(r"[\x21-\x7e]{8,512}")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_VARIABLE = "TURNPIKE_KEY_ENCRYPTION_KEYS"


class UnreadableKey(Exception):
    """A stored key cannot be opened. The message says why and never holds the key.

    `missing_key_id`: the key-encryption key that may open it and that the ring does not have; empty when none would.
    """

    def __init__(self, message: str, *, missing_key_id: str = "") -> None:
        super().__init__(message)
        self.missing_key_id = missing_key_id


def checked_token(text: str) -> Secret | None:
    """The provider key in `text` without surrounding white space; None when it cannot be sent as an HTTP header.

    A key with a control character would end up in the HTTP library's exception, and from there anywhere. What is
    sealed already is no key: somebody pasted the column.
    """
    stripped = text.strip()
    return Secret(stripped) if _TOKEN.fullmatch(stripped) and not stripped.startswith(SEALED_PREFIX) else None


@dataclass(frozen=True, slots=True)
class SealedKey:
    """A key as it is stored."""

    key: str
    fingerprint: str
    last4: str

    def to_json(self, created: str) -> dict[str, str]:
        """The entry of `llm_tokens`; `created` is a time in ISO 8601."""
        return {"key": self.key, "fp": self.fingerprint, "last4": self.last4, "created": created}


class KeyRing:
    """Key-encryption keys by id. Everything is sealed with the active one; each of them still opens what it sealed."""

    def __init__(self, keys: Mapping[str, bytes], *, active: str) -> None:
        self._keys = dict(keys)
        self._active = active

    @classmethod
    def parse(cls, text: str, *, source: str = _VARIABLE) -> KeyRing:
        """Read `kid:base64,kid2:base64`; the first is active. Raises StartupError without quoting a key."""
        keys: dict[str, bytes] = {}
        for position, pair in enumerate(text.split(","), start=1):
            key_id, _, encoded = pair.strip().partition(":")
            if not _KEY_ID.fullmatch(key_id) or key_id in keys:
                raise StartupError(
                    f"{source}: entry {position} needs an id of its own: letters, digits, - or _, then a colon"
                )
            try:
                key = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                key = b""
            if len(key) != _KEY_BYTES:
                raise StartupError(
                    f"{source}: key {key_id!r} must be {_KEY_BYTES} bytes in base64; make one with "
                    f"`openssl rand -base64 {_KEY_BYTES}`"
                )
            keys[key_id] = key
        return cls(keys, active=next(iter(keys)))

    @classmethod
    def load(cls, text: str, *, data_dir: Path, is_development: bool) -> KeyRing:
        """The ring in `text`; when that is empty, on the development profile, the one kept in the data directory.

        Raises StartupError: production has no key that nobody chose, and a malformed ring is not guessed at.
        """
        if text.strip():
            return cls.parse(text)
        if is_development:
            return cls.in_file(data_dir / "keys" / "kek")
        raise StartupError(
            f"{_VARIABLE} is required on the production profile: set it to <id>:<key>, with a key from "
            f"`openssl rand -base64 {_KEY_BYTES}`"
        )

    @classmethod
    def in_file(cls, path: Path) -> KeyRing:
        """Read the ring from a file that only its owner may read; make it with a fresh key when it is missing.

        Several workers may start at once: all of them get the same key. Raises StartupError.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _make_key_file(path)
            if path.stat().st_mode & 0o077:
                raise StartupError(f"{path} can be read by others; run: chmod 600 {path}")
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"the key file {path} cannot be used: {type(error).__name__}") from error
        return cls.parse(text.strip(), source=str(path))

    def seal(self, secret: Secret, *, tenant_id: UUID, provider: str) -> SealedKey:
        """Seal a key for one tenant and provider."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._derive(self._active, "seal", tenant_id)).encrypt(
            nonce, secret.reveal().encode("ascii"), _associated_data(self._active, tenant_id, provider)
        )
        return SealedKey(
            key=f"{SEALED_PREFIX}{self._active}:{base64.b64encode(nonce + sealed).decode()}",
            fingerprint=self.fingerprint(secret, tenant_id=tenant_id),
            last4=secret.last4(),
        )

    def open(self, sealed: str, *, tenant_id: UUID, provider: str) -> Secret:
        """Open what `seal` made for the same tenant and provider. Raises UnreadableKey for everything else."""
        key_id, _, encoded = sealed.removeprefix(SEALED_PREFIX).partition(":")
        if not sealed.startswith(SEALED_PREFIX) or not encoded:
            raise UnreadableKey("it is not in the sealed form")
        if key_id not in self._keys:
            raise UnreadableKey(
                f"it was sealed with the key {key_id[:32]!r}, which is not in {_VARIABLE}",
                missing_key_id=key_id if _KEY_ID.fullmatch(key_id) else "",
            )
        try:
            raw = base64.b64decode(encoded, validate=True)
            opened = AESGCM(self._derive(key_id, "seal", tenant_id)).decrypt(
                raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _associated_data(key_id, tenant_id, provider)
            )
        except (binascii.Error, InvalidTag, ValueError):
            raise UnreadableKey(
                f"it was altered, sealed for another tenant or provider, or with another key that was called {key_id!r}"
            ) from None
        secret = checked_token(opened.decode("ascii", errors="replace"))
        if secret is None:
            raise UnreadableKey("it holds characters that no provider key has")
        return secret

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of its keys, the active one first. They are no secret."""
        return (self._active, *(key_id for key_id in self._keys if key_id != self._active))

    def is_current(self, sealed: str) -> bool:
        """Whether a sealed key was sealed with the active key."""
        return sealed.startswith(f"{SEALED_PREFIX}{self._active}:")

    def fingerprint(self, secret: Secret, *, tenant_id: UUID | None) -> str:
        """A short keyed name of a key: equal keys of one tenant have equal ones. None is for the operator's keys.

        It is derived from the last key of the ring, the oldest, so that it survives a rotation while that key stays.
        When that is dropped every key has a new one: nothing that is kept compares them but enquiries after late
        counts, which a router that starts anew then gives up.
        """
        oldest = list(self._keys)[-1]
        mac = hmac.HMAC(self._derive(oldest, "fingerprint", tenant_id), hashes.SHA256())
        mac.update(secret.reveal().encode())
        return mac.finalize().hex()[:_FINGERPRINT_HEX_DIGITS]

    def _derive(self, key_id: str, purpose: str, tenant_id: UUID | None) -> bytes:
        info = f"turnpike|{purpose}|{tenant_id or 'operator'}".encode()
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=info).derive(self._keys[key_id])


def _make_key_file(path: Path) -> None:
    """Make the file whole or not at all: whoever sees it under its name sees a key in it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"dev1:{base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another worker was first: its key is as good
            os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the keys that this one seals outlive a power cut; so must it
    finally:
        os.close(directory)


def _associated_data(key_id: str, tenant_id: UUID, provider: str) -> bytes:
    return f"v1|tenants.llm_tokens|{key_id}|{tenant_id}|{provider}".encode()
