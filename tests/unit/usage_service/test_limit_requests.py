"""Reading what limits are asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from service_runtime.errors import InvalidRequest
from tests.support.usage_events import TENANT
from turnpike.usage.v1 import quota_service_pb2 as pb
from usage_service.api.limit_requests import LimitReader
from usage_service.domain.provider_names import CATALOGUE_PROVIDERS
from usage_service.domain.rate_limit import MONTH_S, LimitMetric, LimitRule

NOW = datetime(2026, 3, 18, 10, 41, 7, tzinfo=UTC)
REQUESTS, COST = pb.LIMIT_METRIC_REQUESTS, pb.LIMIT_METRIC_COST


def limit(**fields: Any) -> pb.SetLimitRequest:
    plain = {"tenant_id": TENANT, "provider": "groq", "metric": REQUESTS, "window": Duration(seconds=60), "limit": "5"}
    return pb.SetLimitRequest(**{**plain, **fields})


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(5), is_override=True)),
        (
            {"window": Duration(seconds=1), "limit": "0"},
            LimitRule("groq", LimitMetric.REQUESTS, 1, Decimal(0), "", True),
        ),
        (
            {"provider": "Groq (fast)", "model": "m", "limit": "1000000000000000"},
            LimitRule("groq", LimitMetric.REQUESTS, 60, Decimal(10**15), "m", is_override=True),
        ),
        (
            {"metric": COST, "window": Duration(seconds=MONTH_S), "limit": "0.000001"},
            LimitRule("groq", LimitMetric.COST, MONTH_S, Decimal("0.000001"), is_override=True),
        ),
    ],
)
def test_a_limit_is_read_to_its_last_digit(fields: dict[str, Any], rule: LimitRule) -> None:
    reader = LimitReader(NOW, CATALOGUE_PROVIDERS)

    assert reader.limit(limit(**fields)) == (UUID(TENANT), rule)
    reader.done()


@pytest.mark.parametrize(
    ("fields", "bad"),
    [
        ({"tenant_id": "x", "provider": "acme", "model": "m" * 201, "metric": 9, "limit": "-1"}, None),
        ({"provider": "turnpike"}, ["provider"]),
        ({"model": "m\x00"}, ["model"]),
        ({"metric": 0}, ["metric"]),
        ({"window": Duration(seconds=0)}, ["window"]),
        ({"window": Duration(seconds=61)}, ["window"]),
        ({"window": Duration(seconds=60, nanos=1)}, ["window"]),
        ({"window": Duration(seconds=-60)}, ["window"]),
        ({"window": Duration(seconds=MONTH_S + 60)}, ["window"]),
        ({"limit": ""}, ["limit"]),
        ({"limit": "1.5"}, ["limit"]),
        ({"limit": "1000000000000001"}, ["limit"]),
        ({"limit": "1e3"}, ["limit"]),
        ({"metric": COST, "limit": "0.0000001"}, ["limit"]),
        ({"metric": COST, "limit": "1000000000000.1"}, ["limit"]),
        ({"metric": COST, "limit": "NaN"}, ["limit"]),
    ],
)
def test_every_bad_field_of_a_limit_is_named(fields: dict[str, Any], bad: list[str] | None) -> None:
    reader = LimitReader(NOW, CATALOGUE_PROVIDERS)
    reader.limit(limit(**fields))

    with pytest.raises(InvalidRequest) as refused:
        reader.done()

    found = [violation.field for violation in refused.value.violations]
    assert found == (bad or ["tenant_id", "provider", "model", "metric", "limit"])
