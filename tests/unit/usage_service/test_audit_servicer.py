"""VerifyLedger on the wire: what is refused before anything is recounted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from service_runtime.errors import InvalidRequest
from turnpike.usage.v1 import audit_service_pb2 as pb
from usage_service.api.audit_servicer import AuditServicer
from usage_service.api.convert_reports import timestamp_to_proto
from usage_service.domain.window import RollupRetention
from usage_service.metering.auditing import Auditing

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NOT_ASKED = cast("Any", None)


@pytest.fixture
def servicer() -> AuditServicer:
    return AuditServicer(
        Auditing(
            store=NOT_ASKED,
            metrics=NOT_ASKED,
            retention=RollupRetention(),
            raw_retention=None,
            accept_back=timedelta(days=35),
            open_attempt_bound=timedelta(hours=1),
            now=lambda: NOW,
            monotonic_s=lambda: 0.0,
        )
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tenant_id": "x", "max_discrepancies": 101}, ["tenant_id", "max_discrepancies"]),
        ({"page_token": "x"}, ["page_token"]),
        (
            {"start_time": timestamp_to_proto(NOW), "end_time": timestamp_to_proto(NOW - timedelta(days=1))},
            ["end_time"],
        ),
    ],
)
async def test_every_bad_field_is_named(servicer: AuditServicer, fields: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await servicer.VerifyLedger(pb.VerifyLedgerRequest(**fields), NOT_ASKED)

    assert [violation.field for violation in refused.value.violations] == named
