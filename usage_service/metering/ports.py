"""What recording and pricing need from the outside, said by the side that needs it. Storage fits these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple, Protocol

from usage_service.domain.pricing import ListedPrice, Price, PricedUsage, PricingState
from usage_service.domain.usage_event import UsageEvent


class LedgerRow(NamedTuple):
    """A valid, priced event with what tells a resent one from another with the same id."""

    event: UsageEvent
    priced: PricedUsage
    content_hash: bytes
    router_id: str
    router_epoch: str


@dataclass(frozen=True, slots=True)
class Inserted:
    """The row is in the ledger and in every rollup, durably, because of this call."""


@dataclass(frozen=True, slots=True)
class AlreadyStored:
    """The ledger had a row with this id; nothing changed. What it holds:"""

    content_hash: bytes
    cost_usd: Decimal | None
    pricing_state: PricingState
    router_epoch: str = ""


@dataclass(frozen=True, slots=True)
class Unstorable:
    """The database refuses this row, whenever it is tried. Nothing of it was stored."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotStoredNow:
    """Not stored, for a reason that passes."""

    reason: str


StoreOutcome = Inserted | AlreadyStored | Unstorable | NotStoredNow


class Ledger(Protocol):
    """The durable rows and their rollups."""

    async def store(self, rows: Sequence[LedgerRow]) -> Sequence[StoreOutcome]:
        """Store rows with distinct keys; one outcome per row, in order. What is reported as stored is durable.

        Raises `ServiceError` UNAVAILABLE when the database is away: then nothing is known of any row.
        """
        ...


class QuarantineKind(StrEnum):
    """Why an event was kept aside. The values stand in `usage_events_rejected`."""

    REJECTED = "rejected"
    CONFLICT = "conflict"
    # Stored before, from a journal that the router has replaced since: kept for its place in the new one.
    RENUMBERED = "renumbered"


@dataclass(frozen=True, slots=True)
class QuarantinedEvent:
    """An event as it came, which the ledger cannot take. `event_id` is whatever was sent.

    `router_epoch` and `sequence` say where it stood in its router's journal: '' and 0 for an event from none.
    """

    router_id: str
    event_id: str
    kind: QuarantineKind
    field: str
    reason: str
    payload: bytes
    router_epoch: str = ""
    sequence: int = 0


class Quarantine(Protocol):
    """Where events go that the ledger cannot take, so that nothing is lost."""

    async def keep(self, events: Sequence[QuarantinedEvent]) -> None:
        """Keep the events durably; the same event again is kept once. Raises `ServiceError` UNAVAILABLE."""
        ...


@dataclass(frozen=True, slots=True)
class PriceEntered:
    """The price is in the book because of this call, in the place of `replaced` if that is not None."""

    price: Price
    replaced: Price | None


@dataclass(frozen=True, slots=True)
class PriceStands:
    """The book has a price of the same values and start: this one. Nothing changed."""

    price: Price


@dataclass(frozen=True, slots=True)
class PriceDiffers:
    """The book has a price with the same start and other values: this one. Nothing changed."""

    price: Price


class PriceStore(Protocol):
    """The price book as it is stored."""

    async def load(self) -> Sequence[Price]:
        """Every entry, past and future ones included. Raises `ServiceError` UNAVAILABLE."""
        ...

    async def add(self, prices: Sequence[Price]) -> None:
        """Enter prices that have no id yet. One that stands there already, by provider, model and start, stays."""
        ...

    async def enter(self, price: Price, *, replace: bool) -> PriceEntered | PriceStands | PriceDiffers:
        """Enter a price that has no id yet; one with the same start gives way only when `replace` is true."""
        ...

    async def history(self, provider: str, model: str) -> Sequence[ListedPrice]:
        """Every entry of a model, latest start first; of those with the same start the last entered first."""
        ...


class VendorPrices(Protocol):
    """What vendors publish, for models that the price book does not name."""

    @property
    def source(self) -> str:
        """What entries from here are marked with, such as "genai-prices 0.2.3"."""
        ...

    async def quote(self, provider: str, model: str, at: datetime) -> Price | None:
        """The published price that holds at a time, without an id; None when it is unknown or cannot be expressed."""
        ...
