"""What a caller can rely on while providers and other tenants misbehave, measured through the real router.

    make bench-routing        or        python -m tests.bench.isolation [--smoke]

- *amplification*: requests that the providers saw for each request of a caller, while half of what they answer is 503;
- *isolation*: how tenant B's latency changes while tenant A's rejected key fails 1,000 times a second, in rounds with
  and without A by turns; what differs between B's own rounds without A says how far to trust the ratio;
- *all breakers open*: how soon a caller is told that nobody can serve.

Everything runs on this machine: providers, router, ledger, Postgres and both loads share its cores. What the loads and
the router took of them is among the figures, and what was left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import grpc
import uvloop
from rich.console import Console

from tests.bench.figures import Figure, Target, percentile
from tests.bench.flood import HELLO, Told
from tests.bench.processes import Tree, child_running
from tests.bench.report import machine, print_figures
from tests.support.provider_server import ProviderProcess
from tests.support.stack import Stack
from turnpike.router.v1 import (
    router_service_pb2,
    router_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)

FLOOD_PER_S: Final = 1000
B_PER_S: Final = 40
ANSWER: Final = "ok?n=20&first_ms=100&gap_ms=10"  # 0.3 s, a fast provider: a slower one would hide more
OF_B: Final = f"tenant B, streams of 0.3 s at {B_PER_S}/s"
GOOD: Final = "ok?n=2&first_ms=20"


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds, and how long each load lasts."""

    rounds: int = 6
    round_s: float = 6.0
    brown_out_requests: int = 1000
    brown_out_per_s: float = 50.0
    refusals: int = 300
    failures_per_s: float = FLOOD_PER_S


SMOKE: Final = Plan(rounds=1, round_s=1.0, brown_out_requests=100, refusals=30)


@dataclass(frozen=True, slots=True)
class Site:
    """A Turnpike with two scripted providers; groq takes only the key of tenant B."""

    router: str
    providers: Sequence[ProviderProcess]
    good_key: str
    router_process: Tree

    def tenant(self, models: dict[str, str], *, key: str | None = None) -> str:
        """A tenant with keys of its own, who prefers groq."""
        with grpc.insecure_channel(self.router) as channel:
            stub = tenant_service_pb2_grpc.TenantServiceStub(channel)
            config = tenant_service_pb2.InferenceConfig(
                preferred_provider="groq", preferred_models=models, allowed_providers=list(models)
            )
            keys = dict.fromkeys(models, key or self.good_key)
            request = tenant_service_pb2.CreateTenantRequest(name="t", inference_config=config, provider_tokens=keys)
            return stub.CreateTenant(request, timeout=10).tenant.id

    def requests_seen(self, *models: str) -> int:
        """Completions for these models that the providers have logged, once all have ended."""
        time.sleep(0.5)
        return sum(one.model in models for provider in self.providers for one in provider.served)


@contextmanager
def running_site() -> Iterator[Site]:
    """Everything on loopback and free ports, with data of its own; without default limits, which would turn B away."""
    good_key = f"sk-{secrets.token_hex(16)}"
    with tempfile.TemporaryDirectory(prefix="turnpike-isolation-") as directory:
        paths = [Path(directory) / name for name in ("groq", "openrouter")]
        for path in paths:
            path.mkdir()
        with ProviderProcess(paths[0], "--accept-key", good_key) as groq, ProviderProcess(paths[1]) as openrouter:
            stack = Stack(
                Path(directory) / "data",
                {
                    "ROUTER_GROQ_BASE_URL": groq.base_url,
                    "ROUTER_OPENROUTER_BASE_URL": openrouter.base_url,
                    "ROUTER_ALLOWED_NETWORKS": "127.0.0.1",
                    "ROUTER_MAX_RUNNING_PER_TENANT": "256",
                    "USAGE_LIMITS": "{}",
                },
            ).start()
            try:
                assert stack.process is not None
                router = Tree(child_running(stack.process.pid, "router_service"))
                yield Site(stack.router, (groq, openrouter), good_key, router)
            finally:
                stack.stop()
                stack.kill()


@dataclass(slots=True)
class Calls:
    """What became of a load's calls, and milliseconds from the intended start to the end of each."""

    served: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.errors.total()


