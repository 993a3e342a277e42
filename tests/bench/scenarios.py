"""What is measured, and how. Router and naive proxy take turns, so that a neighbour's noise falls on both."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.fake_provider import DELTAS, GAP_S
from tests.bench.figures import Figure, Target, percentile
from tests.bench.load import CHANNELS
from tests.bench.processes import Tree
from tests.bench.site import Site

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
    open_loop: int = 120
    batches: int = 24
    settle_s: float = 0.7  # after each load: what it left to be done, such as reporting usage, belongs to its cost


FULL: Final = Plan()
SMOKE: Final = Plan(
    rounds=1,
    warm_up=32,
    burst=100,
    naive_burst=50,
    paced=32,
    unary=100,
    naive_unary=50,
    saturation=150,
    open_loop=20,
    batches=2,
    settle_s=0.3,
)

_CPU_IN_FLIGHT = 32
_SATURATION_IN_FLIGHT = 64
_RATE_PER_S = 20.0
_BATCH_EVENTS = 500
_BATCHES_IN_FLIGHT = 4
_LOAD_TIMEOUT_S = 60.0

# Where the contract of a figure is kept: its unit, its target, and under what conditions it holds.
_CPU = f"user + system time of the proxy's process, {_CPU_IN_FLIGHT} in flight over {CHANNELS} connections"
_STREAM = f"{DELTAS}-delta stream"
_PACED_STREAM = f"{_STREAM}, deltas {GAP_S * 1e3:g} ms apart"
_ADDED = (
    f"over the same call straight to the provider; open loop at {_RATE_PER_S:g}/s from the intended start, "
    f"{FULL.open_loop} calls a round"
)
_SHARED = "load, provider, ledger and Postgres on the same machine"

_FIGURES: Final[Mapping[str, tuple[str, str, Target | None]]] = {
    "router CPU per burst stream": ("ms", f"{_STREAM} in one write; {_CPU}", Target(0.8)),
    "naive CPU per burst stream": ("ms", f"{_STREAM} in one write; {_CPU}", None),
    "naive over router, burst": ("x", "ratio of the two above, in each round", Target(5.0, is_at_most=False)),
    "router CPU per paced stream": ("ms", f"{_PACED_STREAM}; {_CPU}", Target(4.0)),
    "naive CPU per paced stream": ("ms", f"{_PACED_STREAM}; {_CPU}", None),
    "naive over router, paced": ("x", "ratio of the two above, in each round", Target(2.3, is_at_most=False)),
    "router CPU per unary completion": ("ms", f"Complete, answer of one delta; {_CPU}", Target(0.6)),
    "naive CPU per unary completion": ("ms", f"Complete, not streamed at the provider; {_CPU}", None),
    "router added first token p50": ("ms", f"{_PACED_STREAM}; {_ADDED}", Target(1.5)),
    "router added first token p99": ("ms", f"{_PACED_STREAM}; {_ADDED}", Target(6.0)),
    "naive added first token p50": ("ms", f"{_PACED_STREAM}; {_ADDED}", None),
    "naive added first token p99": ("ms", f"{_PACED_STREAM}; {_ADDED}", None),
    "direct first token p50": ("ms", f"{_PACED_STREAM}; the baseline, without any proxy", None),
    "router streams at saturation": (
        "streams/s",
        f"{_STREAM} in one write; {_SATURATION_IN_FLIGHT} in flight, one worker; {_SHARED}",
        None,
    ),
    "ledger events through RecordUsage": (
        "events/s",
        f"durable, with rollups; batches of {_BATCH_EVENTS}, {_BATCHES_IN_FLIGHT} in flight over one connection",
        None,
    ),
    "usage_service CPU per event": ("us", "user + system time of usage_service, without Postgres; same load", None),
    "router RSS idle": ("MiB", "ready, before the first completion", Target(90.0)),
    "router RSS after the load": ("MiB", "at the end of each round", None),
    "router RSS growth": ("MiB", "from the end of the first round to the end of the last", None),
}


def figure_names() -> Sequence[str]:
    """Every figure that a run must have."""
    return tuple(_FIGURES)


@dataclass(slots=True)
class Bench:
    """One run over a site."""

    site: Site
    plan: Plan
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self) -> Sequence[Figure]:
        """All rounds; the figures in the order of the table."""
        time.sleep(self.plan.settle_s)
        self._add("router RSS idle", self.site.router_process.rss_mib())
        for name in (ROUTER, NAIVE):
            for method, model in (("stream", "burst"), ("stream", "paced"), ("complete", "one")):
                self._closed(name, method, model, count=self.plan.warm_up, in_flight=_CPU_IN_FLIGHT)
        for number in range(self.plan.rounds):
            # Who begins changes from round to round.
            order = (ROUTER, NAIVE) if number % 2 == 0 else (NAIVE, ROUTER)
            self._cpu(order)
            self._first_token((DIRECT, *order))
            self._saturation()
            self._ingest()
            self._add("router RSS after the load", self.site.router_process.rss_mib())
        after = self.samples["router RSS after the load"]
        self._add("router RSS growth", after[-1] - after[0])
        return [
            Figure(name, unit, tuple(self.samples[name]), f"{conditions}; {len(self.samples[name])} rounds", target)
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
        for (method, model, what), count in counts.items():
            cost_ms = {name: self._cpu_ms(name, method, model, count[name]) for name in order}
            for name, value in cost_ms.items():
                self._add(f"{name} CPU per {what}", value)
            if model in {"burst", "paced"}:
                self._add(f"naive over router, {model}", cost_ms[NAIVE] / cost_ms[ROUTER])

    def _cpu_ms(self, name: str, method: str, model: str, count: int) -> float:
        """CPU milliseconds of the proxy's process per call."""
        process = self._process(name)
        before_s = process.cpu_s()
        self._closed(name, method, model, count=count, in_flight=_CPU_IN_FLIGHT)
        time.sleep(self.plan.settle_s)
        return (process.cpu_s() - before_s) / count * 1e3

    def _first_token(self, order: Sequence[str]) -> None:
        found = {name: self._first_content_ms(name) for name in order}
        self._add("direct first token p50", percentile(found[DIRECT], 0.5))
        for name in (ROUTER, NAIVE):
            for label, fraction in (("p50", 0.5), ("p99", 0.99)):
                added_ms = percentile(found[name], fraction) - percentile(found[DIRECT], fraction)
                self._add(f"{name} added first token {label}", added_ms)

    def _first_content_ms(self, name: str) -> Sequence[float]:
        method = "direct" if name == DIRECT else "stream"
        answer = self.site.run(
            "open",
            self._target(name),
            within_s=_LOAD_TIMEOUT_S,
            method=method,
            model="paced",
            tenants=self.site.tenants,
            count=self.plan.open_loop,
            rate_per_s=_RATE_PER_S,
        )
        values: list[float] = answer["first_content_ms"]
        return values

    def _saturation(self) -> None:
        seconds = self._closed(ROUTER, "stream", "burst", count=self.plan.saturation, in_flight=_SATURATION_IN_FLIGHT)
        self._add("router streams at saturation", self.plan.saturation / seconds)
        time.sleep(self.plan.settle_s)

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

    def _closed(self, name: str, method: str, model: str, *, count: int, in_flight: int) -> float:
        """Seconds that the calls took together."""
        answer = self.site.run(
            "closed",
            self._target(name),
            within_s=_LOAD_TIMEOUT_S,
            method=method,
            model=model,
            tenants=self.site.tenants,
            count=count,
            in_flight=in_flight,
        )
        seconds: float = answer["seconds"]
        return seconds

    def _target(self, name: str) -> str:
        return {ROUTER: self.site.router, NAIVE: self.site.naive, DIRECT: self.site.provider}[name]

    def _process(self, name: str) -> Tree:
        return {ROUTER: self.site.router_process, NAIVE: self.site.naive_process}[name]
