"""A stream from a real OpenAI-compatible server that nobody here wrote, through the whole of Turnpike.

Run by `make test-real`, which compiles llama-cpp-python into an environment of its own and names its interpreter in
LLAMA_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.ports import free_ports
from tests.support.stack import Stack
from turnpike.router.v1 import completion_pb2, router_service_pb2, router_service_pb2_grpc
from turnpike.usage.v1 import token_usage_pb2, usage_service_pb2, usage_service_pb2_grpc

TENANT = "018f0000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running llama.cpp server with a tiny random model."""
    python = os.environ["LLAMA_PYTHON"]
    directory = Path(tmp_path_factory.mktemp("llama"))
    model = directory / "tiny.gguf"
    subprocess.run([python, str(Path(__file__).with_name("tiny_model.py")), str(model)], check=True)
    port = free_ports()
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [python, "-m", "llama_cpp.server", "--model", str(model), "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/v1"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/models", timeout=2).close()
            break
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, (directory / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(20)


def test_a_stream_from_a_real_server_is_relayed_and_accounted(llama: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", {"ROUTER_LOCAL_BASE_URL": llama, "ROUTER_LOCAL_MODEL": "tiny-random"}).start()
    request = router_service_pb2.StreamCompletionRequest(
        tenant_id=TENANT,
        provider="local",
        messages=[completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="Say something.")],
        sampling=completion_pb2.Sampling(max_output_tokens=24, seed=7, temperature=0.8),
    )
    with grpc.insecure_channel(stack.router) as router, grpc.insecure_channel(stack.usage) as usage:
        events = list(router_service_pb2_grpc.RouterServiceStub(router).StreamCompletion(request, timeout=60))
        rows = usage_service_pb2_grpc.UsageServiceStub(usage)
        deadline = time.monotonic() + 10
        while True:
            records = rows.ListUsageRecords(usage_service_pb2.ListUsageRecordsRequest(tenant_id=TENANT)).records
            if records or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    assert stack.stop() == 0

    for event in events:
        print(str(event).replace("\n", " "))
    for record in records:
        print(str(record).replace("\n", " "))
    result = events[-1].result
    assert events[0].WhichOneof("event") == "route_chosen"
    assert "".join(event.delta.text for event in events)
    assert result.finish_reason in {completion_pb2.FINISH_REASON_LENGTH, completion_pb2.FINISH_REASON_STOP}
    # llama-cpp-python reports no usage in a stream, so the counts are ours and say so.
    assert result.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_ESTIMATED
    assert len(records) == 1
    assert records[0].event.token_usage.output_tokens == result.output_tokens > 0
    assert float(records[0].cost_usd) == 0
    assert records[0].pricing_state == token_usage_pb2.PRICING_STATE_PRICED
