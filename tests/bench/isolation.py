"""What a caller can rely on while providers and other tenants misbehave, measured through the real router.

    make bench-routing        or        python -m tests.bench.isolation [--smoke]
    python -m tests.bench.isolation --only-isolation --failures-per-s 300 1000 2000 --both-ways
    python -m tests.bench.isolation --only-isolation --workers 2

- *amplification*: requests that the providers saw for each request of a caller, while half of what they answer is 503;
- *isolation*: tenant B's latency while tenant A's rejected key fails 1,000 times a second, see `neighbours`;
- *all breakers open*: how soon a caller is told that nobody can serve.

Everything runs on this machine: providers, router, ledger, Postgres and both loads share its cores. What the loads and
the router took of them is among the figures, and what was left.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

import uvloop
from rich.console import Console

from tests.bench.figures import Figure, Target
from tests.bench.neighbours import Rounds, figures_of, isolation
from tests.bench.report import machine, print_figures
from tests.bench.routing_site import GOOD, Calls, Site, load, running_site
from tests.bench.stopping import exit_code

FLOOD_PER_S: Final = 1000.0
BOTH_WAYS: Final = {"held back: ": {}, "told at once: ": {"ROUTER_HOLD_REFUSALS_S": "0"}}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each; `failures_per_s` has a rate for each series of rounds."""

    rounds: Rounds = field(default_factory=Rounds)
    brown_out_requests: int = 1000
    brown_out_per_s: float = 50.0
    refusals: int = 300
    failures_per_s: Sequence[float] = (FLOOD_PER_S,)


SMOKE: Final = Plan(Rounds(count=1, part_s=1.0), brown_out_requests=100, refusals=30)


def brown_out(site: Site, plan: Plan, *, both: bool) -> tuple[float, float]:
    """Attempts that the providers saw for each request, and the share of callers that were served."""
    mark = secrets.token_hex(4)
    sick = f"flaky?percent=50&code=503&n=2&first_ms=20&mark={mark}"
    other = f"{sick}&other=1" if both else f"{GOOD}&mark={mark}"
    tenant = site.tenant({"groq": sick, "openrouter": other})
    calls = uvloop.run(load(site.router, tenant, count=plan.brown_out_requests, per_s=plan.brown_out_per_s))
    return site.requests_seen(sick, other) / plan.brown_out_requests, calls.served / plan.brown_out_requests


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


def beside_a(sites: Mapping[str, Site], plan: Plan) -> Sequence[Figure]:
    """The figures of isolation, at each rate and site."""
    return [
        figure
        for rate in plan.failures_per_s
        for arm, rounds in zip(sites, isolation(list(sites.values()), plan.rounds, failures_per_s=rate), strict=True)
        for figure in figures_of(rounds, failures_per_s=rate, arm=arm)
    ]


def figures(sites: Mapping[str, Site], plan: Plan) -> Sequence[Figure]:
    site = next(iter(sites.values()))
    one, both = brown_out(site, plan, both=False), brown_out(site, plan, both=True)
    of_isolation, refused = beside_a(sites, plan), open_breakers(site, plan)
    load_of = f"{plan.brown_out_requests} requests at {plan.brown_out_per_s:g}/s, counted at the providers"
    return [
        Figure("amplification, one provider half sick", "x", [one[0]], load_of, Target(1.2)),
        Figure("  callers served", "%", [one[1] * 100], load_of, Target(99.5, is_at_most=False)),
        Figure("amplification, both providers half sick", "x", [both[0]], load_of, Target(1.2)),
        Figure("  callers served", "%", [both[1] * 100], load_of),
        *of_isolation,
        Figure("all breakers open: refusal p50", "ms", [refused.ms(0.5)], "100/s", Target(20.0)),
        Figure("all breakers open: refusal p99", "ms", [refused.ms(0.99)], "100/s", Target(20.0)),
        Figure("all breakers open: refusal, slowest", "ms", [refused.ms(1.0)], "100/s"),
    ]


def main() -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.isolation", description="Measure failover and isolation."
    )
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--only-isolation", action="store_true", help="leave out brown-outs and open breakers")
    parser.add_argument(
        "--failures-per-s", type=float, nargs="+", default=[FLOOD_PER_S], help="of tenant A; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, help="at each rate; default: 6")
    parser.add_argument("--workers", type=int, default=1, help="of the router; each load then has four connections")
    parser.add_argument(
        "--both-ways", action="store_true", help="by turns a router that holds refusals back and one that does not"
    )
    options = parser.parse_args()
    plan = replace(SMOKE if options.smoke else Plan(), failures_per_s=options.failures_per_s)
    connections = 1 if options.workers == 1 else 4
    count = options.rounds or plan.rounds.count
    plan = replace(plan, rounds=replace(plan.rounds, count=count, connections=connections))
    arms = BOTH_WAYS if options.both_ways else {"": {}}
    return exit_code(lambda: _measure(plan, arms, options.workers, beside_a if options.only_isolation else figures))


def _measure(
    plan: Plan,
    arms: Mapping[str, Mapping[str, str]],
    router_workers: int,
    measure: Callable[[Mapping[str, Site], Plan], Sequence[Figure]],
) -> None:
    conditions = machine()
    with ExitStack() as running:
        sites = {
            arm: running.enter_context(running_site(set_to, workers=router_workers)) for arm, set_to in arms.items()
        }
        found = measure(sites, plan)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    workers = f"{router_workers} worker{'s' if router_workers > 1 else ''} of the router"
    print_figures(console, found, f"{conditions}; {workers}; medians of the rounds; loads share the machine")


if __name__ == "__main__":
    sys.exit(main())
