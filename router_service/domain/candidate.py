"""Whom a request could be sent to."""

from __future__ import annotations

from dataclasses import dataclass, field

from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.tenant import Credential
from router_service.domain.usage import Funding


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider, model and credential that could serve a request. `credential` is None where none is needed.

    A candidate is made once for a tenant's configuration and looked up many times in a request, so it brings its keys.
    `route_key` (provider, address and model) is what 5xx and time-outs are held against; `credential_key` (provider and
    key) is for 401, 402 and 429, so that one tenant's bad key trips nobody else; `key_and_model` is both of them.
    """

    spec: ProviderSpec
    model: ModelFacts
    credential: Credential | None
    provider: str = field(init=False, repr=False, compare=False)
    route_key: tuple[str, str, str] = field(init=False, repr=False, compare=False)
    credential_key: tuple[str, str] = field(init=False, repr=False, compare=False)
    key_and_model: tuple[str, str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        provider, model = self.spec.name, self.model.name
        fingerprint = self.credential.fingerprint if self.credential else ""
        object.__setattr__(self, "provider", provider)
        object.__setattr__(self, "route_key", (provider, self.spec.base_url, model))
        object.__setattr__(self, "credential_key", (provider, fingerprint))
        object.__setattr__(self, "key_and_model", (provider, fingerprint, model))

    @property
    def funding(self) -> Funding | None:
        """Whose key pays; None where no key is needed."""
        return self.credential.funding if self.credential is not None else None


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A candidate that will not be tried. `model` is empty when a whole provider is out; `reason` is a stable code."""

    provider: str
    model: str
    reason: str
    explanation: str