async def load(router: str, tenant: str, *, count: int, per_s: float) -> Calls:
    """An open loop: `per_s` streams are begun each second, however the others fare."""
    calls = Calls()
    request = router_service_pb2.StreamCompletionRequest(tenant_id=tenant, messages=[HELLO])
    # A connection of its own: two loads over one would wait for each other's streams.
    async with grpc.aio.insecure_channel(router, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        begins_at = time.monotonic() + 0.2

        async def one(number: int) -> None:
            intended_at = begins_at + number / per_s
            await asyncio.sleep(max(0.0, intended_at - time.monotonic()))
            try:
                async for _ in stub.StreamCompletion(request, timeout=30):
                    pass
                calls.served += 1
            except grpc.aio.AioRpcError as error:
                calls.errors[f"{error.code().name}: {error.details()}"] += 1
            calls.latencies_ms.append((time.monotonic() - intended_at) * 1000)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
    calls.latencies_ms.sort()
    return calls


def brown_out(site: Site, plan: Plan, *, both: bool) -> tuple[float, float]:
    """Attempts that the providers saw for each request, and the share of callers that were served."""
    mark = secrets.token_hex(4)
    sick = f"flaky?percent=50&code=503&n=2&first_ms=20&mark={mark}"
    other = f"{sick}&other=1" if both else f"{GOOD}&mark={mark}"
    tenant = site.tenant({"groq": sick, "openrouter": other})
    calls = uvloop.run(load(site.router, tenant, count=plan.brown_out_requests, per_s=plan.brown_out_per_s))
    return site.requests_seen(sick, other) / plan.brown_out_requests, calls.served / plan.brown_out_requests


@dataclass(frozen=True, slots=True)
class Half:
    """B's calls for a while, and the share of one core that was used meanwhile: by B's own load, by the router, and by
    nobody (of all cores together).
    """

    calls: Calls
    load_cores: float
    router_cores: float
    idle_cores: float


@dataclass(frozen=True, slots=True)
class Round:
    """Tenant B alone, and beside the flood, which is told by itself."""

    alone: Half
    beside: Half
    flood: Told
    reached_provider: int

    @property
    def refused_per_s(self) -> float:
        return self.flood.refused / self.flood.seconds

    @property
    def router_ms_per_refusal(self) -> float:
        return 1000 * (self.beside.router_cores - self.alone.router_cores) / self.refused_per_s


def isolation(site: Site, plan: Plan) -> Sequence[Round]:
    """B's calls without and with A's, in turn; who begins alternates."""
    of_a = f"{GOOD}&of=a"
    tenant_b, tenant_a = site.tenant({"groq": ANSWER}), site.tenant({"groq": of_a}, key=f"sk-{secrets.token_hex(16)}")
    uvloop.run(load(site.router, tenant_b, count=20, per_s=B_PER_S))  # warm
    rounds = []
    for number in range(plan.rounds):
        halves: dict[bool, Half] = {}
        told = Told()
        before = len(site.providers[0].served)
        for with_flood in (False, True) if number % 2 == 0 else (True, False):
            if with_flood:
                with _flooding(site.router, tenant_a, plan) as process:
                    time.sleep(0.7)
                    halves[True] = _of_b(site, tenant_b, plan)
                    told = Told(**json.loads(process.communicate(timeout=60)[0]))
            else:
                halves[False] = _of_b(site, tenant_b, plan)
            time.sleep(0.7)  # journal and reporting lag behind
        reached = sum(one.status == 401 for one in site.providers[0].served[before:])
        rounds.append(Round(halves[False], halves[True], told, reached))
    return rounds


def _of_b(site: Site, tenant: str, plan: Plan) -> Half:
    own_s, router_s, idle_s, began_at = time.process_time(), site.router_process.cpu_s(), _idle_s(), time.monotonic()
    calls = uvloop.run(load(site.router, tenant, count=int(plan.round_s * B_PER_S), per_s=B_PER_S))
    own_s, router_s = time.process_time() - own_s, site.router_process.cpu_s() - router_s
    passed_s = time.monotonic() - began_at
    return Half(calls, own_s / passed_s, router_s / passed_s, (_idle_s() - idle_s) / passed_s)


def _idle_s() -> float:
    """Seconds that the machine's cores have been idle or waiting for a disk, together, since it was started."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _flooding(router: str, tenant: str, plan: Plan) -> Iterator[subprocess.Popen[str]]:
    amounts = [str(plan.failures_per_s), str(plan.round_s + 1.0)]
    command = [sys.executable, "-m", "tests.bench.flood", router, tenant, *amounts]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def open_breakers(site: Site, plan: Plan) -> Calls:
    """Refusals while the breakers of both providers are open. One call after the other."""
    mark = secrets.token_hex(4)
    dead = {name: f"status?code=500&mark={mark}{name}" for name in ("groq", "openrouter")}
    tenant = site.tenant(dead)
    uvloop.run(load(site.router, tenant, count=10, per_s=20))  # opens both
    before = site.requests_seen(*dead.values())
    calls = uvloop.run(load(site.router, tenant, count=plan.refusals, per_s=100))
    assert calls.served == 0
    probes = site.requests_seen(*dead.values()) - before
    assert probes <= 2 * (1 + plan.refusals / 100 / 5 * 2), f"{probes} requests went through open breakers"
    return calls


def figures(site: Site, plan: Plan) -> Sequence[Figure]:
    one, both = brown_out(site, plan, both=False), brown_out(site, plan, both=True)
    rounds, refused = isolation(site, plan), open_breakers(site, plan)
    load_of = f"{plan.brown_out_requests} requests at {plan.brown_out_per_s:g}/s, counted at the providers"
    return [
        Figure("amplification, one provider half sick", "x", [one[0]], load_of, Target(1.2)),
        Figure("  callers served", "%", [one[1] * 100], load_of, Target(99.5, is_at_most=False)),
        Figure("amplification, both providers half sick", "x", [both[0]], load_of, Target(1.2)),
        Figure("  callers served", "%", [both[1] * 100], load_of),
        *_of_rounds(rounds, OF_B),
        Figure("all breakers open: refusal p50", "ms", [_p(refused, 0.5)], "100/s", Target(20.0)),
        Figure("all breakers open: refusal p99", "ms", [_p(refused, 0.99)], "100/s", Target(20.0)),
        Figure("all breakers open: refusal, slowest", "ms", [_p(refused, 1.0)], "100/s"),
    ]


def _of_rounds(rounds: Sequence[Round], conditions: str) -> Sequence[Figure]:
    def of(name: str, unit: str, samples: Sequence[float], target: Target | None = None) -> Figure:
        return Figure(name, unit, samples, conditions, target)

    served = [100 * r.beside.calls.served / (r.beside.calls.served + r.beside.calls.failed) for r in rounds]
    alone, beside = _pooled([r.alone for r in rounds]), _pooled([r.beside for r in rounds])
    even, odd = _pooled([r.alone for r in rounds[::2]]), _pooled([r.alone for r in rounds[1::2]])
    found = [
        of("A's refusals while B is measured", "1/s", [r.refused_per_s for r in rounds]),
        of("  of them that reached the provider", "per round", [float(r.reached_provider) for r in rounds]),
        of("  the router's CPU for each", "ms", [r.router_ms_per_refusal for r in rounds]),
        of("  cores: A's load", "", [r.flood.cpu_s / r.flood.seconds for r in rounds]),
        of("  cores: B's load", "", [r.beside.load_cores for r in rounds]),
        of("  cores: the router", "", [r.beside.router_cores for r in rounds]),
        of("  cores: idle", "", [r.beside.idle_cores for r in rounds]),
        of("cores idle without A", "", [r.alone.idle_cores for r in rounds]),
        of("B served beside A", "%", served, Target(100.0, is_at_most=False)),
        of("B p50 alone", "ms", [_p(r.alone.calls, 0.5) for r in rounds]),
        of("B p50 beside A", "ms", [_p(r.beside.calls, 0.5) for r in rounds]),
        of("B p99 alone", "ms", [_p(r.alone.calls, 0.99) for r in rounds]),
        of("B p99 beside A", "ms", [_p(r.beside.calls, 0.99) for r in rounds]),
        of(
            "B p99 beside A over alone",
            "x",
            [_p(r.beside.calls, 0.99) / _p(r.alone.calls, 0.99) for r in rounds],
            Target(1.05),
        ),
        of("  over all calls of all rounds", "x", [_p(beside, 0.99) / _p(alone, 0.99)], Target(1.05)),
    ]
    if len(rounds) > 1:
        found.append(of("  B alone over B alone, every other round", "x", [_p(odd, 0.99) / _p(even, 0.99)]))
    return found


def _pooled(halves: Sequence[Half]) -> Calls:
    return Calls(latencies_ms=sorted(ms for half in halves for ms in half.calls.latencies_ms))


def _p(calls: Calls, fraction: float) -> float:
    return percentile(calls.latencies_ms, fraction)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.isolation", description="Measure failover and isolation."
    )
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--only-isolation", action="store_true", help="leave out brown-outs and open breakers")
    parser.add_argument("--failures-per-s", type=float, default=FLOOD_PER_S, help="of tenant A; default: %(default)s")
    options = parser.parse_args()
    plan = replace(SMOKE if options.smoke else Plan(), failures_per_s=options.failures_per_s)
    conditions = machine()
    with running_site() as site:
        found = _of_rounds(isolation(site, plan), OF_B) if options.only_isolation else figures(site, plan)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    print_figures(console, found, f"{conditions}; B and A alternate, medians of the rounds; loads share the machine")


if __name__ == "__main__":
    main()
