from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from turnpike.usage.v1 import pricing_service_pb2
from turnpike_client import AlreadyExists, UsageClient
from turnpike_client.testing import FakeTurnpike
from turnpike_client.wire import to_timestamp

START = datetime(2026, 11, 1, tzinfo=UTC)
TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"


async def test_a_price_is_set_once_and_replaced_only_on_demand(usage: UsageClient) -> None:
    book = usage.price_book
    dollar, two = Decimal(1), Decimal("2E0")

    first = await book.set(
        "groq",
        "m",
        input_usd_per_million=dollar,
        output_usd_per_million=two,
        reasoning_usd_per_million=Decimal("0.000000001"),
        max_prompt_tokens=8_000,
        effective_at=START,
    )
    again = await book.set(
        "groq",
        "m",
        input_usd_per_million=dollar,
        output_usd_per_million=two,
        reasoning_usd_per_million=Decimal("0.000000001"),
        max_prompt_tokens=8_000,
        effective_at=START,
    )
    with pytest.raises(AlreadyExists, match="set replace"):
        await book.set("groq", "m", input_usd_per_million=two, output_usd_per_million=two, effective_at=START)
    other = await book.set(
        "groq", "m", input_usd_per_million=two, output_usd_per_million=two, effective_at=START, replace=True
    )

    assert (first.created, again.created, first.reprice_needed) == (True, False, True)
    assert first.price.reasoning_usd_per_million == Decimal("0.000000001")
    assert (first.price.cached_read_usd_per_million, first.price.max_prompt_tokens) == (None, 8_000)
    assert other.replaced is not None
    assert other.replaced.price_id == first.price.price_id
    history = [price async for price in book.history("groq", "m", page_size=1)]
    assert [price.replaced_at is None for price in history] == [True, False]


async def test_the_calls_of_a_run_are_added_up(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.reprices = [
        pricing_service_pb2.RepriceResponse(
            job_id="job",
            applied=True,
            scanned_rows=10,
            changed_rows=4,
            newly_priced_rows=3,
            unpriced_rows=2,
            old_cost_usd="1.000000000001",
            new_cost_usd="0.5",
            delta_usd="-0.500000000001",
            next_page_token=token,
        )
        for token in ("next", "")
    ]

    report = await usage.price_book.reprice(START, tenant_id=TENANT, provider="groq", apply=True, reason="contract 7")

    first, second = turnpike.pricing.requests
    assert (report.job_id, report.applied, report.scanned_rows, report.changed_rows) == ("job", True, 20, 8)
    assert (report.newly_priced_rows, report.newly_unpriced_rows, report.unpriced_rows) == (6, 0, 4)
    assert (report.old_cost_usd, report.new_cost_usd) == (Decimal("2.000000000002"), Decimal(1))
    assert report.delta_usd == Decimal("-1.000000000002")
    assert (first.tenant_id, first.provider, first.apply, first.reason) == (TENANT, "groq", True, "contract 7")
    assert (first.page_token, second.page_token, second.apply) == ("", "next", True)


async def test_a_run_is_dry_unless_it_is_told_otherwise(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    report = await usage.price_book.reprice(START)

    assert (report.applied, turnpike.pricing.requests[0].apply) == (False, False)


async def test_adjustments_tell_unpriced_from_free(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.adjustments = [
        pricing_service_pb2.CostAdjustment(
            event_id="e",
            usage_time=to_timestamp(START),
            revision=number,
            old_cost_usd="",
            new_cost_usd="0.000000000000",
            new_price_id="7",
            delta_usd="0.000000000000",
            job_id="job",
            create_time=to_timestamp(START),
        )
        for number in (2, 1)
    ]

    found = [one async for one in usage.price_book.adjustments(TENANT, job_id="job", page_size=1)]

    assert [(one.revision, one.old_cost_usd, one.new_cost_usd) for one in found] == [
        (2, None, Decimal(0)),
        (1, None, Decimal(0)),
    ]
