"""Between the protos of TenantService and tenants. Requests are checked here, every bad field at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from router_service.domain.catalog import ProviderNames
from router_service.domain.scoring import MAX_WEIGHT, TERM_NAMES
from router_service.domain.secret import Secret
from router_service.domain.tenant import InferenceConfig
from router_service.routing.ports import KeyVerdict
from router_service.tenants.rows import ParsedTenant, StoredKey, TenantRow
from router_service.tenants.sealed_keys import checked_token
from router_service.tenants.store import Resealed
from service_runtime.error_codec import to_status
from service_runtime.errors import FieldViolation, InvalidRequest
from turnpike.router.v1 import tenant_service_pb2 as pb

MAX_NAME = 200
MAX_ENTRIES = 64
_MAX_VIOLATIONS = 50  # an answer is not to be larger than its request
_KEY_RULE = "must be a provider's key: 8 to 512 printable ASCII characters, not in Turnpike's sealed form"
_CONFIG_FIELDS = tuple(field.name for field in pb.InferenceConfig.DESCRIPTOR.fields)


class Checker:
    """Collects every violation of a request, so that its author sees all of them at once."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def refuse(self, field: str, description: str) -> None:
        self._violations.append(FieldViolation(field, description))

    def done(self) -> None:
        """Raise InvalidRequest if anything was refused."""
        if self._violations:
            raise InvalidRequest(self._violations[:_MAX_VIOLATIONS])

    def few(self, field: str, count: int, *, limit: int = MAX_ENTRIES) -> bool:
        """Whether there are few enough entries to look at each; millions of them would hold up everybody else."""
        if count > limit:
            self.refuse(field, f"must be at most {limit} entries, not {count}")
        return count <= limit

    def uuid(self, field: str, text: str, *, parse: Callable[[str], UUID] = UUID) -> UUID | None:
        try:
            return parse(text)
        except ValueError:
            self.refuse(field, f"must be a UUID, not {text[:50]!r}" if text else "is required: the tenant's UUID")
            return None

    def text(self, field: str, text: str, *, limit: int = MAX_NAME, required: bool = False) -> str:
        stripped = text.strip()
        if required and not stripped:
            self.refuse(field, f"is required: 1 to {limit} characters")
        elif len(text) > limit:
            self.refuse(field, f"must be at most {limit} characters, not {len(text)}")
        elif not stripped.isprintable():
            self.refuse(field, "must not hold control characters or line breaks")
        return stripped

    def provider(self, field: str, text: str, names: ProviderNames, *, beside_a_key: bool = False) -> str:
        """The catalogue name; an empty text when it was refused.

        `beside_a_key` keeps the text out of the refusal: people swap a key and its provider.
        """
        name = names.normalise(text)
        if name is None:
            subject = "this" if beside_a_key else repr(text[:50])
            known = ", ".join(names.known())
            self.refuse(field, f"{subject} is no provider; there are {known}" if text else "is required")
        return name or ""


def tenant_id_from(text: str, field: str = "tenant_id") -> UUID:
    """The tenant's id. Raises InvalidRequest."""
    checker = Checker()
    tenant_id = checker.uuid(field, text)
    checker.done()
    assert tenant_id is not None
    return tenant_id


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A checked CreateTenantRequest; `tenant_id` is None when one is to be made."""

    tenant_id: UUID | None
    name: str
    config: Mapping[str, object]
    tokens: Mapping[str, Secret]


def new_tenant_from_proto(request: pb.CreateTenantRequest, names: ProviderNames) -> NewTenant:
    """Raises InvalidRequest with the path of every bad field."""
    checker = Checker()
    tenant_id = checker.uuid("tenant_id", request.tenant_id) if request.tenant_id else None
    name = checker.text("name", request.name, required=True)
    config = _config_from_proto(request.inference_config, names, checker)
    tokens: dict[str, Secret] = {}
    given = request.provider_tokens.items() if checker.few("provider_tokens", len(request.provider_tokens)) else ()
    for written, text in given:
        provider = checker.provider("provider_tokens", written, names, beside_a_key=True)
        if not provider:
            continue
        path, secret = f"provider_tokens[{provider!r}]", checked_token(text)
        if secret is None:
            checker.refuse(path, _KEY_RULE)
        elif provider in tokens:
            checker.refuse(path, "is there twice, under two spellings")
        else:
            tokens[provider] = secret
    checker.done()
    return NewTenant(tenant_id, name, config, tokens)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A checked SetProviderTokenRequest."""

    tenant_id: UUID
    provider: str
    secret: Secret


