"""Takes batches of usage events into the ledger: validate, price, store once, keep aside what cannot be stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from hashlib import blake2b
from operator import attrgetter
from typing import NamedTuple, Protocol, assert_never

from service_runtime.errors import Category, ServiceError
from usage_service.domain.pricing import PriceBook, PricingState, TokenCounts, price_usage
from usage_service.domain.usage_event import EventRules, ReportedEvent, UsageEvent, Violation, validate
from usage_service.metering.ports import (
    AlreadyStored,
    Inserted,
    Ledger,
    LedgerRow,
    NotStoredNow,
    Quarantine,
    QuarantinedEvent,
    QuarantineKind,
    StoreOutcome,
    Unstorable,
)
from usage_service.metering.pricing import ModelUse, Pricing

_CONTENT_HASH_BYTES = 16
_NO_TOKENS = TokenCounts()
_DISPOSITION_OF = attrgetter("disposition")


class Disposition(StrEnum):
    """What became of one event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    REJECTED = "rejected"
    RETRY = "retry"


class Submission(NamedTuple):
    """One event as it was sent, and its bytes."""

    event: ReportedEvent
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """Events from one router. `epoch` is that of the router's journal, '' when there is none."""

    router_id: str
    epoch: str
    submissions: Sequence[Submission]


class Outcome(NamedTuple):
    """What became of one event; `reason` is empty when it is stored, `violations` name bad fields of a rejected one.

    `cost_usd` and `pricing_state` are what the ledger holds for the event, None when it is not stored or unpriced.
    """

    disposition: Disposition
    reason: str = ""
    violations: tuple[Violation, ...] = ()
    cost_usd: Decimal | None = None
    pricing_state: PricingState | None = None
    # A duplicate whose row stands under another epoch of its router's journal.
    is_renumbered: bool = False


class RecordingMetrics(Protocol):
    """What can be seen of recording from outside."""

    def events_recorded(self, disposition: Disposition, number: int) -> None:
        """Events of one batch were answered."""
        ...

    def event_unpriced(self, provider: str) -> None:
        """One event was stored whose price is unknown."""
        ...

    def batch_stored(self, seconds: float) -> None:
        """One batch was stored, from its arrival to its commit."""
        ...

    def batches_waiting(self, number: int) -> None:
        """How many batches are being stored or wait for it."""
        ...


