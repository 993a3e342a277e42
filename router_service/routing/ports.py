"""What routing needs from the outside, said by the side that needs it. Adapters fit these; `app.py` plugs them in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from router_service.domain.candidate import Candidate
from router_service.domain.completion import CompletionRequest, ProviderItem
from router_service.domain.tenant import Credential, Tenant
from router_service.domain.usage import AttemptOpened, AttemptSettled, HeldAttempt, LateUsage, TokenUsage


class KeyVerdict(StrEnum):
    """What a provider said of a key."""

    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


class Provider(Protocol):
    """One provider's wire."""

    def stream(
        self, candidate: Candidate, request: CompletionRequest, *, connect_timeout_s: float
    ) -> AsyncGenerator[ProviderItem, None]:
        """Send the request and yield `ProviderAccepted`, `ProviderIdentified`, content deltas, then `ProviderFinished`.

        Nothing is yielded for comments, empty deltas and other signs of life: whoever reads bounds the silence.
        Content that arrived together is yielded together. Raises `ProviderError` and nothing else; closing the
        iterator closes the connection at once.
        """
        ...

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        """Ask the provider, without spending money, whether it accepts the key; with an explanation free of secrets."""
        ...

    async def late_usage(self, base_url: str, credential: Credential | None, response_id: str) -> LateUsage | None:
        """Ask what an answer consumed that ended without a count; None while the provider does not know.

        Raises `ProviderError`, for a provider without such a call too.
        """
        ...


class Tenants(Protocol):
    """The tenants' configuration."""

    async def get(self, tenant_id: UUID, *, min_version: int = 0) -> Tenant:
        """The tenant, usually from memory; reads once anew when it is older than `min_version`.

        Raises `ServiceError`: NOT_FOUND UNKNOWN_TENANT, FAILED_PRECONDITION TENANT_CONFIG_INVALID, or UNAVAILABLE
        CONFIG_UNAVAILABLE when nothing good is known and the store is away.
        """
        ...


class UsageJournal(Protocol):
    """The durable record of attempts. Whatever was accepted here reaches the ledger exactly once."""

    async def opened(self, attempt: AttemptOpened) -> None:
        """Record, before the first byte goes out, that an attempt begins. Durable on return.

        Raises `ServiceError` RESOURCE_EXHAUSTED JOURNAL_FULL when no more can be kept: then nothing may be sent.
        """
        ...

    async def settled(self, attempt: AttemptSettled) -> None:
        """Record how an attempt ended, before the caller is told. Durable on return. Never refuses an opened one.

        The record of an attempt with an `enquiry` is not on its way to the ledger before it is released.
        """
        ...

    async def held(self) -> Sequence[HeldAttempt]:
        """The attempts whose records are held, the longest held first, also those of an earlier run."""
        ...

    async def release(self, event_id: UUID, late: LateUsage | None) -> bool:
        """Let a held record go to the ledger, with `late` in place of its estimate; None lets the estimate stand.

        False when it is not held: a record is released once, whatever is learnt later.
        """
        ...


class TokenCounter(Protocol):
    """Counts tokens as a model does, apart from the requests that are served."""

    async def count(self, vocabulary: str, texts: Sequence[str]) -> list[int] | None:
        """The number of tokens of each text; None when that cannot be said in a moment. Raises nothing."""
        ...


class Prices(Protocol):
    """The router's copy of the price book: for the caller's information and for ranking, never for the ledger."""

    def cost_usd(self, provider: str, model: str, usage: TokenUsage) -> Decimal | None:
        """Price times tokens, or None when no price is known."""
        ...

    def usd_per_million(self, provider: str, model: str) -> tuple[Decimal, Decimal] | None:
        """Input and output price, or None when no price is known."""
        ...


@dataclass(frozen=True, slots=True)
class LimitHeadroom:
    """How much of its tightest limit a tenant has left at a provider: 1 is all, 0 is none."""

    remaining_ratio: float
    should_failover: bool


class LimitLevels(Protocol):
    """The tenants' positions against their limits, as last heard from usage_service."""

    def headroom(self, tenant_id: UUID, provider: str, model: str) -> LimitHeadroom | None:
        """From memory, never waiting; None when nothing is known. Asking keeps the answer fresh in the background."""
        ...
