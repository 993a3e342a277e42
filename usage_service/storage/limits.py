"""The tenants' own limits in Postgres."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from service_runtime.errors import Category, ServiceError
from service_runtime.postgres import Postgres, load_queries
from usage_service.domain.rate_limit import LimitMetric, LimitRule

if TYPE_CHECKING:
    from asyncpg import Record

_QUERIES = load_queries(Path(__file__).with_name("limits.sql"))


class PostgresLimits:
    """The table of limits, as `metering.report_ports.Limits` wants it."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def of_tenant(self, tenant_id: UUID) -> list[LimitRule]:
        async with self._postgres.acquire() as connection:
            fetched = await connection.fetch(_QUERIES["limits_of_tenant"], tenant_id)
        return [_rule(tenant_id, record) for record in fetched]


def _rule(tenant_id: UUID, record: Record) -> LimitRule:
    try:
        return LimitRule(
            provider=record["provider"],
            metric=LimitMetric(record["metric"]),
            window_s=record["window_s"],
            limit=record["limit_value"],
            model=record["model_name"],
            is_override=True,
        )
    except ValueError as error:
        # A limit that is left out would let everything through, so this tenant gets no answer until it is mended.
        raise ServiceError(
            Category.FAILED_PRECONDITION,
            "LIMIT_INVALID",
            f"a limit of tenant {tenant_id} cannot be used ({record['provider']}, {record['metric']} per "
            f"{record['window_s']} s): {error}; correct or delete its row in usage_limits",
            metadata={"provider": record["provider"], "metric": record["metric"]},
        ) from error
