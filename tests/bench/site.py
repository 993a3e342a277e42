"""What a run measures, started and ended together: provider, Turnpike, naive proxy, load."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc

from tests.bench.processes import BenchFailed, Helper, Tree, child_running
from tests.support.stack import Stack
from turnpike.router.v1 import tenant_service_pb2, tenant_service_pb2_grpc

_TENANTS = 4  # one alone may not have as many completions running as the bench wants
_START_S = 20.0
_RUNNING = "grpc_server_in_flight "


@dataclass(frozen=True, slots=True)
class Site:
    """Addresses and processes of a run."""

    provider: str
    router: str
    naive: str
    usage: str
    tenants: Sequence[str]
    router_metrics: str
    router_process: Tree
    naive_process: Tree
    usage_process: Tree
    load: Helper
    usage_events: Helper

    def run(self, kind: str, target: str, *, within_s: float, **command: Any) -> Mapping[str, Any]:
        """Have the load process carry out one command; its answer. Raises BenchFailed when a call failed."""
        self.begin(kind, target, **command)
        return self.finish(within_s=within_s)

    def begin(self, kind: str, target: str, **command: Any) -> None:
        """Have the load process begin with one command; nothing else may be asked of it before `finish`."""
        self.load.write_line(json.dumps({"kind": kind, "target": target, **command}))

    def finish(self, *, within_s: float) -> Mapping[str, Any]:
        """The answer to the command that was begun. Raises BenchFailed when a call failed."""
        answer: dict[str, Any] = json.loads(self.load.read_line(within_s=within_s))
        if failure := answer.get("failure"):
            raise BenchFailed(f"load: {failure}")
        return answer

    def calls_running(self) -> int:
        """How many calls the router is busy with, by its own count. Raises BenchFailed when it does not say."""
        with urlopen(f"http://{self.router_metrics}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(_RUNNING):
                    return round(float(line.rpartition(" ")[2]))
        raise BenchFailed(f"the router's metrics have no {_RUNNING.strip()}")


@contextmanager
def running_site(settings: Mapping[str, str] | None = None) -> Iterator[Site]:
    """Everything on loopback and free ports, with data of its own in a directory that is removed at the end."""
    with ExitStack() as ends:
        directory = Path(tempfile.mkdtemp(prefix="turnpike-bench-"))
        ends.callback(shutil.rmtree, directory, ignore_errors=True)
        provider = ends.enter_context(Helper("tests.bench.fake_provider"))
        provider_address = f"127.0.0.1:{int(provider.read_line(within_s=_START_S))}"
        # All start at once and are waited for afterwards: a start is mostly imports, on one core each.
        naive = ends.enter_context(Helper("tests.bench.naive", f"http://{provider_address}/v1"))
        load = ends.enter_context(Helper("tests.bench.load"))
        usage_events = ends.enter_context(Helper("tests.bench.usage_event"))
        stack = Stack(
            directory / "data",
            {
                "ROUTER_LOCAL_BASE_URL": f"http://{provider_address}/v1",
                "ROUTER_LOCAL_MODEL": "burst",
                **(settings or {}),
            },
        )
        ends.callback(_stop, stack)
        stack.start()
        assert stack.process is not None
        naive_address = f"127.0.0.1:{int(naive.read_line(within_s=_START_S))}"
        for helper in (load, usage_events):
            helper.read_line(within_s=_START_S)
        yield Site(
            provider=provider_address,
            router=stack.router,
            naive=naive_address,
            usage=stack.usage,
            tenants=_create_tenants(stack.router),
            router_metrics=f"127.0.0.1:{stack.router_port + 1000}",
            router_process=Tree(child_running(stack.process.pid, "router_service")),
            naive_process=Tree(naive.pid),
            usage_process=Tree(child_running(stack.process.pid, "usage_service")),
            load=load,
            usage_events=usage_events,
        )


def _create_tenants(router: str) -> Sequence[str]:
    config = tenant_service_pb2.InferenceConfig(preferred_provider="local", allowed_providers=["local"])
    with grpc.insecure_channel(router) as channel:
        stub = tenant_service_pb2_grpc.TenantServiceStub(channel)
        return [
            stub.CreateTenant(
                tenant_service_pb2.CreateTenantRequest(name=f"Bench {number}", inference_config=config), timeout=10
            ).tenant.id
            for number in range(_TENANTS)
        ]


def _stop(stack: Stack) -> None:
    if stack.process is None:
        return
    try:
        exit_code = stack.stop()
    finally:
        stack.kill()
    if exit_code != 0:
        print(f"Turnpike ended with exit code {exit_code}:\n{stack.output()}", file=sys.stderr)
