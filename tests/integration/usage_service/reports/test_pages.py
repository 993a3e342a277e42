"""Turning pages: nothing lost, nothing twice, and no token for another question."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from service_runtime.errors import InvalidRequest
from service_runtime.postgres import Postgres
from tests.integration.usage_service.reports.clock import LAST_DAY, NOW, Clock
from tests.support.ledger_rows import ledger_row, random_rows, store
from tests.support.usage_events import OTHER_TENANT, TENANT, event_id_at
from turnpike.usage.v1 import usage_service_pb2 as pb
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.api.reports import ReportHandlers


@pytest.mark.parametrize("page_size", [1, 7, 40])
async def test_pages_of_every_list_put_together_are_the_whole_list(
    postgres: Postgres, reports: ReportHandlers, page_size: int
) -> None:
    rows = random_rows(random.Random(5), 60, LAST_DAY)
    await store(postgres, rows)

    async def pages(method: Any, request: Any, entries: str) -> list[Any]:
        found = []
        while True:
            answer = await method(request)
            found.append(list(getattr(answer, entries)))
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    lists: list[tuple[Any, Any, str]] = [
        (reports.list_daily_costs, pb.ListDailyCostsRequest, "costs"),
        (reports.list_errors, pb.ListErrorsRequest, "errors"),
        (reports.list_usage_records, pb.ListUsageRecordsRequest, "records"),
    ]
    for method, kind, entries in lists:
        whole = getattr(await method(kind(tenant_id=TENANT, page_size=1000)), entries)
        turned = await pages(method, kind(tenant_id=TENANT, page_size=page_size), entries)

        assert len(whole) > 5
        assert [one for page in turned for one in page] == list(whole)
        assert all(len(page) == page_size for page in turned[:-1])
        assert 1 <= len(turned[-1]) <= page_size


async def test_records_keep_their_window_while_pages_are_turned(
    postgres: Postgres, reports: ReportHandlers, clock: Clock
) -> None:
    oldest = ledger_row(NOW - timedelta(days=1))
    newer = ledger_row(NOW - timedelta(hours=1))
    await store(postgres, [oldest, newer])
    request = pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=1)
    first = await reports.list_usage_records(request)

    clock.now += timedelta(hours=3)
    await store(postgres, [ledger_row(clock.now - timedelta(minutes=1))])
    request.page_token = first.next_page_token
    second = await reports.list_usage_records(request)

    assert [one.event.event_id for one in second.records] == [str(oldest.event.event_id)]
    assert second.next_page_token == ""


async def test_records_of_the_same_millisecond_are_neither_lost_nor_repeated(
    postgres: Postgres, reports: ReportHandlers
) -> None:
    rows = [ledger_row(NOW - timedelta(minutes=1)) for _ in range(5)]
    await store(postgres, rows)
    request = pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=2)
    seen: list[str] = []

    for _ in range(3):
        answer = await reports.list_usage_records(request)
        seen += [one.event.event_id for one in answer.records]
        request.page_token = answer.next_page_token

    assert seen == sorted((str(row.event.event_id) for row in rows), reverse=True)


async def test_a_page_token_of_a_changed_request_is_refused(postgres: Postgres, reports: ReportHandlers) -> None:
    await store(postgres, [ledger_row(NOW - timedelta(minutes=minute)) for minute in range(3)])
    first = await reports.list_usage_records(pb.ListUsageRecordsRequest(tenant_id=TENANT, page_size=1))
    changed = [
        pb.ListUsageRecordsRequest(tenant_id=OTHER_TENANT),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, filter=pb.UsageFilter(model="a")),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, end_time=timestamp_to_proto(NOW)),
        pb.ListUsageRecordsRequest(tenant_id=TENANT, request_id=str(event_id_at(NOW))),
    ]

    for request in changed:
        request.page_token = first.next_page_token
        with pytest.raises(InvalidRequest) as caught:
            await reports.list_usage_records(request)
        assert [one.field for one in caught.value.violations] == ["page_token"]
    with pytest.raises(InvalidRequest, match="page_token"):
        await reports.list_errors(pb.ListErrorsRequest(tenant_id=TENANT, page_token=first.next_page_token))
