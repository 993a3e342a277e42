"""Two real routers on one Postgres: what is changed at one holds at the other, and what one leaves behind is asked for.

`near` polls the versions twice a second; `far` polls once an hour, so that what it learns in time it was told.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import asyncpg
import grpc
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.provider_server import GENERATION, ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc

T = TypeVar("T")

TOLD_WITHIN_S = 5.0  # far below the hour of the poll and the 300 s of the cache
FOUND = "generation?prompt=31&completion=9&cost=0.00042&model=vendor/served"


class Service:
    """One process of ours, started by hand, with its stubs."""

    def __init__(self, module: str, stack: Stack) -> None:
        self.module = module
        self.stack = stack
        self.process: subprocess.Popen[bytes] | None = None
        address = stack.router if module == "router_service" else stack.usage
        self._channel = grpc.insecure_channel(address)
        self.router = router_service_pb2_grpc.RouterServiceStub(self._channel)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(self._channel)
        self.usage = usage_service_pb2_grpc.UsageServiceStub(self._channel)

    def start(self) -> None:
        with self.stack.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=self.stack.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self, *, starts: int = 1) -> None:
        ready = f"{self.module.removesuffix('_service')}.ready"
        seen = eventually(lambda: self.stack.output().count(ready), lambda count: count >= starts, within_s=60)
        assert seen >= starts, self.stack.output()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self._channel.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()


@dataclass(frozen=True)
class Site:
    """Postgres, usage_service and two routers, with one OpenRouter behind them."""

    postgres: EmbeddedPostgres
    usage: Service
    near: Service
    far: Service
    openrouter: ProviderProcess


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = Path(tmp_path_factory.mktemp("two"))
    with (
        ExitStack() as ends,
        EmbeddedPostgres(directory / "postgres") as postgres,
        ProviderProcess(directory) as openrouter,
    ):
        common = {
            "TURNPIKE_DATABASE_URL": postgres.dsn,
            # One key for both: each would make its own, and could not open what the other has sealed.
            "TURNPIKE_KEY_ENCRYPTION_KEYS": "k1:" + base64.b64encode(bytes(range(32))).decode(),
            "ROUTER_OPENROUTER_BASE_URL": openrouter.base_url,
            "ROUTER_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        usage = Service("usage_service", Stack(directory / "usage", common))
        shared = common | {"USAGE_PORT": str(usage.stack.usage_port)}
        near = Service("router_service", Stack(directory / "near", shared | {"ROUTER_TENANT_POLL_S": "0.5"}))
        far = Service("router_service", Stack(directory / "far", shared | {"ROUTER_TENANT_POLL_S": "3600"}))
        for service in (usage, near, far):
            service.start()
            ends.callback(service.close)
        for service in (usage, near, far):
            service.wait()
        yield Site(postgres, usage, near, far, openrouter)
        for service in (near, far):
            assert service.process is not None
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 0, service.stack.output()


def eventually(look: Callable[[], T], is_it: Callable[[T], bool], within_s: float = 20.0) -> T:
    """What `look` sees as soon as `is_it`, or in the end: the caller asserts on it."""
    deadline = time.monotonic() + within_s
    while not is_it(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


def new_tenant(site: Site, model: str = "sandbox-small", **fields: object) -> str:
    config = tenant_service_pb2.InferenceConfig(preferred_provider="sandbox", preferred_models={"sandbox": model})
    request = tenant_service_pb2.CreateTenantRequest(name="Acme", inference_config=config, **fields)  # type: ignore[arg-type]
    return str(site.near.tenants.CreateTenant(request, timeout=10).tenant.id)


def change_model(service: Service, tenant_id: str, model: str) -> int:
    """Change the tenant's model at one router; the version that holds from then on."""
    config = tenant_service_pb2.InferenceConfig(preferred_provider="sandbox", preferred_models={"sandbox": model})
    request = tenant_service_pb2.UpdateTenantRequest(tenant_id=tenant_id, inference_config=config)
    return int(service.tenants.UpdateTenant(request, timeout=10).tenant.config_version)


def model_for(service: Service, tenant_id: str, **fields: object) -> str:
    """The model that a request at this router gets."""
    request = router_service_pb2.CompleteRequest(
        tenant_id=tenant_id,
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="hi")],
        sampling=completion_pb2.Sampling(max_output_tokens=1),
        **fields,  # type: ignore[arg-type]
    )
    return str(service.router.Complete(request, timeout=10).result.model)


def psql(site: Site, *statements: str) -> None:
    """What an administrator does, in one transaction."""

    async def execute() -> None:
        connection = await asyncpg.connect(site.postgres.dsn)
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
        await connection.close()

    asyncio.run(execute())


def test_a_change_at_one_router_holds_for_requests_at_the_other(site: Site) -> None:
    tenant_id = new_tenant(site)
    assert model_for(site.far, tenant_id) == "sandbox-small"

    change_model(site.near, tenant_id, "sandbox-large")

    seen = eventually(lambda: model_for(site.far, tenant_id), lambda model: model == "sandbox-large", TOLD_WITHIN_S)
    assert seen == "sandbox-large"


def test_a_request_that_knows_of_a_version_gets_it_or_is_told(site: Site) -> None:
    tenant_id = new_tenant(site)
    assert model_for(site.far, tenant_id) == "sandbox-small"

    version = change_model(site.near, tenant_id, "sandbox-large")
    with pytest.raises(grpc.RpcError) as refused:
        model_for(site.far, tenant_id, min_config_version=version + 1)

    assert model_for(site.far, tenant_id, min_config_version=version) == "sandbox-large"
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "CONFIG_VERSION_BEHIND" in str(refused.value.trailing_metadata())


