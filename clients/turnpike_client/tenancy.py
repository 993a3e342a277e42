"""Tenants: who they are, how their requests are routed, and what may be known of their provider keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from turnpike.router.v1 import tenant_service_pb2
from turnpike_client.enums import TokenState, TokenVerdict


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """How a tenant's requests are routed. Empty `preferred_provider`: none; empty `allowed_providers`: all."""

    preferred_provider: str = ""
    auto_failover: bool = True
    preferred_models: Mapping[str, str] = field(default_factory=dict)
    score_weights: Mapping[str, float] = field(default_factory=dict)
    allowed_providers: tuple[str, ...] = ()
    allow_system_keys: bool = True


class ConfigChanges(TypedDict, total=False):
    """The fields of an `InferenceConfig` that shall change; a map or list is replaced whole."""

    preferred_provider: str
    auto_failover: bool
    preferred_models: Mapping[str, str]
    score_weights: Mapping[str, float]
    allowed_providers: tuple[str, ...]
    allow_system_keys: bool


@dataclass(frozen=True, slots=True)
class ProviderToken:
    """What may be known of a provider key: never the key. `last4` is empty for short keys."""

    provider: str
    last4: str
    fingerprint: str
    state: TokenState
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant; `config_version` grows by one with every change."""

    id: str
    name: str
    config: InferenceConfig
    provider_tokens: tuple[ProviderToken, ...]
    config_version: int
    created_at: datetime
    updated_at: datetime
    proto: tenant_service_pb2.Tenant = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UnreadableToken:
    """A stored provider key that does not open, and why.

    `missing_key_id`: the key-encryption key that the router lacks for it; empty when it has to be stored again.
    """

    provider: str
    explanation: str
    missing_key_id: str


@dataclass(frozen=True, slots=True)
class ResealedTenant:
    """What sealing a tenant's provider keys anew did.

    `problem` says why nothing could be done; empty when it could. `active_key_id` and `other_key_ids` are the
    key-encryption keys of the router that did it.
    """

    tenant_id: str
    resealed_providers: tuple[str, ...]
    unreadable_tokens: tuple[UnreadableToken, ...]
    problem: str
    active_key_id: str
    other_key_ids: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether every stored key of the tenant is sealed with the active key now."""
        return not self.problem and not self.unreadable_tokens


@dataclass(frozen=True, slots=True)
class TokenVerification:
    """What a provider said of a key, and why."""

    verdict: TokenVerdict
    explanation: str
