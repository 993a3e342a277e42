"""Three tenants, two providers, one of them broken; then the books, and the search for canaries."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import Stubs
from tests.support.provider_server import ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from turnpike.usage.v1 import (
    pricing_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    token_usage_pb2,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)

GOOD = "ok?n=4"
BROKEN = "status?code=503"


@dataclass(frozen=True)
class Site:
    """A Turnpike with two scripted providers behind it."""

    stack: Stack
    stubs: Stubs
    groq: ProviderProcess
    openrouter: ProviderProcess
    keys: Mapping[str, str]
    answers: list[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, canaries: dict[str, str]) -> Iterator[Site]:
    directory = Path(tmp_path_factory.mktemp("site"))
    (directory / "groq").mkdir()
    (directory / "openrouter").mkdir()
    accepted = [option for name in ("groq", "own") for option in ("--accept-key", canaries[name])]
    with (
        ProviderProcess(directory / "groq", *accepted) as groq,
        ProviderProcess(directory / "openrouter") as openrouter,
    ):
        stack = Stack(
            directory / "data",
            {
                "GROQ_API_KEY": canaries["groq"],
                "OPENROUTER_API_KEY": canaries["openrouter"],
                "ROUTER_GROQ_BASE_URL": groq.base_url,
                "ROUTER_OPENROUTER_BASE_URL": openrouter.base_url,
                "ROUTER_ALLOWED_NETWORKS": "127.0.0.0/8",
                "TURNPIKE_LOG_LEVEL": "debug",
            },
        ).start()
        with grpc.insecure_channel(stack.router) as router, grpc.insecure_channel(stack.usage) as usage:
            stubs = Stubs(
                router_service_pb2_grpc.RouterServiceStub(router),
                tenant_service_pb2_grpc.TenantServiceStub(router),
                usage_service_pb2_grpc.UsageServiceStub(usage),
                quota_service_pb2_grpc.QuotaServiceStub(usage),
                pricing_service_pb2_grpc.PricingServiceStub(usage),
            )
            yield Site(stack, stubs, groq, openrouter, canaries, [])
        assert stack.stop() == 0, stack.output()


def create(site: Site, models: Mapping[str, str], **keys: str) -> str:
    request = tenant_service_pb2.CreateTenantRequest(
        name="t",
        inference_config=tenant_service_pb2.InferenceConfig(
            preferred_provider="groq",
            preferred_models=models,
            allowed_providers=["groq", "openrouter"],
        ),
        provider_tokens=keys,
    )
    answer = site.stubs.tenants.CreateTenant(request)
    site.answers.append(str(answer))
    return answer.tenant.id


def stream(site: Site, tenant_id: str) -> completion_pb2.CompletionResult:
    request = router_service_pb2.StreamCompletionRequest(
        tenant_id=tenant_id,
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="one two three")],
        endpoint="/e2e",
        user_id="u-1",
        labels={"team": "red"},
    )
    events = list(site.stubs.router.StreamCompletion(request, timeout=30))
    site.answers.extend(map(str, events))
    assert "".join(event.delta.text for event in events) == "tok0 tok1 tok2 tok3 "
    return events[-1].result


def records(site: Site, tenant_id: str, count: int) -> list[usage_service_pb2.UsageRecord]:
    """The tenant's ledger rows, oldest first, once there are so many."""
    deadline = time.monotonic() + 10
    while True:
        answer = site.stubs.usage.ListUsageRecords(usage_service_pb2.ListUsageRecordsRequest(tenant_id=tenant_id))
        if len(answer.records) >= count or time.monotonic() > deadline:
            site.answers.append(str(answer))
            return list(reversed(answer.records))
        time.sleep(0.05)


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_tenant_with_a_key_of_its_own_pays_with_it(site: Site) -> None:
    tenant_id = create(site, {"groq": GOOD}, groq=site.keys["own"])

    result = stream(site, tenant_id)
    (row,) = records(site, tenant_id, 1)

    assert (result.provider, result.funding) == ("groq", token_usage_pb2.FUNDING_TENANT_KEY)
    assert row.event.funding == token_usage_pb2.FUNDING_TENANT_KEY
    assert site.groq.served[-1].key_sha256 == key_hash(site.keys["own"])
    assert (result.input_tokens, result.output_tokens) == (3, 4)
    assert row.event.token_usage.input_tokens == 3
    assert row.event.token_usage.output_tokens == 4
    assert (row.event.endpoint, row.event.user_id, row.event.labels["team"]) == ("/e2e", "u-1", "red")
    assert row.pricing_state == token_usage_pb2.PRICING_STATE_UNPRICED
    assert row.cost_usd == result.cost_usd == ""


def test_a_tenant_with_all_keys_uses_the_preferred_provider(site: Site) -> None:
    tenant_id = create(site, {"groq": GOOD, "openrouter": GOOD}, groq=site.keys["own"], openrouter=site.keys["own"])

    assert stream(site, tenant_id).provider == "groq"


def test_a_tenant_without_keys_is_paid_for_by_the_system(site: Site) -> None:
    tenant_id = create(site, {"groq": GOOD})

    result = stream(site, tenant_id)

    assert result.funding == token_usage_pb2.FUNDING_SYSTEM_KEY
    assert site.groq.served[-1].key_sha256 == key_hash(site.keys["groq"])