def test_a_change_that_no_notification_told_is_found_by_the_poll(site: Site) -> None:
    tenant_id = new_tenant(site)
    assert model_for(site.near, tenant_id) == model_for(site.far, tenant_id) == "sandbox-small"

    config = json.dumps({"preferred_provider": "sandbox", "preferred_models": {"sandbox": "sandbox-large"}})
    psql(
        site,
        "ALTER TABLE tenants DISABLE TRIGGER tenants_notify",
        f"UPDATE tenants SET inference_config = '{config}' WHERE id = '{tenant_id}'",
        "ALTER TABLE tenants ENABLE TRIGGER tenants_notify",
    )

    seen = eventually(lambda: model_for(site.near, tenant_id), lambda model: model == "sandbox-large", TOLD_WITHIN_S)
    assert seen == "sandbox-large"
    assert model_for(site.far, tenant_id) == "sandbox-small"  # it was told nothing, and its poll is far away


def test_s1_the_last_good_configuration_serves_while_postgres_is_away(site: Site) -> None:
    tenant_id = new_tenant(site)
    assert model_for(site.near, tenant_id) == model_for(site.far, tenant_id) == "sandbox-small"

    site.postgres.stop()
    try:
        with pytest.raises(grpc.RpcError) as refused:
            # Outdated from here on, as far as this router knows; and nobody can be asked.
            site.near.tenants.InvalidateCache(
                tenant_service_pb2.InvalidateCacheRequest(tenant_id=tenant_id), timeout=10
            )
        during = [model_for(service, tenant_id) for service in (site.near, site.far)]
        with pytest.raises(grpc.RpcError) as unchanged:
            change_model(site.near, tenant_id, "sandbox-large")
    finally:
        site.postgres.start()

    assert during == ["sandbox-small", "sandbox-small"]
    assert refused.value.code() is unchanged.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: changed(site, tenant_id), bool)
    seen = eventually(lambda: model_for(site.far, tenant_id), lambda model: model == "sandbox-large")
    assert seen == "sandbox-large"


def changed(site: Site, tenant_id: str) -> bool:
    """Whether the change could be made: the pool needs a moment to find that Postgres is back."""
    try:
        return change_model(site.near, tenant_id, "sandbox-large") > 0
    except grpc.RpcError:
        return False


# ── what a router leaves behind ─────────────────────────────────────────────────────────────────────────────────────


def script(site: Site, model: str, *scripts: str) -> None:
    body = json.dumps({"model": model, "scripts": scripts}).encode()
    request = urllib.request.Request(site.openrouter.base_url.removesuffix("/v1") + "/control/script", body)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def leave_a_stream(site: Site, service: Service, tenant_id: str) -> None:
    """Read the first content of a stream at OpenRouter, then hang up; return when the router has settled it."""
    settled = service.stack.output().count("completion.finished")
    stream = service.router.StreamCompletion(
        router_service_pb2.StreamCompletionRequest(
            tenant_id=tenant_id,
            provider="openrouter",
            model="ok?n=1000&gap_ms=10&model=vendor/served",
            messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="one two three")],
        ),
        timeout=30,
    )
    for event in stream:
        if event.WhichOneof("event") == "delta":
            break
    stream.cancel()
    seen = eventually(lambda: service.stack.output().count("completion.finished"), lambda count: count > settled)
    assert seen > settled


def row_of(site: Site, tenant_id: str) -> usage_service_pb2.UsageRecord:
    """The tenant's one row in the ledger."""
    question = usage_service_pb2.ListUsageRecordsRequest(tenant_id=tenant_id)
    records = eventually(lambda: list(site.usage.usage.ListUsageRecords(question, timeout=10).records), bool)
    (record,) = records
    return record


def test_a_late_count_reaches_the_books_with_the_providers_own_cost(site: Site) -> None:
    tenant_id = new_tenant(site, provider_tokens={"openrouter": "sk-or-v1-0123456789abcdef"})
    script(site, GENERATION, "status?code=404", FOUND)

    leave_a_stream(site, site.near, tenant_id)
    event = row_of(site, tenant_id).event

    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    assert (event.token_usage.input_tokens, event.token_usage.output_tokens) == (31, 9)
    assert event.provider_reported_cost_usd == "0.000420000000"
    assert event.model == "vendor/served"
    decision = json.loads(event.decision)
    assert decision["rank"][0][:3] == ["openrouter", "ok?n=1000&gap_ms=10&model=vendor/served", "tenant_key"]
    assert len(decision["rank"][0][4]) == len(decision["terms"]) == len(decision["weights"]) > 0
    assert ["groq", "", "NOT_REQUESTED"] in decision["out"]


def test_u2_after_kill_9_the_router_asks_again_and_the_books_have_one_row(site: Site) -> None:
    tenant_id = new_tenant(site, provider_tokens={"openrouter": "sk-or-v1-0123456789abcdef"})
    script(site, GENERATION, "silence?headers=0")
    leave_a_stream(site, site.far, tenant_id)

    site.far.kill()
    script(site, GENERATION, FOUND)
    site.far.start()
    site.far.wait(starts=2)
    event = row_of(site, tenant_id).event

    assert event.status == usage_event_pb2.USAGE_STATUS_CANCELLED
    assert event.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER_LATE
    assert (event.token_usage.input_tokens, event.token_usage.output_tokens) == (31, 9)
