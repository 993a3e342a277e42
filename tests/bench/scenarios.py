"""What is measured, and how. Router and naive proxy take turns, so that a neighbour's noise falls on both."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.fake_provider import DELTAS, GAP_S, LONG_BYTES, LONG_DELTAS
from tests.bench.figures import Figure, Target, percentile
from tests.bench.frozen import frozen_readers
from tests.bench.load import CHANNELS
from tests.bench.pair import Pair
from tests.bench.processes import Tree
from tests.bench.site import Site
from tests.bench.usage_event import AT_ONCE

ROUTER, NAIVE, DIRECT = "router", "naive", "direct"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Counts are per round; the naive proxy does less, because it takes longer."""

    rounds: int = 3
    warm_up: int = 200
    burst: int = 1_000
    naive_burst: int = 300
    paced: int = 256
    unary: int = 1_000
    naive_unary: int = 500
    saturation: int = 1_500
    workers_burst: int = 1_500
    memory_blocks: int = 4
    memory_block: int = 5_000
    frozen: int = 1_000
    open_loop: int = 120
    batches: int = 24
    usage_events: int = 6_400
    reports: int = 200
    settle_s: float = 0.7  # after each load: what it left to be done, such as reporting usage, belongs to its cost
    pair_starts_first: bool = True  # else while the first loads run, which saves seconds and spoils figures


FULL: Final = Plan()
SMOKE: Final = Plan(
    rounds=1,
    warm_up=16,
    burst=64,
    naive_burst=32,
    paced=32,
    unary=64,
    naive_unary=32,
    saturation=64,
    workers_burst=64,
    memory_blocks=2,
    memory_block=50,
    frozen=50,
    open_loop=10,
    batches=2,
    usage_events=320,
    reports=20,
    settle_s=0.1,
    pair_starts_first=False,
)

_CPU_IN_FLIGHT = 32
_SATURATION_IN_FLIGHT = 64
_RATE_PER_S = 20.0
_BATCH_EVENTS = 500
_BATCHES_IN_FLIGHT = 4
_REPORT_DAYS = 30
_LOAD_TIMEOUT_S = 60.0

# Default limits let a provider have 256 requests at a time, and 250 wait: too few for a thousand readers at once.
SETTINGS: Final = {
    "ROUTER_MAX_RUNNING_PER_TENANT": "300",
    "ROUTER_MAX_RUNNING_PER_PROVIDER": "1024",
    "ROUTER_MAX_WAITING_RPCS": "2000",
}

# Where the contract of a figure is kept: its unit, its target, and under what conditions it holds.
_CPU = f"user + system time of the proxy's process, {_CPU_IN_FLIGHT} in flight over {CHANNELS} connections"
_STREAM = f"{DELTAS}-delta stream"
_PACED_STREAM = f"{_STREAM}, deltas {GAP_S * 1e3:g} ms apart"
_ADDED = (
    f"over the same call straight to the provider; open loop at {_RATE_PER_S:g}/s from the intended start, "
    f"{FULL.open_loop} calls a round"
)
_SHARED = "load, provider, ledger and Postgres on the same machine"

_WORKERS = (
    f"{_STREAM} in one write; two load processes, each with {_CPU_IN_FLIGHT} in flight over {CHANNELS} connections to "
    "the port of one worker"
)
_TREE = "user + system time of all the router's processes"
_EVENT = (
    f"journal, two records synced, and sender in a process of their own, {AT_ONCE} attempts at a time, until "
    f"acknowledged by a ledger that keeps nothing; {FULL.usage_events:,} a round"
)
_REPORT = (
    f"over {_REPORT_DAYS} days, for the tenants of the events above by turns, one at a time, {FULL.reports} a round; "
    "the ledger's own bench has a month of history"
)
_MEMORY = (
    f"{FULL.memory_blocks * FULL.memory_block:,} unary requests, {_CPU_IN_FLIGHT} in flight, after the rounds above"
)
_FROZEN = (
    f"{FULL.frozen:,} streams of {LONG_DELTAS:,} deltas, {LONG_BYTES / 1e3:.0f} kB in one write, 125 to a connection, "
    "whose callers read nothing; "
    f"limits raised: {', '.join(f'{name}={value}' for name, value in SETTINGS.items())}"
)