def new_token_from_proto(request: pb.SetProviderTokenRequest, names: ProviderNames) -> NewToken:
    """Raises InvalidRequest; the token is never quoted."""
    checker = Checker()
    tenant_id = checker.uuid("tenant_id", request.tenant_id)
    provider = checker.provider("provider", request.provider, names, beside_a_key=True)
    secret = checked_token(request.token)
    if secret is None:
        checker.refuse("token", _KEY_RULE)
    checker.done()
    assert tenant_id is not None
    assert secret is not None
    return NewToken(tenant_id, provider, secret)


def token_owner_from_proto(
    request: pb.DeleteProviderTokenRequest | pb.VerifyProviderTokenRequest, names: ProviderNames
) -> tuple[UUID, str]:
    """Tenant and provider of a key. Raises InvalidRequest."""
    checker = Checker()
    tenant_id = checker.uuid("tenant_id", request.tenant_id)
    provider = checker.provider("provider", request.provider, names)
    checker.done()
    assert tenant_id is not None
    return tenant_id, provider


@dataclass(frozen=True, slots=True)
class TenantChange:
    """A checked UpdateTenantRequest. `apply` makes the new name and configuration from the row as it is."""

    tenant_id: UUID
    expected_version: int
    apply: Callable[[TenantRow], tuple[str, Mapping[str, object]]]


def change_from_proto(request: pb.UpdateTenantRequest, names: ProviderNames) -> TenantChange:
    """Raises InvalidRequest. A field of the mask that is not set in the request is cleared."""
    checker = Checker()
    tenant_id = checker.uuid("tenant_id", request.tenant_id)
    paths = _paths(request, checker)
    name = checker.text("name", request.name, required="name" in paths)
    config = _config_from_proto(request.inference_config, names, checker)
    if request.expected_config_version < 0:
        checker.refuse("expected_config_version", "must not be negative")
    checker.done()
    assert tenant_id is not None

    def apply(row: TenantRow) -> tuple[str, Mapping[str, object]]:
        changed = _stored_config(row)
        if "inference_config" in paths:
            changed = dict(config)
        for field in _CONFIG_FIELDS:
            if f"inference_config.{field}" in paths:
                changed.pop(field, None)
                if field in config:
                    changed[field] = config[field]
        return (name if "name" in paths else row.name), changed

    return TenantChange(tenant_id, request.expected_config_version, apply)


def _stored_config(row: TenantRow) -> dict[str, object]:
    """The configuration as it stands; a broken one counts as empty, so that an update can mend it."""
    try:
        value = json.loads(row.inference_config)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _paths(request: pb.UpdateTenantRequest, checker: Checker) -> frozenset[str]:
    if not request.update_mask.paths:
        whole = {"name"} if request.name else set()
        set_fields = {f"inference_config.{field.name}" for field, _ in request.inference_config.ListFields()}
        if not whole | set_fields:
            checker.refuse("update_mask", "nothing is to be changed: set a field, or name the fields to clear")
        return frozenset(whole | set_fields)
    allowed = {"name", "inference_config", *(f"inference_config.{field}" for field in _CONFIG_FIELDS)}
    if not checker.few("update_mask.paths", len(request.update_mask.paths)):
        return frozenset()
    for position, path in enumerate(request.update_mask.paths):
        if path not in allowed:
            checker.refuse(f"update_mask.paths[{position}]", f"{path[:80]!r} cannot be changed")
    return frozenset(request.update_mask.paths)


def _config_from_proto(config: pb.InferenceConfig, names: ProviderNames, checker: Checker) -> dict[str, object]:
    """The configuration as it is stored: only what is set, with catalogue names."""
    path = "inference_config"
    stored: dict[str, object] = {}
    if config.preferred_provider:
        stored["preferred_provider"] = checker.provider(f"{path}.preferred_provider", config.preferred_provider, names)
    if config.HasField("auto_failover"):
        stored["auto_failover"] = config.auto_failover
    if config.HasField("allow_system_keys"):
        stored["allow_system_keys"] = config.allow_system_keys
    if checker.few(f"{path}.preferred_models", len(config.preferred_models)) and config.preferred_models:
        stored["preferred_models"] = {
            checker.provider(f"{path}.preferred_models[{written[:50]!r}]", written, names): checker.text(
                f"{path}.preferred_models[{written[:50]!r}]", model, required=True
            )
            for written, model in config.preferred_models.items()
        }
    if checker.few(f"{path}.allowed_providers", len(config.allowed_providers)) and config.allowed_providers:
        stored["allowed_providers"] = [
            checker.provider(f"{path}.allowed_providers[{position}]", written, names)
            for position, written in enumerate(config.allowed_providers)
        ]
    if checker.few(f"{path}.score_weights", len(config.score_weights)) and config.score_weights:
        stored["score_weights"] = _weights_from_proto(config, checker)
    return stored


