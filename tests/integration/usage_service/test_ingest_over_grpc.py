"""Bad input through the real RPC: each event is answered in its place; what is bad is kept with field and reason."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest
from google.rpc import error_details_pb2

from service_runtime.ids import uuid7
from tests.support.usage_app import an_event, running_app
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

ACCEPTED = usage_service_pb2.RECORD_DISPOSITION_ACCEPTED
REJECTED = usage_service_pb2.RECORD_DISPOSITION_REJECTED
Service = tuple["usage_service_pb2_grpc.UsageServiceAsyncStub", "Connection"]
Spoil = Callable[[usage_event_pb2.UsageEvent], object]


def setting(**fields: Any) -> Spoil:
    """Overwrites plain fields of an event."""

    def spoil(event: usage_event_pb2.UsageEvent) -> None:
        for name, value in fields.items():
            setattr(event, name, value)

    return spoil


def with_tokens(**counts: int) -> Spoil:
    return lambda event: event.token_usage.MergeFrom(token_usage_pb2.TokenUsage(**counts))


def aged(*, days: float = 0.0, minutes: float = 0.0) -> Spoil:
    """Gives an event an id of another time."""

    def spoil(event: usage_event_pb2.UsageEvent) -> None:
        shift_ms = round((days * 86_400 + minutes * 60) * 1_000)
        event.event_id = str(uuid.UUID(int=uuid7().int - (shift_ms << 80)))

    return spoil


BAD = {
    "an id of version 4": (setting(event_id=str(uuid.uuid4())), "event_id"),
    "no id": (setting(event_id=""), "event_id"),
    "NUL in an id": (setting(event_id="\x00"), "event_id"),
    "too old": (aged(days=35.1), "event_id"),
    "from the future": (aged(minutes=-6), "event_id"),
    "a tenant that is no UUID": (setting(tenant_id="acme"), "tenant_id"),
    "a request that is no UUID": (setting(request_id="1"), "request_id"),
    "a negative count": (with_tokens(input_tokens=-1), "token_usage.input_tokens"),
    "an absurd count": (with_tokens(output_tokens=10**12 + 1), "token_usage.output_tokens"),
    "no attempt": (setting(attempt=0), "attempt"),
    "a negative sequence": (setting(sequence=-1), "sequence"),
    "a negative latency": (lambda event: event.latency.FromMilliseconds(-5), "latency"),
    "a latency of eight days": (lambda event: event.latency.FromSeconds(8 * 86_400), "latency"),
    "an unknown provider": (setting(provider="acme"), "provider"),
    "an unknown status": (setting(status=99), "status"),
    "no status": (setting(status=0), "status"),
    "an unknown source": (setting(usage_source=99), "usage_source"),
    "no model": (setting(model=""), "model"),
    "a long model": (setting(model="m" * 201), "model"),
    "a long label": (lambda event: event.labels.update({"team": "x" * 257}), "labels['team']"),
    "too many labels": (lambda event: event.labels.update({str(n): "" for n in range(17)}), "labels"),
    "NUL in a label": (lambda event: event.labels.update({"team": "a\x00b"}), "labels['team']"),
    "NUL in a message": (setting(error_message="a\x00b"), "error_message"),
    "a cost that is no number": (setting(provider_reported_cost_usd="NaN"), "provider_reported_cost_usd"),
}


@pytest.fixture
async def usage(empty_database: str, tmp_path: Path) -> AsyncIterator[Service]:
    async with running_app(empty_database, tmp_path) as channel:
        connection = await asyncpg.connect(empty_database)
        yield usage_service_pb2_grpc.UsageServiceStub(channel), connection
        await connection.close()


def fields_of(result: usage_service_pb2.RecordUsageResult) -> list[str]:
    """The paths of the fields that an answer complains of."""
    for detail in result.error.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return [violation.field for violation in bad_request.field_violations]
    return []


async def test_one_bad_event_among_500_is_answered_in_its_place_and_the_rest_is_stored(
    usage: Service,
) -> None:
    stub, connection = usage
    events = [an_event() for _ in range(500)]
    events[321].error_message = "a\x00b"

    answer = await stub.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=events))

    assert [n for n, result in enumerate(answer.results) if result.disposition != ACCEPTED] == [321]
    assert answer.results[321].disposition == REJECTED
    assert fields_of(answer.results[321]) == ["events[321].error_message"]
    assert [result.event_id for result in answer.results] == [event.event_id for event in events]
    assert await connection.fetchval("SELECT count(*) FROM model_usage_stats") == 499
    for grain in ("minute", "hour", "day"):
        assert await connection.fetchval(f"SELECT sum(attempts) FROM usage_rollup_{grain}") == 499
    kept = await connection.fetch("SELECT event_id, disposition, field, reason, payload FROM usage_events_rejected")
    assert [(row["event_id"], row["disposition"], row["field"]) for row in kept] == [
        (events[321].event_id, "rejected", "error_message")
    ]
    assert "U+0000" in kept[0]["reason"]
    assert usage_event_pb2.UsageEvent.FromString(kept[0]["payload"]) == events[321]


async def test_every_kind_of_bad_event_is_told_with_its_field_and_kept(
    usage: Service,
) -> None:
    stub, connection = usage
    events = [an_event() for _ in range(100)]
    places = dict(zip(random.Random(4).sample(range(100), len(BAD)), BAD.values(), strict=True))
    for place, (spoil, _) in places.items():
        spoil(events[place])

    answer = await stub.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=events))

    told = {n: fields_of(result) for n, result in enumerate(answer.results) if result.disposition == REJECTED}
    assert told == {place: [f"events[{place}].{field}"] for place, (_, field) in places.items()}
    assert sum(result.disposition == ACCEPTED for result in answer.results) == 100 - len(BAD)
    assert await connection.fetchval("SELECT count(*) FROM model_usage_stats") == 100 - len(BAD)
    kept = await connection.fetch("SELECT field, reason, payload FROM usage_events_rejected")
    assert sorted((row["field"], row["payload"]) for row in kept) == sorted(
        (field, events[place].SerializeToString(deterministic=True)) for place, (_, field) in places.items()
    )
    assert all(row["reason"].startswith(row["field"]) for row in kept)


async def test_the_same_id_with_other_content_is_a_conflict_and_the_first_stays(
    usage: Service,
) -> None:
    stub, connection = usage
    first, other = an_event(), an_event()
    other.event_id = first.event_id
    other.token_usage.input_tokens = 7
    await stub.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-1", events=[first]))

    answer = await stub.RecordUsage(usage_service_pb2.RecordUsageRequest(router_id="router-2", events=[other, first]))

    assert [result.disposition for result in answer.results] == [
        usage_service_pb2.RECORD_DISPOSITION_CONFLICT,
        usage_service_pb2.RECORD_DISPOSITION_DUPLICATE,
    ]
    assert answer.results[0].error.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert await connection.fetchval("SELECT array_agg(input_tokens) FROM model_usage_stats") == [1_000]
    assert await connection.fetchval("SELECT sum(input_tokens) FROM usage_rollup_day") == 1_000
    kept = await connection.fetchrow("SELECT disposition, router_id, payload FROM usage_events_rejected")
    assert kept is not None
    assert (kept["disposition"], kept["router_id"]) == ("conflict", "router-2")
    assert usage_event_pb2.UsageEvent.FromString(kept["payload"]) == other
