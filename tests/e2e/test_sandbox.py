"""The README's first minute, and what bad input gets, against real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.e2e.conftest import Stubs
from tests.support.stack import Stack
from turnpike.router.v1 import completion_pb2, router_service_pb2, tenant_service_pb2
from turnpike.usage.v1 import pricing_service_pb2, quota_service_pb2, usage_service_pb2

BIN = Path(sys.executable).parent


def question(tenant_id: str, **fields: object) -> router_service_pb2.StreamCompletionRequest:
    return router_service_pb2.StreamCompletionRequest(
        tenant_id=tenant_id,
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
        provider="sandbox",
        **fields,  # type: ignore[arg-type]
    )


def new_tenant(stubs: Stubs) -> str:
    return stubs.tenants.CreateTenant(tenant_service_pb2.CreateTenantRequest(name="Acme")).tenant.id


def stats_when(stubs: Stubs, tenant_id: str, attempts: int) -> usage_service_pb2.GetTenantUsageStatsResponse:
    """The tenant's stats once the ledger holds so many attempts: the router reports off the request path."""
    deadline = time.monotonic() + 10
    while True:
        stats = stubs.usage.GetTenantUsageStats(usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=tenant_id))
        if stats.total.attempts >= attempts or time.monotonic() > deadline:
            return stats
        time.sleep(0.05)


def test_a_stream_without_any_key_ends_with_its_result_and_stands_in_the_books_once(stubs: Stubs) -> None:
    tenant_id = new_tenant(stubs)

    events = list(stubs.router.StreamCompletion(question(tenant_id), timeout=20))
    stats = stats_when(stubs, tenant_id, 1)

    kinds = [event.WhichOneof("event") for event in events]
    result = events[-1].result
    assert kinds[0] == "route_chosen"
    assert set(kinds[1:-1]) == {"delta"}
    assert kinds[-1] == "result"
    assert "sandbox" in "".join(event.delta.text for event in events)
    assert result.finish_reason == completion_pb2.FINISH_REASON_STOP
    assert stats.total.requests == stats.total.attempts == stats.total.succeeded == 1
    assert stats.total.token_usage.input_tokens == result.input_tokens > 0
    assert stats.total.token_usage.output_tokens == result.output_tokens > 0
    assert float(stats.total.cost.cost_usd) > 0
    assert [(entry.provider, entry.model) for entry in stats.stats] == [("sandbox", result.model)]


def test_complete_answers_whole_and_costs_what_the_price_book_says(stubs: Stubs) -> None:
    tenant_id = new_tenant(stubs)
    request = router_service_pb2.CompleteRequest(
        tenant_id=tenant_id,
        provider="sandbox",
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hello there")],
    )

    result = stubs.router.Complete(request, timeout=20).result
    price = stubs.pricing.CalculateCost(
        pricing_service_pb2.CalculateCostRequest(
            provider="sandbox",
            model=result.model,
            input_tokens=result.input_tokens,
            output_tokens=result.output_tokens,
        )
    )

    assert result.content
    assert result.cost_usd == price.cost_usd
    assert result.attempts[0].attempt == 1


def test_both_services_explain_themselves_by_reflection_and_health(stack: Stack) -> None:
    for target, service in (
        (stack.router, "turnpike.router.v1.RouterService"),
        (stack.usage, "turnpike.usage.v1.UsageService"),
    ):
        listed = curl(target, "--list-services")
        health = curl(target, method="grpc.health.v1.Health/Check", data={"service": service})

        assert service in listed
        assert "SERVING" in health


def test_the_books_can_be_read_with_curl(stack: Stack, stubs: Stubs) -> None:
    tenant_id = new_tenant(stubs)
    list(stubs.router.StreamCompletion(question(tenant_id), timeout=20))
    stats_when(stubs, tenant_id, 1)

    answer = curl(
        stack.usage, method="turnpike.usage.v1.UsageService/GetTenantUsageStats", data={"tenantId": tenant_id}
    )

    assert json.loads(answer)["total"]["requests"] == "1"


