"""What operators do to Turnpike, and what machines do to it: psql, signals, kills, restarts. Real processes only."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import pytest

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)

T = TypeVar("T")

# The sandbox waits 20 ms a token and echoes this whole: a stream of some three seconds.
LONG_PROMPT = "again " * 110
MONITORING_QUERIES = (
    """SELECT provider, model_name, COUNT(*) AS requests, SUM(total_tokens) AS tokens,
         SUM(estimated_cost_usd) AS cost_usd, AVG(latency_ms) AS avg_latency
       FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '24 hours'
       GROUP BY provider, model_name ORDER BY requests DESC""",
    """SELECT provider, COUNT(*) AS request_count, COUNT(*) FILTER (WHERE status = 'rate_limit') AS rate_limited
       FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '24 hours' GROUP BY provider""",
    """SELECT DATE(timestamp) AS date, provider, SUM(estimated_cost_usd) AS daily_cost
       FROM model_usage_stats WHERE tenant_id = $1 AND timestamp >= NOW() - INTERVAL '30 days'
       GROUP BY DATE(timestamp), provider ORDER BY date DESC, daily_cost DESC""",
    """SELECT provider, model_name, status, error_message, COUNT(*) AS occurrences
       FROM model_usage_stats WHERE tenant_id = $1 AND status != 'success'
       AND timestamp >= NOW() - INTERVAL '24 hours'
       GROUP BY provider, model_name, status, error_message ORDER BY occurrences DESC""",
)


def ask(
    stack: Stack, tenant_id: str, text: str = "hello", **fields: object
) -> list[router_service_pb2.StreamCompletionResponse]:
    """One stream of the sandbox, to its end."""
    with grpc.insecure_channel(stack.router) as channel:
        return list(begin(channel, tenant_id, text, **fields))


def begin(channel: grpc.Channel, tenant_id: str, text: str, **fields: object) -> Iterator[Any]:
    request = router_service_pb2.StreamCompletionRequest(
        tenant_id=tenant_id,
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content=text)],
        **{"provider": "sandbox", "model": "sandbox-large", **fields},  # type: ignore[arg-type]
    )
    return router_service_pb2_grpc.RouterServiceStub(channel).StreamCompletion(request, timeout=30)


@dataclass
class Streaming:
    """A long stream in a thread: `first` is set with the first content, `result` when it has succeeded."""

    stack: Stack
    tenant_id: str
    first: threading.Event = field(default_factory=threading.Event)
    outcome: queue.Queue[completion_pb2.CompletionResult | grpc.RpcError] = field(default_factory=queue.Queue)

    def start(self) -> Streaming:
        threading.Thread(target=self._run, daemon=True).start()
        assert self.first.wait(20)
        return self

    def end(self) -> completion_pb2.CompletionResult | grpc.RpcError:
        return self.outcome.get(timeout=30)

    def _run(self) -> None:
        try:
            with grpc.insecure_channel(self.stack.router) as channel:
                for event in begin(channel, self.tenant_id, LONG_PROMPT):
                    if event.WhichOneof("event") == "delta":
                        self.first.set()
                assert event.WhichOneof("event") == "result"
                self.outcome.put(event.result)
        except grpc.RpcError as error:
            self.outcome.put(error)


def create_tenant(stack: Stack, **fields: object) -> str:
    with grpc.insecure_channel(stack.router) as channel:
        request = tenant_service_pb2.CreateTenantRequest(name="Acme", **fields)  # type: ignore[arg-type]
        return tenant_service_pb2_grpc.TenantServiceStub(channel).CreateTenant(request, timeout=10).tenant.id


def providers_of(stack: Stack, tenant_id: str) -> Mapping[str, router_service_pb2.ProviderInfo]:
    with grpc.insecure_channel(stack.router) as channel:
        answer = router_service_pb2_grpc.RouterServiceStub(channel).ListProviders(
            router_service_pb2.ListProvidersRequest(tenant_id=tenant_id), timeout=10
        )
    return {provider.name: provider for provider in answer.providers}


def sql(stack: Stack, statement: str, *arguments: object) -> list[asyncpg.Record]:
    """What psql on the embedded Postgres answers."""

    async def fetch() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(EmbeddedPostgres(stack.data_dir / "postgres").dsn)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def rows_of(stack: Stack, tenant_id: str, count: int) -> list[asyncpg.Record]:
    """The tenant's rows in the ledger once there are `count`: the router reports off the request path."""
    statement = "SELECT * FROM model_usage_stats WHERE tenant_id = $1 ORDER BY id"
    return eventually(lambda: sql(stack, statement, uuid.UUID(tenant_id)), lambda rows: len(rows) >= count)


