"""What is measured, and how. Router and naive proxy take turns, so that a neighbour's noise falls on both."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.figures import Figure, percentile
from tests.bench.frozen import frozen_readers
from tests.bench.pair import Pair
from tests.bench.plan import (
    BATCH_EVENTS,
    BATCHES_IN_FLIGHT,
    CPU_IN_FLIGHT,
    RATE_PER_S,
    REPORT_DAYS,
    SATURATION_IN_FLIGHT,
    Plan,
    figures_of,
)
from tests.bench.processes import Tree
from tests.bench.site import Site

ROUTER, NAIVE, DIRECT = "router", "naive", "direct"

_LOAD_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Bench:
    """One run over a site, and a second router beside it that has two workers."""

    site: Site
    pair: Pair
    plan: Plan
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> Sequence[Figure]:
        """All rounds; the figures in the order of the table. Raises BenchFailed when one has no value."""
        if self.plan.pair_starts_first:
            self.pair.wait_until_ready()
        time.sleep(self.plan.settle_s)
        self._add("router RSS idle", self.site.router_process.rss_mib())
        for name in (ROUTER, NAIVE):
            for method, model in (("stream", "burst"), ("stream", "paced"), ("complete", "one")):
                self._closed(name, method, model, count=self.plan.warm_up, in_flight=CPU_IN_FLIGHT)
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
        return figures_of(self.plan, self.samples)

    def _add(self, name: str, value: float) -> None:
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
        answer = self._closed(name, method, model, count=count, in_flight=CPU_IN_FLIGHT)
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
            rate_per_s=RATE_PER_S,
        )

    def _saturation(self) -> None:
        count = self.plan.saturation
        answer = self._closed(ROUTER, "stream", "burst", count=count, in_flight=SATURATION_IN_FLIGHT)
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
                in_flight=CPU_IN_FLIGHT,
            )
        seconds: list[float] = [load.finish(within_s=_LOAD_TIMEOUT_S)["seconds"] for load in loads]
        return each * len(loads) / max(seconds)

    def _memory(self) -> None:
        """What the router keeps of requests that are over, and of callers who do not read."""
        process, plan = self.site.router_process, self.plan
        self._closed(ROUTER, "complete", "one", count=plan.warm_up, in_flight=CPU_IN_FLIGHT)
        time.sleep(plan.settle_s)
        before_mib = process.rss_mib()
        for _ in range(plan.memory_blocks):
            self._closed(ROUTER, "complete", "one", count=plan.memory_block, in_flight=CPU_IN_FLIGHT)
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
            events=BATCH_EVENTS,
            in_flight=BATCHES_IN_FLIGHT,
        )
        events = self.plan.batches * BATCH_EVENTS
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
                days=REPORT_DAYS,
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
