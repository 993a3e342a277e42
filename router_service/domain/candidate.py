"""Whom a request could be sent to."""

from __future__ import annotations

from dataclasses import dataclass

from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.tenant import Credential
from router_service.domain.usage import Funding


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider, model and credential that could serve a request. `credential` is None where none is needed."""

    spec: ProviderSpec
    model: ModelFacts
    credential: Credential | None

    @property
    def provider(self) -> str:
        return self.spec.name

    @property
    def funding(self) -> Funding | None:
        """Whose key pays; None where no key is needed."""
        return self.credential.funding if self.credential is not None else None

    @property
    def route_key(self) -> tuple[str, str, str]:
        """What 5xx and time-outs are held against: provider, address and model."""
        return (self.spec.name, self.spec.base_url, self.model.name)

    @property
    def credential_key(self) -> tuple[str, str]:
        """What 401, 402 and 429 are held against: provider and key, so that one tenant's bad key trips nobody else."""
        return (self.spec.name, self.credential.fingerprint if self.credential else "")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A candidate that will not be tried. `model` is empty when a whole provider is out; `reason` is a stable code."""

    provider: str
    model: str
    reason: str
    explanation: str