def curl(target: str, *options: str, method: str = "", data: dict[str, object] | None = None) -> str:
    arguments = [str(BIN / "buf"), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *options]
    if data is not None:
        arguments += ["-d", json.dumps(data)]
    done = subprocess.run(
        [*arguments, f"http://{target}/{method}".rstrip("/")], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def violated_fields(error: grpc.RpcError) -> set[str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    found: set[str] = set()
    bad = error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            found |= {violation.field for violation in bad.field_violations}
    return found


MESSAGE = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hi")
TENANT = str(uuid.UUID(int=1))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tenant_id": "acme", "messages": [MESSAGE]}, "tenant_id"),
        ({"tenant_id": TENANT}, "messages"),
        ({"tenant_id": TENANT, "messages": [MESSAGE], "model": ""}, "model"),
        ({"tenant_id": TENANT, "messages": [MESSAGE], "estimated_tokens": -1}, "estimated_tokens"),
        ({"tenant_id": TENANT, "messages": [MESSAGE], "task_type": 99}, "task_type"),
        (
            {"tenant_id": TENANT, "messages": [MESSAGE], "sampling": {"max_output_tokens": -5}},
            "sampling.max_output_tokens",
        ),
        (
            {
                "tenant_id": TENANT,
                "messages": [completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="x" * 1_000_001)],
            },
            "messages",
        ),
    ],
    ids=["no UUID", "no messages", "empty model", "negative estimate", "unknown task", "negative limit", "oversized"],
)
def test_bad_completion_requests_name_the_field(stubs: Stubs, fields: dict[str, object], path: str) -> None:
    request = router_service_pb2.StreamCompletionRequest(**fields)  # type: ignore[arg-type]

    with pytest.raises(grpc.RpcError) as refused:
        list(stubs.router.StreamCompletion(request, timeout=10))

    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert any(field.startswith(path) for field in violated_fields(refused.value))


def test_bad_report_requests_name_the_field(stubs: Stubs) -> None:
    backwards = usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=TENANT)
    backwards.start_time.FromSeconds(1_700_000_000)
    backwards.end_time.FromSeconds(1_600_000_000)
    calls = [
        (stubs.usage.GetTenantUsageStats, backwards, {"end_time"}),
        (stubs.usage.ListErrors, usage_service_pb2.ListErrorsRequest(tenant_id=TENANT, page_size=-1), {"page_size"}),
        (stubs.usage.ListDailyCosts, usage_service_pb2.ListDailyCostsRequest(tenant_id="x"), {"tenant_id"}),
        (stubs.quota.CheckRateLimitStatus, quota_service_pb2.CheckRateLimitStatusRequest(), {"tenant_id"}),
    ]
    for call, request, fields in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=10)  # type: ignore[operator]

        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violated_fields(refused.value) == fields


def test_without_a_usable_provider_the_error_says_which_keys_are_missing(stubs: Stubs) -> None:
    request = question(new_tenant(stubs))
    request.provider = "groq"

    with pytest.raises(grpc.RpcError) as refused:
        list(stubs.router.StreamCompletion(request, timeout=10))

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert reasons(refused.value) == ["NO_PROVIDER"]
    assert "GROQ_API_KEY" in str(refused.value.details())


def reasons(error: grpc.RpcError) -> list[str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    return list(_reasons(status.details))


def _reasons(details: Iterable[object]) -> Iterable[str]:
    info = error_details_pb2.ErrorInfo()
    for detail in details:
        if detail.Unpack(info):  # type: ignore[attr-defined]
            yield info.reason


def test_a_second_start_on_taken_ports_says_so_in_one_line(stack: Stack, tmp_path: Path) -> None:
    second = Stack(tmp_path / "data", router_port=stack.router_port, usage_port=stack.usage_port)
    process = second.launch()

    code = process.wait(60)

    assert code != 0
    assert str(stack.usage_port) in second.output()
    assert "Traceback" not in second.output()