_FIGURES: Final[Mapping[str, tuple[str, str, Target | None]]] = {
    "router CPU per burst stream": ("ms", f"{_STREAM} in one write; {_CPU}", Target(0.8)),
    "naive CPU per burst stream": ("ms", f"{_STREAM} in one write; {_CPU}", None),
    "naive over router, burst": ("x", "ratio of the two above, in each round", Target(5.0, is_at_most=False)),
    "router CPU per paced stream": ("ms", f"{_PACED_STREAM}; {_CPU}", Target(4.0)),
    "naive CPU per paced stream": ("ms", f"{_PACED_STREAM}; {_CPU}", None),
    "naive over router, paced": ("x", "ratio of the two above, in each round", Target(2.3, is_at_most=False)),
    "router CPU per forwarded chunk": (
        "us",
        "CPU per paced stream less CPU per burst stream, by the messages that the client got more; in each round",
        None,
    ),
    "messages per paced stream": ("messages", f"as the client got them, the result included; {_PACED_STREAM}", None),
    "router CPU per unary completion": ("ms", f"Complete, answer of one delta; {_CPU}", Target(0.6)),
    "naive CPU per unary completion": ("ms", f"Complete, not streamed at the provider; {_CPU}", None),
    "router added first token p50": ("ms", f"{_PACED_STREAM}; {_ADDED}", Target(1.5)),
    "router added first token p99": ("ms", f"{_PACED_STREAM}; {_ADDED}", Target(6.0)),
    "naive added first token p50": ("ms", f"{_PACED_STREAM}; {_ADDED}", None),
    "naive added first token p99": ("ms", f"{_PACED_STREAM}; {_ADDED}", None),
    "direct first token p50": ("ms", f"{_PACED_STREAM}; the baseline, without any proxy", None),
    "router added whole stream p50": ("ms", f"to the last message; {_PACED_STREAM}; {_ADDED}", None),
    "router added whole stream p99": ("ms", f"to the last message; {_PACED_STREAM}; {_ADDED}", None),
    "naive added whole stream p50": ("ms", f"to the last message; {_PACED_STREAM}; {_ADDED}", None),
    "naive added whole stream p99": ("ms", f"to the last message; {_PACED_STREAM}; {_ADDED}", None),
    "direct whole stream p50": ("ms", f"to the last byte; {_PACED_STREAM}; the baseline, without any proxy", None),
    "router streams at saturation": (
        "streams/s",
        f"{_STREAM} in one write; {_SATURATION_IN_FLIGHT} in flight, one worker; {_SHARED}",
        None,
    ),
    "streams at saturation, one worker": ("streams/s", f"{_WORKERS}; {_SHARED}", None),
    "streams at saturation, two workers": ("streams/s", f"{_WORKERS}; {_SHARED}", None),
    "two workers over one": (
        "x",
        "ratio of the two above, in each round; bounded by the cores that load, provider and ledger leave free",
        Target(1.8, is_at_most=False),
    ),
    "CPU per stream, one worker": ("ms", f"{_WORKERS}; {_TREE}", None),
    "CPU per stream, two workers": ("ms", f"{_WORKERS}; {_TREE}", None),
    "router CPU per usage event": ("us", _EVENT, Target(60.0)),
    "ledger events through RecordUsage": (
        "events/s",
        f"durable, with rollups; batches of {_BATCH_EVENTS}, {_BATCHES_IN_FLIGHT} in flight over one connection",
        None,
    ),
    "usage_service CPU per event": ("us", "user + system time of usage_service, without Postgres; same load", None),
    "GetTenantUsageStats p50": ("ms", _REPORT, None),
    "GetTenantUsageStats p99": ("ms", _REPORT, None),
    "ListDailyCosts p50": ("ms", _REPORT, None),
    "ListDailyCosts p99": ("ms", _REPORT, None),
    "router RSS idle": ("MiB", "ready, before the first completion", Target(90.0)),
    "router RSS after the load": ("MiB", "at the end of each round", None),
    "router RSS growth": ("MiB", "from the end of the first round to the end of the last", None),
    "router RSS after unary requests": ("MiB", f"after each quarter of {_MEMORY}", None),
    "router RSS growth, unary requests": ("MiB", f"from before to after {_MEMORY}", Target(5.0)),
    "router RSS, frozen readers": ("MiB", _FROZEN, None),
    "frozen readers over idle": ("MiB", f"{_FROZEN}; less RSS idle, which is before any request", Target(100.0)),
}


def figure_names() -> Sequence[str]:
    """Every figure that a run must have."""
    return tuple(_FIGURES)


def _counted(samples: Sequence[float]) -> str:
    return "1 sample" if len(samples) == 1 else f"{len(samples)} samples"