def eventually(look: Callable[[], T], is_it: Callable[[T], bool], within_s: float = 20.0) -> T:
    """What `look` sees as soon as `is_it`, or in the end: the caller asserts on it."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            seen = look()
        except (OSError, asyncpg.PostgresError):
            if time.monotonic() > deadline:
                raise
        else:
            if is_it(seen) or time.monotonic() > deadline:
                return seen
        time.sleep(0.05)


def process_of(stack: Stack, words: str) -> int:
    """The process id of the launcher's child whose command line holds `words`."""
    assert stack.process is not None
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split(maxsplit=2) for line in lines.splitlines()]
    (pid,) = [int(pid) for pid, parent, args in found if int(parent) == stack.process.pid and words in args]
    return pid


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One data directory for this module; whatever a test does to the processes, the data is the same."""
    stack = Stack(Path(tmp_path_factory.mktemp("machine")) / "data")
    yield stack
    stack.kill()


@pytest.fixture
def running(machine: Stack) -> Stack:
    """The machine with Turnpike on it: started again if the test before has ended it."""
    if machine.process is None or machine.process.poll() is not None:
        machine.start()
    return machine


def test_the_monitoring_queries_run_unchanged(running: Stack) -> None:
    tenant_id = create_tenant(running)
    ask(running, tenant_id)
    with pytest.raises(grpc.RpcError):
        ask(running, tenant_id, model="no-such-model")
    rows_of(running, tenant_id, 2)

    usage, limited, daily, failed = (sql(running, query, uuid.UUID(tenant_id)) for query in MONITORING_QUERIES)

    assert {row["model_name"]: row["requests"] for row in usage} == {"sandbox-large": 1, "no-such-model": 1}
    assert [tuple(row) for row in limited] == [("sandbox", 2, 0)]
    assert [row["provider"] for row in daily] == ["sandbox"]
    assert daily[0]["daily_cost"] == sum(row["cost_usd"] or 0 for row in usage) > 0
    assert [(row["model_name"], row["status"], row["occurrences"]) for row in failed] == [("no-such-model", "error", 1)]


def test_k1_a_key_written_with_psql_is_used_at_once_sealed_and_never_shown(running: Stack) -> None:
    key = f"gsk_canary{uuid.uuid4().hex}"
    tenant_id = create_tenant(running)
    assert not providers_of(running, tenant_id)["groq"].usable

    sql(
        running,
        f"""UPDATE tenants SET llm_tokens = '{{"groq": "{key}", "openrouter": null, "llm7": null}}',
              inference_config = '{{"preferred_provider": "groq", "auto_failover": true}}' WHERE id = $1""",
        uuid.UUID(tenant_id),
    )
    seen = eventually(lambda: providers_of(running, tenant_id)["groq"], lambda groq: groq.usable)
    (stored,) = sql(running, "SELECT llm_tokens FROM tenants WHERE id = $1", uuid.UUID(tenant_id))

    assert seen.usable
    assert json.loads(stored["llm_tokens"])["groq"]["key"].startswith("enc:")
    assert key not in stored["llm_tokens"]
    assert key not in running.output()
    assert "keys_sealed" in running.output()


def test_both_services_count_their_calls_for_prometheus(running: Stack) -> None:
    ask(running, create_tenant(running))

    router = metrics(running.router_port + 1000)
    usage = metrics(running.usage_port + 1000)

    assert 'method="StreamCompletion"' in router
    assert "turnpike_router_journal_records_total" in router
    assert "grpc_server_handled_total" in usage


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def test_two_instances_stand_side_by_side_and_know_nothing_of_each_other(running: Stack, stack: Stack) -> None:
    tenant_id = create_tenant(running)

    with grpc.insecure_channel(stack.router) as channel, pytest.raises(grpc.RpcError) as refused:
        tenant_service_pb2_grpc.TenantServiceStub(channel).GetTenant(
            tenant_service_pb2.GetTenantRequest(tenant_id=tenant_id), timeout=10
        )

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_s7_when_told_to_stop_a_running_stream_ends_well_and_is_in_the_books(running: Stack, how: str) -> None:
    assert running.process is not None
    tenant_id = create_tenant(running)
    streaming = Streaming(running, tenant_id).start()
    printed = len(running.output())

    if how == "SIGTERM":
        running.process.terminate()
    else:
        os.killpg(running.process.pid, signal.SIGINT)
    code = running.process.wait(60)
    result = streaming.end()
    with EmbeddedPostgres(running.data_dir / "postgres"):
        rows = rows_of(running, tenant_id, 1)

    assert code == 0
    assert isinstance(result, completion_pb2.CompletionResult)
    assert [(str(row["id"]), row["status"]) for row in rows] == [(result.attempts[0].usage_event_id, "success")]
    assert "Traceback" not in running.output()[printed:]
    assert "KeyboardInterrupt" not in running.output()[printed:]


@pytest.mark.parametrize("victim", ["launcher", "router_service"])
def test_u1_after_kill_9_every_finished_stream_is_in_the_books_once_and_the_broken_one_too(
    running: Stack, victim: str
) -> None:
    assert running.process is not None
    tenant_id = create_tenant(running)
    finished = [ask(running, tenant_id)[-1].result for _ in range(3)]
    streaming = Streaming(running, tenant_id).start()

    os.kill(running.process.pid if victim == "launcher" else process_of(running, victim), signal.SIGKILL)
    code = running.process.wait(60)
    broken = streaming.end()
    running.start()
    rows = rows_of(running, tenant_id, 4)

    assert code != 0
    expected = Counter({result.attempts[0].usage_event_id: 1 for result in finished})
    statuses = {str(row["id"]): row["status"] for row in rows}
    assert Counter(str(row["id"]) for row in rows if str(row["id"]) in expected) == expected
    assert len(rows) == 4
    if isinstance(broken, grpc.RpcError):
        assert sorted(statuses.values()) == ["interrupted", "success", "success", "success"]
    else:
        assert statuses[broken.attempts[0].usage_event_id] == "success"
    for result in finished:
        (row,) = [row for row in rows if str(row["id"]) == result.attempts[0].usage_event_id]
        assert (row["input_tokens"], row["output_tokens"]) == (result.input_tokens, result.output_tokens)


def test_s1_after_kill_9_of_postgres_streams_go_on_and_the_launcher_starts_it_again(running: Stack) -> None:
    tenant_id = create_tenant(running)
    ask(running, tenant_id)
    streaming = Streaming(running, tenant_id).start()

    postmaster = EmbeddedPostgres(running.data_dir / "postgres").process_id
    assert postmaster is not None
    os.kill(postmaster, signal.SIGKILL)
    during = ask(running, tenant_id)[-1].result
    before = streaming.end()
    rows = rows_of(running, tenant_id, 3)

    assert isinstance(before, completion_pb2.CompletionResult)
    expected = {during.attempts[0].usage_event_id, before.attempts[0].usage_event_id}
    assert [row["status"] for row in rows] == ["success"] * 3
    assert expected <= {str(row["id"]) for row in rows}
    assert running.process is not None
    assert running.process.poll() is None
    assert "starting it again" in running.output()


@contextmanager
def services_by_hand(machine: Stack) -> Iterator[tuple[Stack, dict[str, subprocess.Popen[bytes]]]]:
    """Postgres and both services without a launcher, which would end them all when one of them ends."""
    with ExitStack() as ends, EmbeddedPostgres(machine.data_dir / "postgres") as postgres:
        stack = Stack(machine.data_dir.with_name("by-hand"), {"TURNPIKE_DATABASE_URL": postgres.dsn})
        processes = {name: start_service(stack, name) for name in ("usage_service", "router_service")}
        ends.callback(lambda: kill(processes.values()))
        wait_for_log(stack, "usage.ready", 1)
        wait_for_log(stack, "router.ready", 1)
        yield stack, processes


def kill(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def start_service(stack: Stack, module: str) -> subprocess.Popen[bytes]:
    with stack.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module], env=stack.variables(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def wait_for_log(stack: Stack, words: str, times: int) -> None:
    assert eventually(lambda: stack.output().count(words), lambda count: count >= times, within_s=60) >= times


def test_s1_completions_go_on_while_usage_service_is_dead_and_reach_the_books_afterwards(machine: Stack) -> None:
    if machine.process is not None and machine.process.poll() is None:
        assert machine.stop() == 0
    with services_by_hand(machine) as (stack, processes):
        tenant_id = create_tenant(stack)
        streaming = Streaming(stack, tenant_id).start()

        processes["usage_service"].kill()
        processes["usage_service"].wait()
        results = [streaming.end(), *(ask(stack, tenant_id)[-1].result for _ in range(2))]
        processes["usage_service"] = start_service(stack, "usage_service")
        rows = rows_of(machine, tenant_id, 3)
        processes["router_service"].terminate()

        assert processes["router_service"].wait(30) == 0
    assert [str(row["id"]) for row in rows] == sorted(
        result.attempts[0].usage_event_id for result in results if isinstance(result, completion_pb2.CompletionResult)
    )
    assert [row["status"] for row in rows] == ["success"] * 3
