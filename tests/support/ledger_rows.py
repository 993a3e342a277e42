"""Rows for the ledger, and what reports must say of them, counted one by one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from service_runtime.embedded_postgres import EmbeddedPostgres
from service_runtime.postgres import Postgres
from tests.support.postgres import filled_template
from tests.support.usage_events import TENANT, event_id_at, reported_event
from usage_service.domain.pricing import PricedUsage, PricingState, TokenCounts
from usage_service.domain.report import Cost, Outcomes
from usage_service.domain.usage_event import (
    AttemptStatus,
    EventRules,
    Funding,
    UsageEvent,
    UsageSource,
    validate,
)
from usage_service.domain.window import Window
from usage_service.metering.ports import Inserted, LedgerRow
from usage_service.storage.events import PostgresLedger
from usage_service.storage.partitions import Partitions

_ANY_AGE = EventRules(oldest_age=timedelta(days=20_000), newest_ahead=timedelta(days=20_000))
_MODELS = {
    "groq": ("llama-3.3-70b-versatile", "gpt-oss-20b"),
    "openrouter": ("deepseek/deepseek-r1",),
    "llm7": ("gpt-4o",),
}
_FAILURES = ("overloaded", "timeout")


def ledger_row(used_at: datetime, *, cost_usd: Decimal | None = Decimal("0.000985000000"), **event: Any) -> LedgerRow:
    """A row at a time, rounded down to the millisecond; `cost_usd` None is unpriced, `event` overrides its fields."""
    reported = reported_event(used_at, **event)
    valid = validate(reported, _ANY_AGE.at(datetime(2026, 1, 1, tzinfo=UTC)))
    assert isinstance(valid, UsageEvent), valid
    if reported.tokens.total_tokens == 0:
        priced = PricedUsage(PricingState.NOTHING_CONSUMED, Decimal(0), None)
    elif cost_usd is None:
        priced = PricedUsage(PricingState.UNPRICED, None, None)
    else:
        priced = PricedUsage(PricingState.PRICED, cost_usd, 1)
    return LedgerRow(valid, priced, hashlib.sha256(reported.event_id.encode()).digest(), "router-1", "epoch-1")


def random_rows(rng: random.Random, number: int, window: Window, *, tenant_id: str = TENANT) -> list[LedgerRow]:
    """Rows all over a window, in every combination of outcome, price and certainty."""
    return [_random_row(rng, window, tenant_id) for _ in range(number)]


def _random_row(rng: random.Random, window: Window, tenant_id: str) -> LedgerRow:
    used_at = window.start + timedelta(milliseconds=rng.randrange(window.length // timedelta(milliseconds=1)))
    provider = rng.choice(sorted(_MODELS))
    status = rng.choices(list(AttemptStatus), weights=[12, 2, 2, 1, 1])[0]
    error_class = "" if status is AttemptStatus.SUCCESS else rng.choice(_FAILURES)
    tokens = TokenCounts(*(rng.choice((0, rng.randrange(5_000))) for _ in range(5)))
    return ledger_row(
        used_at,
        cost_usd=rng.choice((None, Decimal(rng.randrange(10**13)).scaleb(-12))),
        event_id=str(event_id_at(used_at)),
        tenant_id=tenant_id,
        provider=provider,
        model=rng.choice(_MODELS[provider]),
        status=status,
        error_class=error_class,
        error_message=f"{error_class} at {used_at.isoformat()}" if error_class else "",
        absorbed=bool(error_class) and rng.random() < 0.5,
        tokens=tokens,
        usage_source=rng.choice(list(UsageSource)),
        funding=rng.choice(list(Funding)),
        latency_ms=rng.choice((None, rng.randrange(20_000))),
        first_token_ms=rng.choice((None, rng.randrange(2_000))),
    )


async def store(postgres: Postgres, rows: Sequence[LedgerRow]) -> None:
    """Store rows with their rollups, the way the service does."""
    ledger = PostgresLedger(postgres, partitions=Partitions(postgres), jitter=lambda: 0.5)
    for start in range(0, len(rows), 1_000):
        outcomes = await ledger.store(rows[start : start + 1_000])
        assert all(outcome == Inserted() for outcome in outcomes)


@contextmanager
def books_of(server: EmbeddedPostgres, template: str, rows: Sequence[LedgerRow]) -> Iterator[str]:
    """The name of a database with these rows stored in it, for tests that each begin with a copy."""

    async def fill(dsn: str) -> None:
        pool = await Postgres.connect(dsn, min_size=1, max_size=2)
        await store(pool, rows)
        await pool.close()

    with filled_template(server, template, fill) as name:
        yield name


def within(rows: Iterable[LedgerRow], window: Window, *, tenant_id: str = TENANT) -> list[LedgerRow]:
    """The tenant's rows in a half-open window."""
    return [
        row for row in rows if row.event.tenant_id == UUID(tenant_id) and window.start <= row.event.used_at < window.end
    ]


def by(rows: Iterable[LedgerRow], key: Callable[[LedgerRow], Any]) -> dict[Any, list[LedgerRow]]:
    groups: dict[Any, list[LedgerRow]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def outcomes_of(rows: Sequence[LedgerRow]) -> Outcomes:
    def having(*statuses: AttemptStatus) -> int:
        return sum(row.event.status in statuses for row in rows)

    absorbed = sum(row.event.reported.absorbed for row in rows)
    return Outcomes(
        requests=len(rows) - absorbed,
        attempts=len(rows),
        succeeded=having(AttemptStatus.SUCCESS),
        failed=having(AttemptStatus.ERROR, AttemptStatus.INTERRUPTED),
        rate_limited=having(AttemptStatus.RATE_LIMIT),
        cancelled=having(AttemptStatus.CANCELLED),
        absorbed=absorbed,
    )


def cost_of(rows: Sequence[LedgerRow]) -> Cost:
    exact, estimated = Decimal(0), Decimal(0)
    for row in rows:
        if row.event.usage_source is UsageSource.ESTIMATED:
            estimated += row.priced.cost_usd or 0
        else:
            exact += row.priced.cost_usd or 0
    unpriced = [row for row in rows if row.priced.state is PricingState.UNPRICED]
    return Cost(exact, estimated, len(unpriced), total_tokens_of(unpriced))


def total_tokens_of(rows: Sequence[LedgerRow]) -> int:
    return sum(row.event.tokens.total_tokens for row in rows)