def test_u2_a_broken_provider_is_failed_over_and_both_attempts_are_in_the_books(site: Site) -> None:
    tenant_id = create(site, {"groq": BROKEN, "openrouter": GOOD})

    result = stream(site, tenant_id)
    rows = records(site, tenant_id, len(result.attempts))
    errors = site.stubs.usage.ListErrors(usage_service_pb2.ListErrorsRequest(tenant_id=tenant_id)).errors
    stats = site.stubs.usage.GetTenantUsageStats(
        usage_service_pb2.GetTenantUsageStatsRequest(tenant_id=tenant_id)
    ).total

    assert result.provider == "openrouter"
    assert [attempt.provider for attempt in result.attempts][-1] == "openrouter"
    assert [row.event.absorbed for row in rows] == [True] * (len(rows) - 1) + [False]
    assert rows[0].event.status == usage_event_pb2.USAGE_STATUS_ERROR
    assert rows[0].event.error_class == "overloaded"
    assert {row.event.request_id for row in rows} == {result.request_id}
    assert [row.event.event_id for row in rows] == [attempt.usage_event_id for attempt in result.attempts]
    assert (stats.requests, stats.attempts, stats.succeeded) == (1, len(rows), 1)
    assert sum(error.absorbed for error in errors) == len(rows) - 1


def test_with_failover_off_the_first_failure_is_told(site: Site) -> None:
    tenant_id = create(site, {"groq": "status?code=500", "openrouter": GOOD})
    site.stubs.tenants.UpdateTenant(
        tenant_service_pb2.UpdateTenantRequest(
            tenant_id=tenant_id, inference_config=tenant_service_pb2.InferenceConfig(auto_failover=False)
        )
    )

    with pytest.raises(grpc.RpcError) as refused:
        stream(site, tenant_id)

    site.answers.append(str(refused.value))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_key_that_the_provider_rejects_is_told_and_not_shown(site: Site) -> None:
    tenant_id = create(site, {"groq": GOOD}, groq=site.keys["revoked"])

    with pytest.raises(grpc.RpcError) as refused:
        stream(site, tenant_id)

    site.answers.append(f"{refused.value!r} {refused.value.trailing_metadata()}")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    records(site, tenant_id, 1)


def test_a_broken_row_fails_its_own_tenant_only(site: Site) -> None:
    broken, healthy = create(site, {"groq": GOOD}), create(site, {"groq": GOOD})
    psql(site, f"UPDATE tenants SET inference_config = '[]' WHERE id = '{broken}'")

    with pytest.raises(grpc.RpcError) as refused:
        stream(site, broken)

    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "TENANT_CONFIG_INVALID" in str(refused.value.trailing_metadata())
    assert stream(site, healthy).provider == "groq"


def test_limits_are_answered_for_every_tenant(site: Site) -> None:
    tenant_id = create(site, {"groq": GOOD})
    stream(site, tenant_id)
    records(site, tenant_id, 1)

    answer = site.stubs.quota.CheckRateLimitStatus(quota_service_pb2.CheckRateLimitStatusRequest(tenant_id=tenant_id))

    requests = [status for status in answer.statuses if status.metric == quota_service_pb2.LIMIT_METRIC_REQUESTS]
    assert {status.used for status in requests if status.provider == "groq"} == {"1"}
    assert not answer.should_failover


def psql(site: Site, statement: str) -> None:
    """What an administrator's psql does to the embedded Postgres."""
    import asyncio

    import asyncpg

    from service_runtime.embedded_postgres import EmbeddedPostgres

    async def execute() -> None:
        connection = await asyncpg.connect(EmbeddedPostgres(site.stack.data_dir / "postgres").dsn)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(execute())


def test_k1_no_canary_is_in_any_log_answer_or_file(site: Site) -> None:
    """Searches whatever the tests of this module have left behind, and one stream of its own."""
    tenant_id = create(site, {"groq": GOOD}, groq=site.keys["own"])
    stream(site, tenant_id)
    records(site, tenant_id, 1)
    haystacks = {"log": site.stack.log.read_bytes(), "answers": "\n".join(site.answers).encode()}
    for path in (site.stack.data_dir / "journal").rglob("*"):
        if path.is_file():
            haystacks[path.name] = path.read_bytes()

    found = [
        (place, name)
        for name, key in site.keys.items()
        for needle in disguises(key)
        for place, text in haystacks.items()
        if needle in text
    ]

    assert found == []
    assert len(haystacks["log"]) > 1000
    assert len(haystacks["answers"]) > 1000
    assert "journal.sqlite" in haystacks


def disguises(key: str) -> list[bytes]:
    """A key as it may stand in a file: plain, halved, encoded."""
    half = len(key) // 2
    return [
        key.encode(),
        key[half:].encode(),
        base64.b64encode(key.encode()).rstrip(b"="),
        urllib.parse.quote(key, safe="").encode(),
        json.dumps(key)[1:-1].encode(),
        key[::-1].encode(),
    ]
