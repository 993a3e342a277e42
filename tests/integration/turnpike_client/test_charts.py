"""Time series, distributions and filters, from the typed client and from the command line."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import timedelta

import pytest
from click.testing import Result

from turnpike.usage.v1 import token_usage_pb2
from turnpike.usage.v1 import usage_service_pb2 as pb
from turnpike_client import (
    AttemptFilter,
    ErrorCause,
    Funding,
    TimeStep,
    TokenUsage,
    UsageClient,
    UsageFilter,
    UsageGrouping,
    UsageStatus,
)
from turnpike_client.testing import FakeTurnpike

TENANT = "5b4c2a10-5f0e-4a53-9d5c-0f3a6f6f2b11"
TOKENS = TokenUsage(input_tokens=1000, output_tokens=500)

Run = Callable[..., Awaitable[Result]]


@pytest.fixture(autouse=True)
async def used(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.pricing.add("groq", "m", input_usd="0.59", output_usd="0.79")
    for latency_ms in (100, 200, 200, 400):
        await usage.track_usage(TENANT, "groq", "m", TOKENS, latency=timedelta(milliseconds=latency_ms))
    await usage.track_usage(TENANT, "llm7", "x", None, status=UsageStatus.ERROR, error_class="overloaded")
    turnpike.ledger.requests.clear()


async def test_a_series_is_read_page_by_page(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    points = [
        point
        async for point in usage.series(
            TENANT,
            step=TimeStep.DAY,
            step_count=7,
            time_zone="Europe/Berlin",
            grouping=UsageGrouping.MODEL,
            page_size=1,
        )
    ]

    assert [(point.usage.provider, point.usage.model, point.usage.requests) for point in points] == [
        ("groq", "m", 4),
        ("llm7", "x", 1),
    ]
    assert all(point.end - point.start == timedelta(days=7) for point in points)
    first, second = turnpike.ledger.requests
    assert (first.step, first.step_count, first.time_zone) == (pb.TIME_STEP_DAY, 7, "Europe/Berlin")
    assert (first.grouping, second.page_token) == (pb.USAGE_GROUPING_MODEL, "1")


async def test_a_distribution_has_percentiles_and_buckets(usage: UsageClient) -> None:
    report = await usage.latency(TENANT)

    [groq, llm7] = report.distributions
    assert groq.latency.summary is not None
    assert groq.latency.summary.p50 == timedelta(milliseconds=200)
    assert [bucket.count for bucket in groq.latency.buckets] == [1, 2, 1]
    assert groq.time_to_first_token.summary is None
    assert (llm7.provider, llm7.latency.buckets) == ("llm7", ())
    assert report.total.latency.buckets == groq.latency.buckets
    assert report.end - report.start == timedelta(days=1)


async def test_the_cause_of_a_failure_is_named(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    [error] = [error async for error in usage.errors(TENANT)]

    assert error.cause is ErrorCause.UNKNOWN  # the fake judges nobody


@pytest.mark.parametrize("command", ["usage", "records", "costs", "errors", "series", "latency"])
async def test_every_report_can_be_filtered(turnpike: FakeTurnpike, run: Run, command: str) -> None:
    result = await run(
        command, "--tenant", TENANT, "--provider", "groq", "--model", "m", "--attempts", "user_visible",
        "--funding", "system_key",
    )  # fmt: skip

    assert result.exit_code == 0
    [request] = turnpike.ledger.requests
    assert request.filter == pb.UsageFilter(
        provider="groq",
        model="m",
        attempts=pb.ATTEMPT_FILTER_USER_VISIBLE,
        funding=token_usage_pb2.FUNDING_SYSTEM_KEY,
    )


async def test_the_filter_of_the_client_reaches_the_wire(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    await usage.stats(TENANT, only=UsageFilter(attempts=AttemptFilter.ABSORBED, funding=Funding.TENANT_KEY))

    assert turnpike.ledger.requests[0].filter.attempts == pb.ATTEMPT_FILTER_ABSORBED


async def test_a_series_is_a_table_with_the_asked_names(run: Run) -> None:
    table = await run("series", "--tenant", TENANT, "--step", "day", "--steps", "7", "--by", "provider")
    total = await run("series", "--tenant", TENANT, "--step", "day")

    header, groq, llm7 = table.stdout.splitlines()
    assert header.split()[:2] == ["from", "provider"]
    assert groq.split()[2:] == ["groq", "4", "0", "0", "6,000", "$0.00394", "-", "-"]
    assert llm7.split()[2:5] == ["llm7", "1", "1"]
    assert "provider" not in total.stdout.splitlines()[0]


async def test_latencies_are_a_table_with_bars_on_demand(run: Run) -> None:
    plain = await run("latency", "--tenant", TENANT, "--by", "none")
    barred = await run("latency", "--tenant", TENANT, "--buckets")
    as_json = await run("latency", "--tenant", TENANT, "--json")

    assert plain.stdout.splitlines()[1].split()[:3] == ["latency", "4", "225"]
    assert "#" not in plain.stdout
    assert barred.stdout.count("#") == 40 + 20 + 20
    assert json.loads(as_json.stdout)["total"]["latency"]["buckets"][1]["count"] == 2


async def test_live_totals_come_at_once_and_when_they_change(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    async with aclosing(usage.watch(TENANT, window=timedelta(hours=1), grouping=UsageGrouping.MODEL)) as totals:
        first = await anext(totals)
        await usage.track_usage(TENANT, "groq", "m", TOKENS)
        second = await anext(totals)

    assert (first.total.requests, second.total.requests) == (5, 6)
    assert [stats.provider for stats in first.stats] == ["groq", "llm7"]
    assert turnpike.ledger.requests[0].window.seconds == 3600


async def test_a_stream_that_the_service_ends_is_opened_again(turnpike: FakeTurnpike, usage: UsageClient) -> None:
    turnpike.ledger.watch_ends_after = 1
    async with aclosing(usage.watch(TENANT)) as totals:
        told = [await anext(totals) for _ in range(2)]

    assert [one.total.requests for one in told] == [5, 5]
    assert len(turnpike.ledger.requests) == 2


async def test_live_totals_are_lines(run: Run) -> None:
    plain = await run("watch", "--tenant", TENANT, "--count", "1", "--by", "model")
    as_json = await run("watch", "--tenant", TENANT, "--count", "1", "--json", "--window", "7d")
    wrong = await run("watch", "--tenant", TENANT, "--window", "soon")

    total, groq, llm7 = plain.stdout.splitlines()
    assert total.endswith("5 requests, 1 failed, 0 limited, 6,000 tokens, $0.00394, p95 -")
    assert groq.startswith("  groq m  4 requests")
    assert llm7.startswith("  llm7 x  1 requests")
    assert json.loads(as_json.stdout)["total"]["requests"] == 5
    assert (wrong.exit_code, "is no age" in wrong.stderr) == (2, True)