@dataclass(slots=True)
class Bench:
    """One run over a site, and a second router beside it that has two workers."""

    site: Site
    pair: Pair
    plan: Plan
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> Sequence[Figure]:
        """All rounds; the figures in the order of the table."""
        if self.plan.pair_starts_first:
            self.pair.wait_until_ready()
        time.sleep(self.plan.settle_s)
        self._add("router RSS idle", self.site.router_process.rss_mib())
        for name in (ROUTER, NAIVE):
            for method, model in (("stream", "burst"), ("stream", "paced"), ("complete", "one")):
                self._closed(name, method, model, count=self.plan.warm_up, in_flight=_CPU_IN_FLIGHT)
        for number in range(self.plan.rounds):
            # Who begins changes from round to round.
            order = (ROUTER, NAIVE) if number % 2 == 0 else (NAIVE, ROUTER)
            self._cpu(order)
            self._latency((DIRECT, *order))
            self._saturation()
            self._workers(number)
            self._usage_events()
            self._ingest()
            self._reports()
            self._add("router RSS after the load", self.site.router_process.rss_mib())
        after = self.samples["router RSS after the load"]
        self._add("router RSS growth", after[-1] - after[0])
        self._memory()
        return [
            Figure(name, unit, tuple(self.samples[name]), f"{conditions}; {_counted(self.samples[name])}", target)
            for name, (unit, conditions, target) in _FIGURES.items()
            if self.samples[name]
        ]

    def _add(self, name: str, value: float) -> None:
        if name not in _FIGURES:
            raise KeyError(f"{name!r} is not in the table of figures")
        self.samples[name].append(value)

    def _cpu(self, order: Sequence[str]) -> None:
        plan = self.plan
        counts = {
            ("stream", "burst", "burst stream"): {ROUTER: plan.burst, NAIVE: plan.naive_burst},
            ("stream", "paced", "paced stream"): {ROUTER: plan.paced, NAIVE: plan.paced},
            ("complete", "one", "unary completion"): {ROUTER: plan.unary, NAIVE: plan.naive_unary},
        }
        messages: dict[str, float] = {}  # that a stream of each model brings
        router_ms: dict[str, float] = {}
        for (method, model, what), count in counts.items():
            cost_ms: dict[str, float] = {}
            for name in order:
                cost_ms[name], brought = self._cpu_ms(name, method, model, count[name])
                if name == ROUTER:
                    router_ms[model], messages[model] = cost_ms[name], brought
            for name, value in cost_ms.items():
                self._add(f"{name} CPU per {what}", value)
            if model in {"burst", "paced"}:
                self._add(f"naive over router, {model}", cost_ms[NAIVE] / cost_ms[ROUTER])
        more = messages["paced"] - messages["burst"]
        self._add("router CPU per forwarded chunk", (router_ms["paced"] - router_ms["burst"]) / more * 1e3)
        self._add("messages per paced stream", messages["paced"])

    def _cpu_ms(self, name: str, method: str, model: str, count: int) -> tuple[float, float]:
        """CPU milliseconds of the proxy's process per call, and the messages that a stream brought."""
        process = self._process(name)
        before_s = process.cpu_s()
        answer = self._closed(name, method, model, count=count, in_flight=_CPU_IN_FLIGHT)
        time.sleep(self.plan.settle_s)
        return (process.cpu_s() - before_s) / count * 1e3, answer["messages"] / count

    def _latency(self, order: Sequence[str]) -> None:
        found = {name: self._open_loop(name) for name in order}
        self._add("direct first token p50", percentile(found[DIRECT]["first_content_ms"], 0.5))
        self._add("direct whole stream p50", percentile(found[DIRECT]["whole_ms"], 0.5))
        for name in (ROUTER, NAIVE):
            for label, fraction in (("p50", 0.5), ("p99", 0.99)):
                for what, times in (("first token", "first_content_ms"), ("whole stream", "whole_ms")):
                    added_ms = percentile(found[name][times], fraction) - percentile(found[DIRECT][times], fraction)
                    self._add(f"{name} added {what} {label}", added_ms)

    def _open_loop(self, name: str) -> Mapping[str, Sequence[float]]:
        method = "direct" if name == DIRECT else "stream"
        return self.site.run(
            "open",
            self._target(name),
            within_s=_LOAD_TIMEOUT_S,
            method=method,
            model="paced",
            tenants=self.site.tenants,
            count=self.plan.open_loop,
            rate_per_s=_RATE_PER_S,
        )

    def _saturation(self) -> None:
        count = self.plan.saturation
        answer = self._closed(ROUTER, "stream", "burst", count=count, in_flight=_SATURATION_IN_FLIGHT)
        self._add("router streams at saturation", count / answer["seconds"])
        time.sleep(self.plan.settle_s)

    def _workers(self, number: int) -> None:
        """One worker and two in turns, each loaded by two processes."""
        self.pair.wait_until_ready()
        arms = (
            ("one worker", self.site.router_process, [self.site.router] * 2),
            ("two workers", self.pair.site.router_process, self.pair.targets),
        )
        per_s: dict[str, float] = {}
        for arm, process, targets in arms if number % 2 == 0 else reversed(arms):
            if number == 0:
                self._from_both(targets, count=self.plan.warm_up)
            before_s = process.cpu_s()
            per_s[arm] = self._from_both(targets, count=self.plan.workers_burst)
            time.sleep(self.plan.settle_s)
            cpu_s = process.cpu_s() - before_s
            self._add(f"streams at saturation, {arm}", per_s[arm])
            self._add(f"CPU per stream, {arm}", cpu_s / self.plan.workers_burst * 1e3)
        self._add("two workers over one", per_s["two workers"] / per_s["one worker"])

    def _from_both(self, targets: Sequence[str], *, count: int) -> float:
        """`count` burst streams, half of them from each load, which has a target of its own: streams per second."""
        each = count // 2
        loads = (self.site, self.pair.site)
        for load, target in zip(loads, targets, strict=True):
            load.begin(
                "closed",
                target,
                method="stream",
                model="burst",
                tenants=self.site.tenants,
                count=each,
                in_flight=_CPU_IN_FLIGHT,
            )
        seconds: list[float] = [load.finish(within_s=_LOAD_TIMEOUT_S)["seconds"] for load in loads]
        return each * len(loads) / max(seconds)

    def _memory(self) -> None:
        """What the router keeps of requests that are over, and of callers who do not read."""
        process, plan = self.site.router_process, self.plan
        self._closed(ROUTER, "complete", "one", count=plan.warm_up, in_flight=_CPU_IN_FLIGHT)
        time.sleep(plan.settle_s)
        before_mib = process.rss_mib()
        for _ in range(plan.memory_blocks):
            self._closed(ROUTER, "complete", "one", count=plan.memory_block, in_flight=_CPU_IN_FLIGHT)
            time.sleep(plan.settle_s)
            self._add("router RSS after unary requests", process.rss_mib())
        self._add("router RSS growth, unary requests", process.rss_mib() - before_mib)
        idle_mib = self.samples["router RSS idle"][0]
        for _ in range(plan.rounds):
            with frozen_readers(
                self.site.router, self.site.tenants, count=plan.frozen, running=self.site.calls_running
            ):
                rss_mib = process.rss_mib()
            self._add("router RSS, frozen readers", rss_mib)
            self._add("frozen readers over idle", rss_mib - idle_mib)

    def _usage_events(self) -> None:
        events = self.site.usage_events
        events.write_line(str(self.plan.usage_events))
        self._add("router CPU per usage event", float(events.read_line(within_s=_LOAD_TIMEOUT_S)))

    def _ingest(self) -> None:
        process = self.site.usage_process
        before_s = process.cpu_s()
        answer = self.site.run(
            "ingest",
            self.site.usage,
            within_s=_LOAD_TIMEOUT_S,
            batches=self.plan.batches,
            events=_BATCH_EVENTS,
            in_flight=_BATCHES_IN_FLIGHT,
        )
        events = self.plan.batches * _BATCH_EVENTS
        self._add("usage_service CPU per event", (process.cpu_s() - before_s) / events * 1e6)
        self._add("ledger events through RecordUsage", events / answer["seconds"])

    def _reports(self) -> None:
        for name in ("GetTenantUsageStats", "ListDailyCosts"):
            answer = self.site.run(
                "report",
                self.site.usage,
                within_s=_LOAD_TIMEOUT_S,
                name=name,
                count=self.plan.reports,
                days=_REPORT_DAYS,
            )
            for label, fraction in (("p50", 0.5), ("p99", 0.99)):
                self._add(f"{name} {label}", percentile(answer["took_ms"], fraction))

    def _closed(self, name: str, method: str, model: str, *, count: int, in_flight: int) -> Mapping[str, Any]:
        """`seconds` that the calls took together, and the `messages` that their streams brought."""
        return self.site.run(
            "closed",
            self._target(name),
            within_s=_LOAD_TIMEOUT_S,
            method=method,
            model=model,
            tenants=self.site.tenants,
            count=count,
            in_flight=in_flight,
        )

    def _target(self, name: str) -> str:
        return {ROUTER: self.site.router, NAIVE: self.site.naive, DIRECT: self.site.provider}[name]

    def _process(self, name: str) -> Tree:
        return {ROUTER: self.site.router_process, NAIVE: self.site.naive_process}[name]
