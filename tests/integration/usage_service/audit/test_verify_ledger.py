"""VerifyLedger: a sound ledger passes, page by page, on schedule and through the method."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from service_runtime.errors import ServiceError
from service_runtime.postgres import Postgres
from tests.integration.usage_service.audit.books import CHECKS, NOW, TODAY, Books
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import audit_service_pb2 as pb
from usage_service.api.audit_servicer import AuditServicer
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.domain.audit import AuditPart, LedgerCheck
from usage_service.domain.window import Window
from usage_service.metering import auditing as auditing_module
from usage_service.storage.audit import PostgresAudit


async def test_a_sound_ledger_passes_every_check(kept: Books) -> None:
    results = await kept.verify()

    assert set(results) == CHECKS
    assert {check: result.wrong for check, result in results.items() if result.wrong or result.unchecked} == {}
    for check in (LedgerCheck.COST, LedgerCheck.ROW, LedgerCheck.DUPLICATE_EVENT, LedgerCheck.SEQUENCE_GAP):
        assert results[check].checked == 40
    assert results[LedgerCheck.DAY_ROLLUP].checked > 1


async def test_an_empty_ledger_passes(books: Books) -> None:
    results = await books.verify()

    assert set(results) == CHECKS
    assert {(result.checked, result.wrong) for result in results.values()} == {(0, 0)}


async def test_pages_put_together_are_the_whole_audit(kept: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing_module, "_ROWS_OF_A_PART", 5)
    monkeypatch.setattr(auditing_module, "_TENANTS_AT_A_TIME", 1)
    await kept.damage("UPDATE usage_rollup_day SET attempts = attempts + 1")
    whole = await kept.verify(most=100)
    window = Window(NOW - timedelta(days=40), NOW)

    pages, position = [], None
    while True:
        page = await kept.auditing.verify(window, None, most=100, after=position, budget_s=0)
        pages.append(page.results)
        position = page.resume
        if position is None:
            break

    assert len(pages) > 4
    for check in LedgerCheck:
        parts = [page[check] for page in pages if check in page]
        assert sum(part.checked for part in parts) == whole[check].checked
        assert sum(part.wrong for part in parts) == whole[check].wrong
        assert [one for part in parts for one in part.discrepancies] == list(whole[check].discrepancies)


async def test_one_tenant_is_verified_alone(kept: Books) -> None:
    await kept.damage("UPDATE usage_rollup_day SET attempts = attempts + 1 WHERE tenant_id = $1", UUID(OTHER_TENANT))

    mine = await kept.verify(tenant_id=UUID(TENANT))
    other = await kept.verify(tenant_id=UUID(OTHER_TENANT))

    assert not any(result.wrong for result in mine.values())
    assert LedgerCheck.SEQUENCE_GAP not in mine
    assert other[LedgerCheck.DAY_ROLLUP].wrong > 0


async def test_a_scheduled_audit_moves_the_metrics(kept: Books) -> None:
    await kept.damage("DELETE FROM model_usage_stats WHERE router_sequence = 17")

    assert await kept.auditing.verify_on_schedule(3) is not None

    def value(name: str, **labels: str) -> float | None:
        return kept.metrics.registry.get_sample_value(name, labels)

    assert value("usage_ledger_discrepancies", check="hour_rollup") == 1
    assert value("usage_ledger_discrepancies", check="sequence_gap") == 1
    assert value("usage_ledger_discrepancies", check="cost") == 0
    assert value("usage_ledger_unchecked_parts", check="cost") == 0
    assert value("usage_ledger_audit_timestamp_seconds") == NOW.timestamp()


async def test_only_one_process_audits_on_schedule(kept: Books) -> None:
    async with PostgresAudit(kept.ledger.postgres).alone() as first:
        assert first
        assert await kept.auditing.verify_on_schedule(3) is None

    assert await kept.auditing.verify_on_schedule(3) is not None


async def test_a_part_that_takes_too_long_is_not_called_right(kept: Books, ledger_database: str) -> None:
    hurried = await Postgres.connect(ledger_database, min_size=0, max_size=2, statement_timeout_s=0.2)
    part = AuditPart(UUID(TENANT), Window(TODAY, TODAY + timedelta(days=1)), NOW, NOW)
    async with kept.ledger.connection.transaction():
        await kept.damage("LOCK usage_cost_adjustments")
        results = await PostgresAudit(hurried).verify_part(part, most=1)
    await hurried.close()

    assert {check for check, result in results.items() if result.unchecked} == {LedgerCheck.ADJUSTMENTS}
    assert results[LedgerCheck.ADJUSTMENTS].unchecked[0].startswith(f"tenant {TENANT}, ")
    assert results[LedgerCheck.ROW].checked > 0


async def test_the_method_verifies_two_days_unless_asked_for_others(kept: Books) -> None:
    servicer = AuditServicer(kept.auditing)
    answer = await servicer.VerifyLedger(pb.VerifyLedgerRequest(), None)  # type: ignore[arg-type]

    assert answer.start_time == timestamp_to_proto(TODAY - timedelta(days=2))
    assert answer.end_time == timestamp_to_proto(TODAY + timedelta(days=1))
    assert [result.check for result in answer.results] == list(range(1, 12))
    assert answer.next_page_token == ""


async def test_a_third_audit_at_a_time_is_refused(kept: Books) -> None:
    auditing, window = kept.auditing, Window(NOW - timedelta(days=2), NOW)

    async def verify() -> None:
        await auditing.verify(window, None, most=1, after=None, budget_s=60)

    outcomes = await asyncio.gather(verify(), verify(), verify(), return_exceptions=True)

    refused = [outcome for outcome in outcomes if isinstance(outcome, ServiceError)]
    assert [error.reason for error in refused] == ["AUDIT_BUSY"]
