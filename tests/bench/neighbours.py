"""How tenant B fares beside tenant A, whose rejected key fails all the time, held against how B fares alone.

A round is three parts of equal length: B alone, B beside A, B alone again. What the two alone differ by is the noise
that any ratio of that run has; a ratio says something only where it is outside of that.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import uvloop

from tests.bench.figures import Figure, Target, percentile
from tests.bench.flood import Told
from tests.bench.processes import idle_s
from tests.bench.routing_site import GOOD, Calls, Site, load

B_PER_S: Final = 40
ANSWER: Final = "ok?n=20&first_ms=100&gap_ms=10"  # 0.3 s, a fast provider: a slower one would hide more
SETTLES_S: Final = 0.7  # journal and reporting lag behind
STANDS_S: Final = 2.0  # until the flood's process has started and the router has taken notice of it


@dataclass(frozen=True, slots=True)
class Rounds:
    """How many, how long each of the three parts of one lasts, and over how many connections each load goes.

    In 8 s B makes 320 calls: the three slowest are the p99.
    """

    count: int = 6
    part_s: float = 8.0
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """B's calls for a while, and the share of one core that was used meanwhile: by B's own load, by the router, and by
    nobody (of all cores together).
    """

    calls: Calls
    load_cores: float
    router_cores: float
    idle_cores: float


@dataclass(frozen=True, slots=True)
class Round:
    """Tenant B alone, beside the flood, which is told by itself, and alone again."""

    before: Part
    beside: Part
    after: Part
    flood: Told
    reached_provider: int

    @property
    def refused_per_s(self) -> float:
        return self.flood.refused / self.flood.seconds

    @property
    def cores_for_refusals(self) -> float:
        """What the router took more than for B alone."""
        return self.beside.router_cores - (self.before.router_cores + self.after.router_cores) / 2

    @property
    def beside_over_alone(self) -> float:
        return self.beside.calls.ms(0.99) / _alone([self]).ms(0.99)

    @property
    def alone_over_alone(self) -> float:
        return self.after.calls.ms(0.99) / self.before.calls.ms(0.99)


def isolation(sites: Sequence[Site], rounds: Rounds, *, failures_per_s: float) -> Sequence[Sequence[Round]]:
    """Rounds with so many calls of A a second, as far as the router takes them: at each of the sites, by turns."""
    tenants = []
    for site in sites:
        tenant_b = site.tenant({"groq": ANSWER})
        tenants.append((site.tenant({"groq": f"{GOOD}&of=a"}, key=f"sk-{secrets.token_hex(16)}"), tenant_b))
        uvloop.run(load(site.router, tenant_b, count=20, per_s=B_PER_S, connections=rounds.connections))  # warm
    found: list[list[Round]] = [[] for _ in sites]
    for _ in range(rounds.count):
        for site, of_site, (tenant_a, tenant_b) in zip(sites, found, tenants, strict=True):
            of_site.append(_round(site, rounds, tenant_a, tenant_b, failures_per_s))
    return found


def _round(site: Site, rounds: Rounds, tenant_a: str, tenant_b: str, failures_per_s: float) -> Round:
    seen = len(site.providers[0].served)
    before = _part(site, rounds, tenant_b)
    with _flooding(site.router, tenant_a, rounds, failures_per_s) as process:
        time.sleep(STANDS_S)
        beside = _part(site, rounds, tenant_b)
        told = Told(**json.loads(process.communicate(timeout=60)[0]))
    time.sleep(SETTLES_S)
    after = _part(site, rounds, tenant_b)
    reached = sum(one.status == 401 for one in site.providers[0].served[seen:])
    return Round(before, beside, after, told, reached)


def _part(site: Site, rounds: Rounds, tenant: str) -> Part:
    own_s, router_s, idle, began_at = time.process_time(), site.router_process.cpu_s(), idle_s(), time.monotonic()
    count = int(rounds.part_s * B_PER_S)
    calls = uvloop.run(load(site.router, tenant, count=count, per_s=B_PER_S, connections=rounds.connections))
    own_s, router_s = time.process_time() - own_s, site.router_process.cpu_s() - router_s
    passed_s = time.monotonic() - began_at
    return Part(calls, own_s / passed_s, router_s / passed_s, (idle_s() - idle) / passed_s)


@contextmanager
def _flooding(router: str, tenant: str, rounds: Rounds, per_s: float) -> Iterator[subprocess.Popen[str]]:
    amounts = [str(per_s), str(STANDS_S + rounds.part_s + 1.0), "--connections", str(rounds.connections)]
    command = [sys.executable, "-m", "tests.bench.flood", router, tenant, *amounts]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def figures_of(rounds: Sequence[Round], *, failures_per_s: float, arm: str = "") -> Sequence[Figure]:
    """What came of the rounds, one sample each; the pooled ratios have one of all."""
    conditions = f"{arm}A at {failures_per_s:g}/s; B: streams of 0.3 s at {B_PER_S}/s"

    def of(name: str, unit: str, samples: Sequence[float], target: Target | None = None) -> Figure:
        return Figure(name, unit, samples, conditions, target)

    pooled = Calls.pooled([r.beside.calls for r in rounds]).ms(0.99) / _alone(rounds).ms(0.99)
    return [
        of("A's calls due", "1/s", [r.flood.due / r.flood.seconds for r in rounds]),
        of("  begun: what its connections had room for", "1/s", [r.flood.begun / r.flood.seconds for r in rounds]),
        of("  refused, those begun before the end", "1/s", [r.refused_per_s for r in rounds]),
        of("  from begin to refusal, p50", "ms", [r.flood.p50_ms for r in rounds]),
        of("  from begin to refusal, p99", "ms", [r.flood.p99_ms for r in rounds]),
        of("  of them that reached the provider", "per round", [float(r.reached_provider) for r in rounds]),
        of("  the router's CPU for each", "ms", [1000 * r.cores_for_refusals / r.refused_per_s for r in rounds]),
        of("  cores: A's load", "", [r.flood.cpu_s / r.flood.seconds for r in rounds]),
        of("  cores: B's load", "", [r.beside.load_cores for r in rounds]),
        of("  cores: the router", "", [r.beside.router_cores for r in rounds]),
        of("  cores: idle", "", [r.beside.idle_cores for r in rounds]),
        of("cores without A: the router", "", [r.before.router_cores for r in rounds]),
        of("cores without A: idle", "", [r.before.idle_cores for r in rounds]),
        of("B served beside A", "%", [_served(r.beside.calls) for r in rounds], Target(100.0, is_at_most=False)),
        of("B p50 alone", "ms", [_alone([r]).ms(0.5) for r in rounds]),
        of("B p50 beside A", "ms", [r.beside.calls.ms(0.5) for r in rounds]),
        of("B's load late by itself, p99 alone", "ms", [_late_ms(r.before, r.after) for r in rounds]),
        of("B's load late by itself, p99 beside A", "ms", [_late_ms(r.beside) for r in rounds]),
        of("B p99 alone", "ms", [_alone([r]).ms(0.99) for r in rounds]),
        of("B p99 beside A", "ms", [r.beside.calls.ms(0.99) for r in rounds]),
        of("B p99 beside A over alone", "x", [r.beside_over_alone for r in rounds], Target(1.05)),
        of("  noise: B alone over B alone", "x", [r.alone_over_alone for r in rounds]),
        of("  beside over alone, all rounds pooled", "x", [pooled], Target(1.05)),
    ]


def _alone(rounds: Sequence[Round]) -> Calls:
    return Calls.pooled(part.calls for r in rounds for part in (r.before, r.after))


def _late_ms(*parts: Part) -> float:
    return percentile(sorted(ms for part in parts for ms in part.calls.late_ms), 0.99)


def _served(calls: Calls) -> float:
    return 100 * calls.served / (calls.served + calls.failed)
