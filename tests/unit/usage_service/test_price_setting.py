"""SetPrice, ListPriceHistory and Reprice on the wire, with the book and the rows in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from service_runtime.errors import Category, InvalidRequest, ServiceError
from tests.support.booked_rows import RowsInMemory, booked_usage
from tests.support.prices import EARLY, PublishedPrices, StoredPrices, price_of
from tests.support.usage_events import OTHER_TENANT, TENANT
from turnpike.usage.v1 import pricing_service_pb2 as pb
from usage_service.api.pricing_servicer import PricingServicer
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.metering.pricing import Pricing
from usage_service.metering.repricing import Repricing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
CONTEXT = cast("Any", None)  # the methods do not look at it
JOB = "44444444-4444-4444-8444-444444444444"


@pytest.fixture
def rows() -> RowsInMemory:
    return RowsInMemory([booked_usage(NOW - timedelta(hours=hours)) for hours in range(1, 6)])


@pytest.fixture
async def servicer(rows: RowsInMemory) -> PricingServicer:
    store = StoredPrices()
    await store.add([price_of("groq", "llama", "0.59", "0.79")])
    pricing = Pricing(store=store, vendors=PublishedPrices(), now=lambda: NOW)
    await pricing.refresh()
    repricing = Repricing(rows=rows, pricing=pricing, monotonic_s=lambda: 0.0)
    return PricingServicer(pricing=pricing, repricing=repricing, providers=CATALOGUE_PROVIDERS, now=lambda: NOW)


def at(instant: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


def price(**fields: Any) -> pb.SetPriceRequest:
    plain = {
        "provider": "groq",
        "model": "llama",
        "input_usd_per_million": "0.50",
        "output_usd_per_million": "0.70",
        "effective_time": at(NOW + timedelta(days=1)),
    }
    return pb.SetPriceRequest(**{**plain, **fields})


def reprice(**fields: Any) -> pb.RepriceRequest:
    return pb.RepriceRequest(**{"start_time": at(NOW - timedelta(days=7)), **fields})


async def refused_fields(call: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as refused:
        await call
    return [violation.field for violation in refused.value.violations]


async def test_a_new_price_ends_the_one_before_and_is_seen_at_once(servicer: PricingServicer) -> None:
    answer = await servicer.SetPrice(price(cached_read_usd_per_million="0.05", source="contract 7"), CONTEXT)

    [current] = (await servicer.ListPrices(pb.ListPricesRequest(), CONTEXT)).prices
    assert (answer.created, answer.reprice_needed, answer.HasField("replaced")) == (True, False, False)
    assert (answer.price.price_id, answer.price.cached_read_usd_per_million) == ("2", "0.05")
    assert (answer.price.reasoning_usd_per_million, answer.price.source) == ("", "contract 7")
    assert current.price_id == "1"
    assert current.expire_time.ToDatetime(tzinfo=UTC) == NOW + timedelta(days=1)


async def test_the_same_price_again_changes_nothing(servicer: PricingServicer) -> None:
    first = await servicer.SetPrice(price(), CONTEXT)
    again = await servicer.SetPrice(price(input_usd_per_million="0.5", provider="Groq (fast)"), CONTEXT)

    assert (first.created, again.created) == (True, False)
    assert again.price == first.price


async def test_without_a_start_the_price_in_force_is_answered_when_it_is_the_same(servicer: PricingServicer) -> None:
    same = pb.SetPriceRequest(
        provider="groq", model="llama", input_usd_per_million="0.59", output_usd_per_million="0.79"
    )

    answer = await servicer.SetPrice(same, CONTEXT)

    assert (answer.created, answer.price.price_id) == (False, "1")


async def test_without_a_start_another_price_holds_from_now_on(servicer: PricingServicer) -> None:
    other = pb.SetPriceRequest(provider="groq", model="llama", input_usd_per_million="0", output_usd_per_million="0")

    answer = await servicer.SetPrice(other, CONTEXT)

    assert (answer.created, answer.reprice_needed, answer.price.source) == (True, True, "operator")
    assert answer.price.effective_time.ToDatetime(tzinfo=UTC) == NOW


async def test_other_values_from_the_same_time_on_are_a_conflict_unless_they_replace(
    servicer: PricingServicer,
) -> None:
    with pytest.raises(ServiceError) as refused:
        await servicer.SetPrice(price(effective_time=at(EARLY)), CONTEXT)
    answer = await servicer.SetPrice(price(effective_time=at(EARLY), replace=True), CONTEXT)

    assert (refused.value.category, refused.value.reason) == (Category.ALREADY_EXISTS, "PRICE_DIFFERS")
    assert refused.value.metadata["price_id"] == "1"
    assert "set replace" in refused.value.message
    assert (answer.replaced.price_id, answer.price.price_id) == ("1", "2")
    assert (answer.created, answer.reprice_needed) == (True, True)


async def test_a_price_that_other_replicas_may_not_see_in_time_needs_a_reprice(servicer: PricingServicer) -> None:
    soon = await servicer.SetPrice(price(effective_time=at(NOW + timedelta(seconds=15))), CONTEXT)
    later = await servicer.SetPrice(price(effective_time=at(NOW + timedelta(seconds=16))), CONTEXT)

    assert (soon.reprice_needed, later.reprice_needed) == (True, False)


async def test_every_bad_field_of_a_price_is_named(servicer: PricingServicer) -> None:
    fields = await refused_fields(
        servicer.SetPrice(
            price(
                provider="acme",
                model=" llama",
                max_prompt_tokens=-1,
                input_usd_per_million="",
                output_usd_per_million="-1",
                cached_read_usd_per_million="NaN",
                cached_write_usd_per_million="1e3",
                reasoning_usd_per_million="0.1234567891",
                effective_time=at(datetime(1999, 12, 31, tzinfo=UTC)),
                source="seed 2",
            ),
            CONTEXT,
        )
    )

    assert fields == [
        "provider",
        "model",
        "max_prompt_tokens",
        "input_usd_per_million",
        "output_usd_per_million",
        "cached_read_usd_per_million",
        "cached_write_usd_per_million",
        "reasoning_usd_per_million",
        "effective_time",
        "source",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("provider", "turnpike"),
        ("model", ""),
        ("model", "m" * 201),
        ("model", "m\x00"),
        ("input_usd_per_million", "100000.000000001"),
        ("input_usd_per_million", "٣"),
        ("input_usd_per_million", "1,5"),
        ("output_usd_per_million", "Infinity"),
        ("effective_time", at(NOW + timedelta(days=2000))),
        ("effective_time", Timestamp(seconds=2**60)),
        ("source", "x" * 101),
        ("source", "Genai-Prices 9"),
    ],
)
async def test_an_absurd_price_is_refused(servicer: PricingServicer, field: str, value: Any) -> None:
    assert field in await refused_fields(servicer.SetPrice(price(**{field: value}), CONTEXT))


@pytest.mark.parametrize("text", ["0", "100000", "0.000000001", "12.5"])
async def test_a_price_at_the_edge_is_kept_to_the_last_digit(servicer: PricingServicer, text: str) -> None:
    answer = await servicer.SetPrice(price(input_usd_per_million=text), CONTEXT)

    assert answer.price.input_usd_per_million == text


async def test_the_history_of_a_model_has_every_price_that_it_ever_had_page_by_page(servicer: PricingServicer) -> None:
    await servicer.SetPrice(price(effective_time=at(EARLY), replace=True), CONTEXT)
    await servicer.SetPrice(price(), CONTEXT)
    found: list[tuple[str, bool]] = []
    token = ""
    while True:
        request = pb.ListPriceHistoryRequest(provider="Groq", model="llama", page_size=2, page_token=token)
        page = await servicer.ListPriceHistory(request, CONTEXT)
        found.extend((one.price_id, one.HasField("replace_time")) for one in page.prices)
        token = page.next_page_token
        if not token:
            break

    assert found == [("3", False), ("2", False), ("1", True)]


async def test_a_history_that_does_not_exist_is_empty_and_a_bad_question_is_refused(servicer: PricingServicer) -> None:
    empty = await servicer.ListPriceHistory(pb.ListPriceHistoryRequest(provider="groq", model="x"), CONTEXT)
    bad = pb.ListPriceHistoryRequest(provider="acme", page_size=-1, page_token="x")

    assert empty == pb.ListPriceHistoryResponse()
    assert await refused_fields(servicer.ListPriceHistory(bad, CONTEXT)) == [
        "provider",
        "model",
        "page_size",
        "page_token",
    ]


async def test_a_run_is_dry_unless_it_is_told_to_apply(servicer: PricingServicer, rows: RowsInMemory) -> None:
    dry = await servicer.Reprice(reprice(), CONTEXT)
    applied = await servicer.Reprice(reprice(apply=True, reason="first price", job_id=JOB), CONTEXT)

    assert (dry.applied, dry.changed_rows, applied.applied, applied.changed_rows) == (False, 5, True, 5)
    assert (dry.old_cost_usd, dry.new_cost_usd, dry.delta_usd) == ("0.000000000000", "0.002950000000", "0.002950000000")
    assert (dry.scanned_rows, dry.newly_priced_rows, dry.unpriced_rows) == (5, 5, 0)
    assert applied.new_cost_usd == dry.new_cost_usd
    assert {(job.job_id, job.reason) for job, _ in rows.appended} == {(UUID(JOB), "first price")}
    assert dry.job_id != JOB == applied.job_id


async def test_the_calls_of_a_run_share_its_id_and_its_end(servicer: PricingServicer, rows: RowsInMemory) -> None:
    first = await servicer.Reprice(reprice(apply=True, reason="x", max_rows=2), CONTEXT)
    rest = reprice(apply=True, reason="x", page_token=first.next_page_token)
    second = await servicer.Reprice(rest, CONTEXT)

    assert (first.scanned_rows, second.scanned_rows, second.next_page_token) == (2, 3, "")
    assert first.job_id == second.job_id
    assert len({job for job, _ in rows.appended}) == 1


async def test_a_token_of_a_dry_run_changes_nothing(servicer: PricingServicer, rows: RowsInMemory) -> None:
    first = await servicer.Reprice(reprice(max_rows=2), CONTEXT)
    applying = reprice(apply=True, reason="x", page_token=first.next_page_token)

    assert await refused_fields(servicer.Reprice(applying, CONTEXT)) == ["page_token"]
    assert rows.appended == []


async def test_every_bad_field_of_a_run_is_named(servicer: PricingServicer) -> None:
    bad = pb.RepriceRequest(
        tenant_id="x",
        provider="acme",
        model="m\x00",
        end_time=at(EARLY - timedelta(days=20_000)),
        apply=True,
        job_id="x",
        max_rows=100_001,
        page_token="x",
    )

    assert await refused_fields(servicer.Reprice(bad, CONTEXT)) == [
        "tenant_id",
        "provider",
        "model",
        "start_time",
        "end_time",
        "reason",
        "max_rows",
        "job_id",
        "page_token",
    ]


async def test_adjustments_are_listed_page_by_page_newest_usage_first(
    servicer: PricingServicer, rows: RowsInMemory
) -> None:
    rows.rows.append(booked_usage(NOW - timedelta(hours=1), tenant_id=OTHER_TENANT))
    await servicer.Reprice(reprice(apply=True, reason="x", job_id=JOB), CONTEXT)
    found: list[pb.CostAdjustment] = []
    token = ""
    while True:
        request = pb.ListCostAdjustmentsRequest(tenant_id=TENANT, job_id=JOB, page_size=2, page_token=token)
        page = await servicer.ListCostAdjustments(request, CONTEXT)
        found.extend(page.adjustments)
        token = page.next_page_token
        if not token:
            break

    times = [one.usage_time.ToDatetime(tzinfo=UTC) for one in found]
    assert times == [NOW - timedelta(hours=hours) for hours in range(1, 6)]
    assert {(one.old_cost_usd, one.new_cost_usd, one.new_price_id, one.reason, one.job_id) for one in found} == {
        ("", "0.000590000000", "1", "x", JOB)
    }
