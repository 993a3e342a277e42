"""S3: whatever bytes a provider sends (B6 to B9), the router stays small and well, and says what was wrong.

The memory is that of the router's process, at its highest, as the kernel counts it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.provider_garbage import ANSWERS, STREAMS
from tests.support.provider_server import ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    completion_pb2,
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from turnpike.usage.v1 import token_usage_pb2

MAX_GROWTH_MIB = 32  # an answer of 4 MiB, an event of 4 MiB, a few copies of each, and what the allocator keeps
CLOCKS = '{"connect_s": 2, "first_content_s": 1.5, "content_gap_s": 1.5, "total_s": 10}'
HELLO = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="one two three")


@dataclass(frozen=True)
class Site:
    """A running Turnpike whose only provider sends what it is told to."""

    stack: Stack
    provider: ProviderProcess
    target: ProviderProcess
    router: router_service_pb2_grpc.RouterServiceStub
    tenants: tenant_service_pb2_grpc.TenantServiceStub
    pid: int

    def ask(self, model: str) -> tuple[str, completion_pb2.CompletionResult]:
        """The text and the result of a stream, for a tenant of its own."""
        answer = self.tenants.CreateTenant(
            tenant_service_pb2.CreateTenantRequest(
                name="t",
                inference_config=tenant_service_pb2.InferenceConfig(
                    preferred_models={"groq": model}, allowed_providers=["groq"], auto_failover=False
                ),
                provider_tokens={"groq": f"sk-canary-{secrets.token_hex(12)}"},
            )
        )
        request = router_service_pb2.StreamCompletionRequest(tenant_id=answer.tenant.id, messages=[HELLO])
        events = list(self.router.StreamCompletion(request, timeout=30))
        return "".join(event.delta.text for event in events), events[-1].result

    def refusal(self, model: str) -> tuple[str, str]:
        """The reason and the class of the failure of such a stream."""
        with pytest.raises(grpc.RpcError) as refused:
            self.ask(model)
        status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
        assert status is not None, refused.value
        info = error_details_pb2.ErrorInfo()
        assert any(detail.Unpack(info) for detail in status.details)
        return info.reason, info.metadata["error_class"]

    def assert_well(self, highest_before_mib: float) -> None:
        """The same process serves the next request as if nothing had been, and has not grown much."""
        assert self.ask("ok?n=2")[0] == "tok0 tok1 "
        assert router_pid(self.stack) == self.pid
        assert memory_mib(self.pid, "VmHWM") - highest_before_mib <= MAX_GROWTH_MIB
        assert "Traceback" not in self.stack.output()


def router_pid(stack: Stack) -> int:
    assert stack.process is not None
    parents = [stack.process.pid]
    for parent in parents:  # grows while it is read
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            for child in map(int, tasks.read_text().split()):
                if b"router_service" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    return child
                parents.append(child)
    raise AssertionError("there is no process of the router")


def memory_mib(pid: int, field: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = Path(tmp_path_factory.mktemp("garbage"))
    for name in ("provider", "target"):
        (directory / name).mkdir()
    with ProviderProcess(directory / "provider") as provider, ProviderProcess(directory / "target") as target:
        stack = Stack(
            directory / "data",
            {
                "ROUTER_GROQ_BASE_URL": provider.base_url,
                "ROUTER_ALLOWED_NETWORKS": "127.0.0.1",
                "ROUTER_PROVIDER_CLOCKS": f'{{"groq": {CLOCKS}}}',
            },
        ).start()
        with grpc.insecure_channel(stack.router) as channel:
            site = Site(
                stack,
                provider,
                target,
                router_service_pb2_grpc.RouterServiceStub(channel),
                tenant_service_pb2_grpc.TenantServiceStub(channel),
                router_pid(stack),
            )
            site.ask("ok?n=2")
            yield site
        assert stack.stop() == 0, stack.output()


@pytest.fixture
def highest_mib(site: Site) -> float:
    """What the router holds now; from now on its high-water mark counts anew."""
    Path(f"/proc/{site.pid}/clear_refs").write_text("5")
    return memory_mib(site.pid, "VmRSS")


@pytest.mark.parametrize("split", [1, 3, 1 << 20])
@pytest.mark.parametrize("what", STREAMS)
def test_an_odd_stream_means_what_it_says_however_its_bytes_arrive(
    site: Site, highest_mib: float, what: str, split: int
) -> None:
    odd = STREAMS[what]

    text, result = site.ask(f"events?what={quote_plus(what)}&split={split}")

    assert text == odd.text
    if odd.output_tokens is None:
        assert result.usage_source != token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER
    else:
        assert result.usage_source == token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER
        assert result.output_tokens == odd.output_tokens
    assert 0 <= result.total_tokens < 1000
    site.assert_well(highest_mib)


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/json"])
def test_a_stream_under_another_name_is_read_all_the_same(site: Site, highest_mib: float, kind: str) -> None:
    assert site.ask(f"events?what=a+NUL&type={quote_plus(kind)}")[0] == STREAMS["a NUL"].text
    site.assert_well(highest_mib)


@pytest.mark.parametrize("what", ANSWERS)
def test_what_is_no_answer_is_one_clear_error(site: Site, highest_mib: float, what: str) -> None:
    reason, failed = site.refusal(f"raw?what={quote_plus(what)}&split=65536")

    assert reason == "ALL_TARGETS_FAILED"
    assert failed in {"transport_failed", "protocol_violation", "upstream_broken"}
    site.assert_well(highest_mib)


@pytest.mark.parametrize(
    ("script", "reason", "failed"),
    [
        ("huge-line?mib=300", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("flood?size=1000", "STREAM_INTERRUPTED", "protocol_violation"),
        ("flood?what=comments&burst=10000", "ALL_TARGETS_FAILED", "timed_out"),
        ("flood?what=empty&burst=1000", "ALL_TARGETS_FAILED", "timed_out"),
        ("trickle?gap_ms=50", "ALL_TARGETS_FAILED", "timed_out"),
        ("trickle?gap_ms=50&after=2&what=empty", "STREAM_INTERRUPTED", "timed_out"),
        ("gzip?mib=1000", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("gzip?mib=1000&code=500", "ALL_TARGETS_FAILED", "upstream_broken"),
        ("gzip?mib=10&as=br", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("gzip?mib=10&as=zstd&code=429", "RATE_LIMITED", "rate_limited"),
        ("status?code=500&pad=8000000", "ALL_TARGETS_FAILED", "upstream_broken"),
        ("whole?pad=8000000", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("garbage?kind=deep", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("garbage?kind=html", "ALL_TARGETS_FAILED", "protocol_violation"),
        ("garbage?kind=bytes", "ALL_TARGETS_FAILED", "upstream_broken"),
        ("huge-headers?size=300000", "ALL_TARGETS_FAILED", "transport_failed"),
        ("huge-headers?size=10&n=1000", "ALL_TARGETS_FAILED", "transport_failed"),
        ("events?what=a+NUL&type=text/html", "ALL_TARGETS_FAILED", "protocol_violation"),
    ],
)
def test_too_much_of_anything_is_cut_off_in_bounded_memory(
    site: Site, highest_mib: float, script: str, reason: str, failed: str
) -> None:
    assert site.refusal(script) == (reason, failed)
    site.assert_well(highest_mib)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(site: Site, highest_mib: float, code: int) -> None:
    to = quote_plus(f"{site.target.base_url}/chat/completions")

    assert site.refusal(f"redirect?code={code}&to={to}") == ("ALL_TARGETS_FAILED", "protocol_violation")
    assert site.target.served == []
    site.assert_well(highest_mib)
