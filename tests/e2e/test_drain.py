"""S7: what SIGTERM does to a router that is serving, in its order: say so, accept a while, finish, cut, send, end."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from service_runtime.embedded_postgres import EmbeddedPostgres
from tests.support.forked import Nursery
from tests.support.forked_site import RouterUnderTest, Site, eventually
from tests.support.postgres import dsn_of
from tests.support.provider_server import ProviderProcess
from turnpike.router.v1 import completion_pb2

COMPLETIONS = "turnpike.router.v1.RouterService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def site(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = Path(tmp_path_factory.mktemp("site"))
    dsn = dsn_of(postgres_server, f"drain_{uuid.uuid4().hex}")
    with Nursery() as nursery, ProviderProcess(directory) as provider:
        site = Site(nursery, dsn, provider, directory)
        site.start_usage()
        yield site


@pytest.fixture
def router(site: Site, tmp_path: Path) -> Iterator[RouterUnderTest]:
    router = RouterUnderTest(site, tmp_path / "router")
    yield router
    if router.process is not None:
        router.process.kill()


def begun(router: RouterUnderTest, threads: ThreadPoolExecutor, scripts: list[str]) -> list[Future[str]]:
    """Streams that run, each with its attempt in the journal."""
    streams = [threads.submit(router.ask, script) for script in scripts]
    assert eventually(router.opened, lambda opened: opened == len(scripts)) == len(scripts)
    return streams


def watched_health(port: int, seen: list[int], is_over: threading.Event) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            for answer in stub.Watch(health_pb2.HealthCheckRequest(service=COMPLETIONS), timeout=30):
                seen.append(answer.status)  # noqa: PERF401 - one by one, as they come
        except grpc.RpcError:
            pass  # it ends with the server
        is_over.set()


def test_s7_health_says_so_first_new_calls_are_still_taken_and_every_stream_ends_well(router: RouterUnderTest) -> None:
    process = router.start(settings={"ROUTER_DRAIN_DELAY_S": "1.5"})
    seen: list[int] = []
    is_over = threading.Event()
    threading.Thread(target=watched_health, args=(router.port, seen, is_over), daemon=True).start()
    eventually(lambda: seen[:1], lambda first: first == [SERVING])
    with ThreadPoolExecutor(8) as threads:
        running = begun(router, threads, ["ok?n=3&gap_ms=700"] * 8)
        process.send(signal.SIGTERM)
        eventually(lambda: seen[1:], lambda then: then == [NOT_SERVING])
        late = router.ask()
        for stream in running:
            stream.result()

    assert process.wait() == 0
    assert is_over.wait(10)
    assert seen == [SERVING, NOT_SERVING]
    assert late in router.history.results
    assert len(router.history.results) == 9
    assert router.waiting() == 0, "what was settled was sent before the end"
    router.check()


def test_s7_u2_when_the_grace_is_over_streams_are_cut_with_what_they_have_used(router: RouterUnderTest) -> None:
    process = router.start(settings={"ROUTER_DRAIN_GRACE_S": "0.5"})
    with ThreadPoolExecutor(3) as threads:
        cut, finished, silent = begun(router, threads, ["ok?n=100&gap_ms=200", "ok?n=3&gap_ms=50", "ok?first_ms=60000"])
        time.sleep(0.3)  # some tokens of the long one
        process.send(signal.SIGTERM)
        models = [stream.result() for stream in (cut, finished, silent)]

    assert process.wait() == 0
    assert set(router.history.results) == {models[1]}
    errors = [router.history.failures[model] for model in (models[0], models[2])]
    assert [error.code() for error in errors] == [grpc.StatusCode.UNAVAILABLE] * 2
    failure = completion_pb2.CompletionFailure()
    status = rpc_status.from_call(errors[0])  # type: ignore[arg-type]  # an error of a call is one
    assert status is not None
    assert any(detail.Unpack(failure) for detail in status.details)
    assert failure.partial_usage.output_tokens > 0
    rows = {row["model_name"]: row for row in router.rows()}
    assert [rows[model]["status"] for model in models] == ["interrupted", "success", "interrupted"]
    assert [rows[model]["usage_source"] for model in models] == ["estimated", "provider", "estimated"]
    assert rows[models[0]]["output_tokens"] == failure.partial_usage.output_tokens
    router.check()


def test_s7_a_second_signal_ends_it_at_once_and_the_journal_knows_the_rest(router: RouterUnderTest) -> None:
    process = router.start()
    with ThreadPoolExecutor(1) as threads:
        (stream,) = begun(router, threads, ["ok?n=100&gap_ms=200"])
        process.send(signal.SIGTERM)
        process.wait_until_logged("process.stopping")
        process.send(signal.SIGTERM)
        code = process.wait(within_s=5)
        model = stream.result()

    assert code == 128 + signal.SIGTERM
    router.check()
    (row,) = [row for row in router.rows() if row["model_name"] == model]
    assert (row["status"], row["usage_source"]) == ("interrupted", "estimated")


@pytest.mark.parametrize("words", ["journal", "router.ready"])
def test_s7_a_signal_during_or_right_after_the_start_ends_it_cleanly(router: RouterUnderTest, words: str) -> None:
    process = router.launch()
    if words == "router.ready":
        process.wait_until_logged(words)
    else:
        eventually((router.journal / "journal.sqlite").exists, bool)
    process.send(signal.SIGTERM)

    assert process.wait() == 0, process.output()
    router.check()