def _weights_from_proto(config: pb.InferenceConfig, checker: Checker) -> dict[str, float]:
    for term, weight in config.score_weights.items():
        path = f"inference_config.score_weights[{term[:50]!r}]"
        if term not in TERM_NAMES:
            checker.refuse(path, f"is no score term; there are {', '.join(sorted(TERM_NAMES))}")
        elif not 0 <= weight <= MAX_WEIGHT:
            checker.refuse(path, f"must be 0 to {MAX_WEIGHT:.0f}, not {weight}")
    return dict(config.score_weights)


# ── answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


KeyStates = Callable[[str, str], KeyVerdict | None]
"""Provider and fingerprint to what the provider last said of the key, as far as this router knows."""


def tenant_to_proto(parsed: ParsedTenant, states: KeyStates) -> pb.Tenant:
    """The tenant with what may be known of its keys."""
    return pb.Tenant(
        id=str(parsed.tenant.id),
        name=parsed.tenant.name,
        inference_config=config_to_proto(parsed.tenant.config),
        provider_tokens=[_key_to_proto(key, states) for key in sorted(parsed.keys, key=lambda key: key.provider)],
        config_version=parsed.tenant.version,
        create_time=_timestamp(parsed.created_at),
        update_time=_timestamp(parsed.updated_at),
    )


def broken_tenant_to_proto(row: TenantRow) -> pb.Tenant:
    """A tenant whose configuration cannot be understood: it is listed, so that it can be found and mended."""
    return pb.Tenant(
        id=str(row.id),
        name=row.name,
        config_version=row.version,
        create_time=_timestamp(row.created_at),
        update_time=_timestamp(row.updated_at),
    )


def config_to_proto(config: InferenceConfig) -> pb.InferenceConfig:
    """The configuration with its defaults filled in."""
    return pb.InferenceConfig(
        preferred_provider=config.preferred_provider or "",
        auto_failover=config.auto_failover,
        preferred_models=dict(config.preferred_models),
        score_weights=dict(config.score_weights),
        allowed_providers=list(config.allowed_providers),
        allow_system_keys=config.allow_system_keys,
    )


def _key_to_proto(key: StoredKey, states: KeyStates) -> pb.ProviderToken:
    if key.unreadable:
        state = pb.PROVIDER_TOKEN_STATE_UNREADABLE
    else:
        state = {
            KeyVerdict.VALID: pb.PROVIDER_TOKEN_STATE_ACCEPTED,
            KeyVerdict.INVALID: pb.PROVIDER_TOKEN_STATE_REJECTED,
        }.get(states(key.provider, key.fingerprint) or KeyVerdict.UNKNOWN, pb.PROVIDER_TOKEN_STATE_STORED)
    created = _timestamp(key.created_at) if key.created_at else None
    return pb.ProviderToken(
        provider=key.provider, last4=key.last4, fingerprint=key.fingerprint, state=state, create_time=created
    )


def resealed_to_proto(resealed: Resealed) -> pb.ResealedTenant:
    """What resealing did for a tenant, or why nothing."""
    return pb.ResealedTenant(
        tenant_id=str(resealed.tenant_id),
        resealed_providers=resealed.providers,
        unreadable_tokens=[
            pb.UnreadableProviderToken(
                provider=key.provider, explanation=key.unreadable, missing_key_id=key.missing_key_id
            )
            for key in resealed.unreadable
        ],
        error=None if resealed.error is None else to_status(resealed.error),
    )


def verdict_to_proto(verdict: KeyVerdict) -> pb.TokenVerdict.ValueType:
    return {
        KeyVerdict.VALID: pb.TOKEN_VERDICT_VALID,
        KeyVerdict.INVALID: pb.TOKEN_VERDICT_INVALID,
        KeyVerdict.UNKNOWN: pb.TOKEN_VERDICT_UNKNOWN,
    }[verdict]


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