class Recorder:
    """Records batches: reads and prices each as it comes; the ledger decides how many are written at once.

    `writers` is how many the ledger writes; at most `max_waiting` are held, because waiting ones cost memory.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        quarantine: Quarantine,
        pricing: Pricing,
        rules: EventRules,
        metrics: RecordingMetrics,
        now: Callable[[], datetime],
        monotonic_s: Callable[[], float],
        writers: int = 2,
        max_waiting: int = 64,
    ) -> None:
        self._ledger = ledger
        self._quarantine = quarantine
        self._pricing = pricing
        self._rules = rules
        self._metrics = metrics
        self._now = now
        self._monotonic_s = monotonic_s
        self._writer_count = writers
        self._max_waiting = max_waiting
        self._waiting = 0
        self._recent_batch_s = 0.0

    async def record(self, batch: Batch) -> list[Outcome]:
        """Store every event of the batch exactly once and answer for each, in order.

        What is answered is durable: stored, or kept in quarantine. Raises `ServiceError`: UNAVAILABLE when the database
        is away, RESOURCE_EXHAUSTED LEDGER_BUSY when too many batches wait; then nothing is known and all can be resent.
        """
        started_s = self._monotonic_s()
        with self._place_in_queue():
            outcomes = await self._record(batch)
        elapsed_s = self._monotonic_s() - started_s
        self._recent_batch_s += (elapsed_s - self._recent_batch_s) / 8
        self._metrics.batch_stored(elapsed_s)
        for disposition, number in Counter(map(_DISPOSITION_OF, outcomes)).items():
            self._metrics.events_recorded(disposition, number)
        return outcomes

    def min_send_interval_s(self) -> float | None:
        """How long a router should leave between batches: as long as those ahead take. None while there is room."""
        queued = self._waiting - self._writer_count
        # Batches that wait are written together, so as many as wait now are answered in about the time that one takes.
        return self._recent_batch_s * queued / self._waiting if queued > 0 else None

    @contextmanager
    def _place_in_queue(self) -> Iterator[None]:
        if self._waiting >= self._max_waiting:
            raise ServiceError(
                Category.RESOURCE_EXHAUSTED,
                "LEDGER_BUSY",
                f"{self._waiting} batches are waiting already; resend later with the same ids",
                retry_after_s=max(0.1, self.min_send_interval_s() or 0.0),
            )
        self._waiting += 1
        self._metrics.batches_waiting(self._waiting)
        try:
            yield
        finally:
            self._waiting -= 1
            self._metrics.batches_waiting(self._waiting)

    async def _record(self, batch: Batch) -> list[Outcome]:
        accepted = self._rules.at(self._now())
        parsed = [validate(submission.event, accepted) for submission in batch.submissions]
        book = await self._book_for(parsed)
        hashes = [_content_hash(submission.payload) for submission in batch.submissions]

        # Only the first event with a key goes to the ledger; what came of it decides on the others.
        rows: list[LedgerRow] = []
        row_of: dict[int, int] = {}
        is_first: list[bool] = []
        for event, content_hash in zip(parsed, hashes, strict=True):
            is_first.append(isinstance(event, UsageEvent) and event.key not in row_of)
            if isinstance(event, UsageEvent) and is_first[-1]:
                row_of[event.key] = len(rows)
                rows.append(_row(event, content_hash, batch, book))
        stored = await self._ledger.store(rows)

        outcomes: list[Outcome] = []
        for event, content_hash, first in zip(parsed, hashes, is_first, strict=True):
            if not isinstance(event, UsageEvent):
                outcomes.append(_rejected(event))
                continue
            place = row_of[event.key]
            outcome = _outcome(rows[place], stored[place], content_hash, is_first=first)
            if outcome.disposition is Disposition.ACCEPTED and outcome.pricing_state is PricingState.UNPRICED:
                self._metrics.event_unpriced(event.reported.provider)
            outcomes.append(outcome)
        await self._keep_aside(batch, outcomes)
        return outcomes

    async def _book_for(self, parsed: Sequence[UsageEvent | tuple[Violation, ...]]) -> PriceBook:
        """A price book that names every model of the batch whose price is known anywhere."""
        # Each model once, and at the earliest of its times: an entry that a vendor's price gets holds for all of them.
        first_used: dict[tuple[str, str], datetime] = {}
        for event in parsed:
            if isinstance(event, UsageEvent) and event.reported.tokens != _NO_TOKENS:
                key = (event.reported.provider, event.reported.model)
                if key not in first_used or event.used_at < first_used[key]:
                    first_used[key] = event.used_at
        return await self._pricing.book_for(
            ModelUse(provider, model, used_at) for (provider, model), used_at in first_used.items()
        )

    async def _keep_aside(self, batch: Batch, outcomes: Sequence[Outcome]) -> None:
        """Keep what the ledger did not take, before anybody is told that it need not be resent."""
        kept = [
            QuarantinedEvent(
                router_id=batch.router_id,
                event_id=submission.event.event_id,
                kind=kind,
                field=outcome.violations[0].field if outcome.violations else "",
                reason=outcome.reason or "stored before, from a journal of another epoch",
                payload=submission.payload,
                router_epoch=batch.epoch,
                sequence=submission.event.sequence,
            )
            for submission, outcome in zip(batch.submissions, outcomes, strict=True)
            if (kind := _quarantine_kind(outcome)) is not None
        ]
        if kept:
            await self._quarantine.keep(kept)


def _content_hash(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CONTENT_HASH_BYTES).digest()


def _row(event: UsageEvent, content_hash: bytes, batch: Batch, book: PriceBook) -> LedgerRow:
    reported = event.reported
    tokens = reported.tokens
    price = None if tokens == _NO_TOKENS else book.find(reported.provider, reported.model, event.used_at)
    return LedgerRow(event, price_usage(tokens, price), content_hash, batch.router_id, batch.epoch)


def _rejected(violations: tuple[Violation, ...]) -> Outcome:
    return Outcome(
        Disposition.REJECTED,
        reason="; ".join(f"{violation.field}: {violation.description}" for violation in violations),
        violations=violations,
    )


def _outcome(first: LedgerRow, stored: StoreOutcome, content_hash: bytes, *, is_first: bool) -> Outcome:
    """What to answer for an event, given what became of the first event of the batch with its key."""
    match stored:
        case Inserted():
            if is_first:
                return Outcome(Disposition.ACCEPTED, "", (), first.priced.cost_usd, first.priced.state)
            held = AlreadyStored(first.content_hash, first.priced.cost_usd, first.priced.state, first.router_epoch)
            return _compared(held, content_hash, first.router_epoch)
        case AlreadyStored():
            return _compared(stored, content_hash, first.router_epoch)
        case Unstorable(reason):
            if content_hash == first.content_hash:
                return Outcome(Disposition.REJECTED, reason=reason)
            return Outcome(Disposition.RETRY, reason="another event of the batch had the same id and was rejected")
        case NotStoredNow(reason):
            return Outcome(Disposition.RETRY, reason=reason)
        case _:
            assert_never(stored)


def _compared(held: AlreadyStored, content_hash: bytes, router_epoch: str) -> Outcome:
    if held.content_hash == content_hash:
        return Outcome(
            Disposition.DUPLICATE,
            cost_usd=held.cost_usd,
            pricing_state=held.pricing_state,
            is_renumbered=held.router_epoch != router_epoch,
        )
    return Outcome(Disposition.CONFLICT, reason="the ledger holds other content under this id; the first stays")


def _quarantine_kind(outcome: Outcome) -> QuarantineKind | None:
    match outcome.disposition:
        case Disposition.REJECTED:
            return QuarantineKind.REJECTED
        case Disposition.CONFLICT:
            return QuarantineKind.CONFLICT
        case Disposition.DUPLICATE:
            return QuarantineKind.RENUMBERED if outcome.is_renumbered else None
        case Disposition.ACCEPTED | Disposition.RETRY:
            return None
        case _:
            assert_never(outcome.disposition)
