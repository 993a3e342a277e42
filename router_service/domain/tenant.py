"""A tenant as the router sees it: preferences and keys, one immutable snapshot per version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from router_service.domain.secret import Secret
from router_service.domain.usage import Funding


@dataclass(frozen=True, slots=True)
class Credential:
    """A provider key and who pays with it.

    `fingerprint` is keyed and short: it names the key in breakers and logs without giving it away.
    """

    funding: Funding
    fingerprint: str
    secret: Secret = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class InferenceConfig:
    """How a tenant's requests are routed. Providers are catalogue names; empty `allowed_providers` means all."""

    preferred_provider: str | None = None
    auto_failover: bool = True
    preferred_models: Mapping[str, str] = field(default_factory=dict)
    score_weights: Mapping[str, float] = field(default_factory=dict)
    allowed_providers: tuple[str, ...] = ()
    allow_system_keys: bool = True


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant's configuration at one version. Version 0 is the default of a tenant that nobody created.

    `unusable_credentials` maps a provider to why its stored key cannot be used.
    """

    id: UUID
    name: str
    version: int
    config: InferenceConfig = InferenceConfig()
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    unusable_credentials: Mapping[str, str] = field(default_factory=dict)
