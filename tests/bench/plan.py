"""How much of everything a run does, and of each of its figures: unit, target, and the conditions it holds under."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.fake_provider import DELTAS, GAP_S, LONG_BYTES, LONG_DELTAS
from tests.bench.figures import Figure, Target
from tests.bench.load import CHANNELS
from tests.bench.processes import BenchFailed
from tests.bench.usage_event import AT_ONCE


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

CPU_IN_FLIGHT: Final = 32
SATURATION_IN_FLIGHT: Final = 64
RATE_PER_S: Final = 20.0
BATCH_EVENTS: Final = 500
BATCHES_IN_FLIGHT: Final = 4
REPORT_DAYS: Final = 30

# Default limits let a provider have 256 requests at a time, and 250 wait: too few for a thousand readers at once.
SETTINGS: Final = {
    "ROUTER_MAX_RUNNING_PER_TENANT": "300",
    "ROUTER_MAX_RUNNING_PER_PROVIDER": "1024",
    "ROUTER_MAX_WAITING_RPCS": "2000",
}


def contracts(plan: Plan) -> Mapping[str, tuple[str, str, Target | None]]:
    """Unit, conditions and target of every figure that a run of `plan` must have, in the order of the table."""
    cpu = f"user + system time of the proxy's process, {CPU_IN_FLIGHT} in flight over {CHANNELS} connections"
    stream = f"{DELTAS}-delta stream"
    paced_stream = f"{stream}, deltas {GAP_S * 1e3:g} ms apart"
    added = (
        f"over the same call straight to the provider; open loop at {RATE_PER_S:g}/s from the intended start, "
        f"{plan.open_loop} calls a round"
    )
    shared = "load, provider, ledger and Postgres on the same machine"

    workers = (
        f"{stream} in one write; two load processes, each with {CPU_IN_FLIGHT} in flight over {CHANNELS} connections "
        "to the port of one worker"
    )
    tree = "user + system time of all the router's processes"
    event = (
        f"journal, two records synced, and sender in a process of their own, {AT_ONCE} attempts at a time, until "
        f"acknowledged by a ledger that keeps nothing; {plan.usage_events:,} a round"
    )
    report = (
        f"over {REPORT_DAYS} days, for the tenants of the events above by turns, one at a time, {plan.reports} a "
        "round; the ledger's own bench has a month of history"
    )
    memory = (
        f"{plan.memory_blocks * plan.memory_block:,} unary requests, {CPU_IN_FLIGHT} in flight, after the rounds above"
    )
    frozen = (
        f"{plan.frozen:,} streams of {LONG_DELTAS:,} deltas, {LONG_BYTES / 1e3:.0f} kB in one write, 125 to a "
        "connection, whose callers read nothing; "
        f"limits raised: {', '.join(f'{name}={value}' for name, value in SETTINGS.items())}"
    )

    return {
        "router CPU per burst stream": ("ms", f"{stream} in one write; {cpu}", Target(0.8)),
        "naive CPU per burst stream": ("ms", f"{stream} in one write; {cpu}", None),
        "naive over router, burst": ("x", "ratio of the two above, in each round", Target(5.0, is_at_most=False)),
        "router CPU per paced stream": ("ms", f"{paced_stream}; {cpu}", Target(4.0)),
        "naive CPU per paced stream": ("ms", f"{paced_stream}; {cpu}", None),
        "naive over router, paced": ("x", "ratio of the two above, in each round", Target(2.3, is_at_most=False)),
        "router CPU per forwarded chunk": (
            "us",
            "CPU per paced stream less CPU per burst stream, by the messages that the client got more; in each round",
            None,
        ),
        "messages per paced stream": ("messages", f"as the client got them, the result included; {paced_stream}", None),
        "router CPU per unary completion": ("ms", f"Complete, answer of one delta; {cpu}", Target(0.6)),
        "naive CPU per unary completion": ("ms", f"Complete, not streamed at the provider; {cpu}", None),
        "router added first token p50": ("ms", f"{paced_stream}; {added}", Target(1.5)),
        "router added first token p99": ("ms", f"{paced_stream}; {added}", Target(6.0)),
        "naive added first token p50": ("ms", f"{paced_stream}; {added}", None),
        "naive added first token p99": ("ms", f"{paced_stream}; {added}", None),
        "direct first token p50": ("ms", f"{paced_stream}; the baseline, without any proxy", None),
        "router added whole stream p50": ("ms", f"to the last message; {paced_stream}; {added}", None),
        "router added whole stream p99": ("ms", f"to the last message; {paced_stream}; {added}", None),
        "naive added whole stream p50": ("ms", f"to the last message; {paced_stream}; {added}", None),
        "naive added whole stream p99": ("ms", f"to the last message; {paced_stream}; {added}", None),
        "direct whole stream p50": ("ms", f"to the last byte; {paced_stream}; the baseline, without any proxy", None),
        "router streams at saturation": (
            "streams/s",
            f"{stream} in one write; {SATURATION_IN_FLIGHT} in flight, one worker; {shared}",
            None,
        ),
        "streams at saturation, one worker": ("streams/s", f"{workers}; {shared}", None),
        "streams at saturation, two workers": ("streams/s", f"{workers}; {shared}", None),
        "two workers over one": (
            "x",
            "ratio of the two above, in each round; bounded by the cores that load, provider and ledger leave free",
            Target(1.8, is_at_most=False),
        ),
        "CPU per stream, one worker": ("ms", f"{workers}; {tree}", None),
        "CPU per stream, two workers": ("ms", f"{workers}; {tree}", None),
        "router CPU per usage event": ("us", event, Target(60.0)),
        "ledger events through RecordUsage": (
            "events/s",
            f"durable, with rollups; batches of {BATCH_EVENTS}, {BATCHES_IN_FLIGHT} in flight over one connection",
            None,
        ),
        "usage_service CPU per event": ("us", "user + system time of usage_service, without Postgres; same load", None),
        "GetTenantUsageStats p50": ("ms", report, None),
        "GetTenantUsageStats p99": ("ms", report, None),
        "ListDailyCosts p50": ("ms", report, None),
        "ListDailyCosts p99": ("ms", report, None),
        "router RSS idle": ("MiB", "ready, before the first completion", Target(90.0)),
        "router RSS after the load": ("MiB", "at the end of each round", None),
        "router RSS growth": ("MiB", "from the end of the first round to the end of the last", None),
        "router RSS after unary requests": ("MiB", f"after each {plan.memory_block:,} of {memory}", None),
        "router RSS growth, unary requests": ("MiB", f"from before to after {memory}", Target(5.0)),
        "router RSS, frozen readers": ("MiB", frozen, None),
        "frozen readers over idle": ("MiB", f"{frozen}; less RSS idle, which is before any request", Target(100.0)),
    }


def figures_of(plan: Plan, samples: Mapping[str, Sequence[float]]) -> Sequence[Figure]:
    """The figures of a run by its samples. Raises BenchFailed unless there are numbers for each, and no others."""
    known = contracts(plan)
    if foreign := samples.keys() - known.keys():
        raise BenchFailed(f"not in the table of figures: {', '.join(sorted(foreign))}")
    without = [name for name in known if not samples.get(name) or not all(map(math.isfinite, samples[name]))]
    if without:
        raise BenchFailed(f"no value for {', '.join(without)}")
    return [
        Figure(name, unit, tuple(samples[name]), f"{conditions}; {_counted(samples[name])}", target)
        for name, (unit, conditions, target) in known.items()
    ]


def _counted(samples: Sequence[float]) -> str:
    return "1 sample" if len(samples) == 1 else f"{len(samples)} samples"
