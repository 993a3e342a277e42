"""What a row of `tenants` says: preferences and keys as domain values, or which field is broken.

Anybody may write these columns by hand, so nothing in them is trusted. A broken preference makes the whole tenant
unusable, because routing by half a configuration would surprise; a broken key makes only that key unusable. No message
quotes what stands in a row: a key may stand in any field, also as a name, by somebody's mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from router_service.domain.catalog import ProviderNames
from router_service.domain.scoring import MAX_WEIGHT, TERM_NAMES
from router_service.domain.secret import Secret
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import Funding
from router_service.tenants.sealed_keys import SEALED_PREFIX, KeyRing, UnreadableKey, checked_token
from service_runtime.errors import Category, ServiceError

CONFIG_INVALID = "TENANT_CONFIG_INVALID"
_MAX_TEXT = 200
MAX_JSON_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A row as the database gives it; the two JSON columns are still text, cut off past `MAX_JSON_CHARACTERS`."""

    id: UUID
    name: str
    llm_tokens: str
    inference_config: str
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What may be known of a stored key. `unreadable` says why it cannot be used; empty when it can.

    `missing_key_id` names the key-encryption key that an unreadable one was sealed with, if the ring does not have it.
    """

    provider: str
    last4: str
    fingerprint: str
    created_at: datetime | None
    unreadable: str = ""
    missing_key_id: str = ""


@dataclass(frozen=True, slots=True)
class ParsedTenant:
    """A row that was understood.

    `plaintext` holds the keys that were written in clear and still have to be sealed; `sealed_currently` names the
    providers whose keys the ring's active key sealed.
    """

    tenant: Tenant
    keys: tuple[StoredKey, ...]
    plaintext: Mapping[str, Secret]
    sealed_currently: frozenset[str]
    created_at: datetime
    updated_at: datetime


class RowReader:
    """Understands rows: it knows the providers' names and holds the key ring."""

    def __init__(self, names: ProviderNames, ring: KeyRing, *, accepts_plaintext: bool) -> None:
        self._names = names
        self._ring = ring
        self._accepts_plaintext = accepts_plaintext

    def read(self, row: TenantRow) -> ParsedTenant:
        """The tenant that a row describes. Raises ServiceError TENANT_CONFIG_INVALID naming the field."""
        config = self._config(row)
        credentials: dict[str, Credential] = {}
        unusable: dict[str, str] = {}
        plaintext: dict[str, Secret] = {}
        current: set[str] = set()
        keys: list[StoredKey] = []
        for position, (written, entry) in enumerate(_json_object(row, "llm_tokens", row.llm_tokens).items()):
            if entry is None or entry == "":
                continue
            provider = self._names.normalise(written)
            if provider is None:
                raise _invalid(row, "llm_tokens", f"has a name at position {position} that {self._no_provider()}")
            if provider in credentials or provider in unusable:
                raise _invalid(row, f"llm_tokens.{provider}", "is there twice, under two spellings; keep one")
            secret, key = self._key(row, provider, entry)
            keys.append(key)
            if secret is None:
                unusable[provider] = key.unreadable
                continue
            credentials[provider] = Credential(Funding.TENANT_KEY, key.fingerprint, secret)
            if _in_clear(entry) is not None:
                plaintext[provider] = secret
            elif self._ring.is_current(_key_text(entry)):
                current.add(provider)
        tenant = Tenant(row.id, row.name, row.version, config, credentials, unusable)
        return ParsedTenant(tenant, tuple(keys), plaintext, frozenset(current), row.created_at, row.updated_at)

    def _key(self, row: TenantRow, provider: str, entry: object) -> tuple[Secret | None, StoredKey]:
        if (text := _in_clear(entry)) is not None:
            return self._plaintext_key(row, provider, text)
        created_at = _time(entry.get("created")) if isinstance(entry, dict) else None
        try:
            secret = self._ring.open(_key_text(entry), tenant_id=row.id, provider=provider)
        except UnreadableKey as error:
            reason = f"{error}; store it again"
            return None, StoredKey(provider, "", "", created_at, reason, error.missing_key_id)
        return secret, self._stored(row, provider, secret, created_at)

    def _plaintext_key(self, row: TenantRow, provider: str, text: str) -> tuple[Secret | None, StoredKey]:
        if not self._accepts_plaintext:
            raise _invalid(
                row,
                f"llm_tokens.{provider}",
                "holds a key in clear, which this profile does not accept; "
                f"run: turnpike tenants set-token {row.id} {provider}",
            )
        secret = checked_token(text)
        if secret is None:
            reason = "it is not 8 to 512 printable ASCII characters; store it again"
            return None, StoredKey(provider, "", "", None, reason)
        return secret, self._stored(row, provider, secret, row.updated_at)

    def _stored(self, row: TenantRow, provider: str, secret: Secret, created_at: datetime | None) -> StoredKey:
        fingerprint = self._ring.fingerprint(secret, tenant_id=row.id)
        return StoredKey(provider, secret.last4(), fingerprint, created_at)

    def _config(self, row: TenantRow) -> InferenceConfig:
        fields = _json_object(row, "inference_config", row.inference_config)
        read: dict[str, Callable[[str, object], object]] = {
            "preferred_provider": lambda path, value: self._provider(row, path, value),
            "auto_failover": lambda path, value: _boolean(row, path, value),
            "allow_system_keys": lambda path, value: _boolean(row, path, value),
            "preferred_models": lambda path, value: self._preferred_models(row, path, value),
            "allowed_providers": lambda path, value: self._allowed_providers(row, path, value),
            "score_weights": lambda path, value: _weights(row, path, value),
        }
        known = {
            name: read[name](f"inference_config.{name}", value)
            for name, value in fields.items()
            # A field of a newer version is left alone: new configuration must not break an old router.
            if name in read and value is not None
        }
        return InferenceConfig(**known)  # type: ignore[arg-type]  # each reader returns its field's type

    def _provider(self, row: TenantRow, path: str, value: object) -> str | None:
        text = _text(row, path, value)
        if not text:
            return None
        name = self._names.normalise(text)
        if name is None:
            raise _invalid(row, path, self._no_provider())
        return name

    def _preferred_models(self, row: TenantRow, path: str, value: object) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise _invalid(row, path, "must be an object of provider to model")
        models: dict[str, str] = {}
        for written, model in value.items():
            provider = self._names.normalise(written)
            if provider is None:
                raise _invalid(row, path, f"has a name that {self._no_provider()}")
            name = _text(row, f"{path}.{provider}", model)
            if name:
                models[provider] = name
        return models

    def _allowed_providers(self, row: TenantRow, path: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise _invalid(row, path, "must be a list of providers")
        names = [self._provider(row, f"{path}[{position}]", entry) for position, entry in enumerate(value)]
        if None in names:
            # To drop it could leave the list empty, and an empty list allows everything.
            raise _invalid(row, path, "has an empty entry")
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def _no_provider(self) -> str:
        return f"is no provider of the catalogue; there are {', '.join(self._names.known())}"


def _weights(row: TenantRow, path: str, value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise _invalid(row, path, "must be an object of score term to weight")
    for term, weight in value.items():
        if term not in TERM_NAMES:
            raise _invalid(row, path, f"has a name that is no score term; there are {', '.join(sorted(TERM_NAMES))}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            raise _invalid(row, f"{path}.{term}", f"must be a number from 0 to {MAX_WEIGHT:.0f}")
    return {term: float(weight) for term, weight in value.items()}


def _json_object(row: TenantRow, column: str, text: str) -> dict[str, object]:
    if len(text) > MAX_JSON_CHARACTERS:
        raise _invalid(row, column, f"is longer than {MAX_JSON_CHARACTERS} characters")
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise _invalid(row, column, "is not readable JSON") from None
    if not isinstance(value, dict):
        raise _invalid(row, column, f"must be a JSON object, not {_kind(value)}")
    return value


def _boolean(row: TenantRow, path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _invalid(row, path, f"must be true or false, not {_kind(value)}")
    return value


def _text(row: TenantRow, path: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise _invalid(row, path, f"must be a text of at most {_MAX_TEXT} characters")
    return value


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def _key_text(entry: object) -> str:
    """The key of an entry, sealed or in clear; an empty text, which no ring opens, when there is none."""
    key = entry.get("key") if isinstance(entry, dict) else entry
    return key if isinstance(key, str) else ""


def _in_clear(entry: object) -> str | None:
    """The key that stands in an entry unsealed, written as a text or inside the sealed form's object."""
    key = _key_text(entry)
    return key if key and not key.startswith(SEALED_PREFIX) else None


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _invalid(row: TenantRow, field: str, problem: str) -> ServiceError:
    return ServiceError(
        Category.FAILED_PRECONDITION,
        CONFIG_INVALID,
        f"the configuration of tenant {row.id} is invalid: {field} {problem}",
        metadata={"tenant_id": str(row.id), "field": field},
    )
