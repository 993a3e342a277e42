"""Single rows of the ledger in Postgres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.pricing import PricingState, TokenCounts
from usage_service.domain.report import StoredRecord, UsageFilter
from usage_service.domain.usage_event import AttemptStatus, Funding, UsageSource
from usage_service.domain.window import Window
from usage_service.metering.report_ports import AfterRecord

if TYPE_CHECKING:
    from asyncpg import Record

_QUERIES = load_queries(Path(__file__).with_name("records.sql"))
_LAST_UUID = UUID(int=2**128 - 1)


class _Metadata(msgspec.Struct):
    """What has no column of its own."""

    labels: dict[str, str] = {}
    task_type: str = ""
    decision: str = ""


class PostgresRecords:
    """The rows, as `metering.report_ports.Records` wants them."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def newest(
        self,
        tenant_id: UUID,
        window: Window,
        only: UsageFilter,
        *,
        request_id: UUID | None,
        after: AfterRecord | None,
        limit: int,
    ) -> list[StoredRecord]:
        query = "newest_records" if request_id is None else "newest_records_of_request"
        arguments = [
            tenant_id,
            window.start,
            window.end,
            only.provider,
            only.model,
            only.absorbed,
            only.funding,
            # Every row of the window comes before its end.
            after.used_at if after else window.end,
            after.event_id if after else _LAST_UUID,
            limit,
        ]
        if request_id is not None:
            arguments.append(request_id)
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(_QUERIES[query], *arguments)
        return [_stored_record(record) for record in fetched]


def _stored_record(record: Record) -> StoredRecord:
    metadata = msgspec.json.decode(record["metadata"], type=_Metadata)
    return StoredRecord(
        event_id=record["id"],
        tenant_id=record["tenant_id"],
        request_id=record["request_id"],
        used_at=record["timestamp"],
        ingested_at=record["ingested_at"],
        attempt=record["attempt"],
        provider=record["provider"],
        model=record["model_name"],
        requested_model=record["requested_model"],
        endpoint=record["endpoint"],
        user_id=record["user_id"],
        status=AttemptStatus(record["status"]),
        error_class=record["error_class"],
        error_message=record["error_message"] or "",
        absorbed=record["absorbed"],
        tokens=TokenCounts(
            input_tokens=record["input_tokens"],
            output_tokens=record["output_tokens"],
            cached_read_tokens=record["cached_read_tokens"],
            cached_write_tokens=record["cached_write_tokens"],
            reasoning_tokens=record["reasoning_tokens"],
        ),
        usage_source=UsageSource(record["usage_source"]),
        funding=Funding(record["funding"]),
        latency_ms=record["latency_ms"],
        first_token_ms=record["first_token_ms"],
        provider_cost_usd=record["provider_cost_usd"],
        cost_usd=record["estimated_cost_usd"],
        pricing_state=PricingState(record["pricing_state"]),
        price_id=record["price_id"],
        router_id=record["router_id"],
        sequence=record["router_sequence"],
        labels=metadata.labels,
        task_type=metadata.task_type,
        decision=metadata.decision,
    )
