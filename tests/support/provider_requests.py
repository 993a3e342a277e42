"""Requests and candidates for tests of providers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.completion import (
    CompletionRequest,
    ContentDelta,
    Message,
    ProviderFinished,
    ProviderItem,
    Role,
)
from router_service.domain.errors import ProviderError
from router_service.domain.secret import Secret
from router_service.domain.tenant import Credential
from router_service.domain.usage import Funding
from router_service.providers.catalog import CATALOG
from router_service.routing.ports import Provider

KEY = "gsk_canary_0123456789abcdef"


def credential(key: str = KEY) -> Credential:
    return Credential(Funding.TENANT_KEY, fingerprint="f1", secret=Secret(key))


def completion(text: str = "Hello there", **fields: Any) -> CompletionRequest:
    values: dict[str, Any] = {"messages": (Message(Role.USER, text),), **fields}
    return CompletionRequest(tenant_id=UUID(int=1), request_id=UUID(int=2), **values)


def candidate(spec: ProviderSpec, model: str, *, key: str | None = KEY) -> Candidate:
    return Candidate(spec, spec.models.get(model) or ModelFacts(model), credential(key) if key is not None else None)


def at(spec: ProviderSpec, base_url: str) -> ProviderSpec:
    return replace(spec, base_url=base_url)


class Answer:
    """Everything that a provider's stream gave, and how it ended."""

    def __init__(self) -> None:
        self.items: list[ProviderItem] = []
        self.error: ProviderError | None = None

    @property
    def deltas(self) -> list[ContentDelta]:
        return [item for item in self.items if isinstance(item, ContentDelta)]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def reasoning(self) -> str:
        return "".join(delta.reasoning for delta in self.deltas)

    @property
    def finished(self) -> ProviderFinished:
        assert self.error is None, self.error
        last = self.items[-1]
        assert isinstance(last, ProviderFinished)
        return last

    @property
    def failure(self) -> ProviderError:
        assert self.error is not None, self.items
        return self.error


async def collect(stream: AsyncIterator[ProviderItem]) -> Answer:
    """Read a provider's stream to its end, whatever the end is."""
    answer = Answer()
    try:
        async for item in stream:
            answer.items.append(item)
    except ProviderError as error:
        answer.error = error
    return answer


class Asker:
    """Asks providers that all stand at one address."""

    def __init__(self, providers: Mapping[str, Provider], base_url: str) -> None:
        self._providers = providers
        self._base_url = base_url

    def stream(
        self, model: str, request: CompletionRequest | None = None, *, provider: str = "groq", key: str | None = KEY
    ) -> AsyncGenerator[ProviderItem, None]:
        """The open stream of `provider` for `model`; the caller closes it."""
        chosen = candidate(at(CATALOG[provider], self._base_url), model, key=key)
        return self._providers[provider].stream(chosen, request or completion(), connect_timeout_s=2)

    async def __call__(
        self, model: str, request: CompletionRequest | None = None, *, provider: str = "groq", key: str | None = KEY
    ) -> Answer:
        """The whole answer."""
        return await collect(self.stream(model, request, provider=provider, key=key))
