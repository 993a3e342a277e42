"""A ledger that is filled as routers fill it, and audited; and what it is filled with."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from service_runtime.metrics import Metrics
from tests.support.ledger import LedgerUnderTest
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at, reported_event, submission
from usage_service.api.audit_metrics import PrometheusAuditMetrics
from usage_service.domain.audit import CheckResult, LedgerCheck
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.usage_event import AttemptStatus, ReportedEvent, UsageSource
from usage_service.domain.window import RollupRetention, Window
from usage_service.metering.auditing import Auditing
from usage_service.metering.journals import JournalAudit
from usage_service.metering.recording import Batch, Disposition
from usage_service.storage.audit import PostgresAudit
from usage_service.storage.journals import PostgresJournals

NOW = datetime.now(UTC).replace(microsecond=0)
TODAY = NOW.replace(hour=0, minute=0, second=0)
CHECKS = set(LedgerCheck)


class NoJournalMetrics:
    def journals_known(self, journals: Sequence[Any]) -> None: ...


@dataclass
class Books:
    """A ledger that is filled as routers fill it, and audited."""

    ledger: LedgerUnderTest
    now: datetime = NOW
    metrics: Metrics = field(default_factory=Metrics)
    retention: RollupRetention = field(default_factory=RollupRetention)
    raw_retention: timedelta | None = timedelta(days=240)

    @property
    def journals(self) -> JournalAudit:
        return JournalAudit(PostgresJournals(self.ledger.postgres), NoJournalMetrics())

    @property
    def auditing(self) -> Auditing:
        return Auditing(
            store=PostgresAudit(self.ledger.postgres),
            metrics=PrometheusAuditMetrics(self.metrics),
            retention=self.retention,
            raw_retention=self.raw_retention,
            accept_back=timedelta(days=35),
            open_attempt_bound=timedelta(hours=1),
            now=lambda: self.now,
            monotonic_s=time.monotonic,
        )

    async def send(self, *events: ReportedEvent, epoch: str = "epoch-1") -> list[Disposition]:
        batch = Batch("router-1", epoch, [submission(event) for event in events])
        outcomes = await self.ledger.recorder.record(batch)
        await self.journals.note(batch, outcomes)
        return [outcome.disposition for outcome in outcomes]

    async def damage(self, statement: str, *arguments: object) -> None:
        await self.ledger.connection.execute(statement, *arguments)

    async def verify(self, **asked: Any) -> dict[LedgerCheck, CheckResult]:
        window = asked.pop("window", Window(self.now - timedelta(days=40), self.now))
        page = await self.auditing.verify(
            window, asked.pop("tenant_id", None), most=asked.pop("most", 10), after=None, budget_s=60
        )
        assert page.resume is None
        return dict(page.results)

    async def wrong(self, **asked: Any) -> dict[LedgerCheck, int]:
        """How many of what are wrong; checks that find nothing wrong are left out."""
        results = await self.verify(**asked)
        assert all(not result.unchecked for result in results.values())
        return {check: result.wrong for check, result in results.items() if result.wrong}


def attempt(sequence: int, used_at: datetime | None = None, **fields: Any) -> ReportedEvent:
    """The event at a place in the router's journal; each is a request of its own."""
    at = used_at or NOW - timedelta(minutes=sequence % 60, hours=sequence % 30)
    return reported_event(
        at,
        **{
            "event_id": str(event_id_at(at)),
            "request_id": str(uuid4()),
            "sequence": sequence,
            "tenant_id": TENANT if sequence % 3 else OTHER_TENANT,
            "latency_ms": sequence * 37,
            **fields,
        },
    )


def varied(number: int) -> list[ReportedEvent]:
    """Attempts of every outcome, price and certainty."""
    rng = random.Random(number)
    return [
        attempt(
            sequence,
            status=rng.choice(list(AttemptStatus)),
            provider=rng.choice(["groq", "llm7"]),
            model=rng.choice(["llama-3.3-70b-versatile", "unheard-of"]),
            usage_source=rng.choice(list(UsageSource)),
            tokens=TokenCounts(*(rng.choice([0, rng.randrange(10**6)]) for _ in range(5))),
            provider_reported_cost_usd=rng.choice(["", "0.25"]),
        )
        for sequence in range(1, number + 1)
    ]
