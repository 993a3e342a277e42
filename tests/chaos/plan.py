"""A seed as a plan of faults: storms of overlapping faults, each followed by a calm in which all must recover."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

ROUTERS = ("router-a", "router-b")
SERVICES = (*ROUTERS, "usage")
PROVIDER_LINKS = ("openrouter", "llm7", "local", "groq")
USAGE_LINKS = ("usage-a", "usage-b")
POSTGRES_LINKS = ("postgres-router", "postgres-usage")
LINKS = (*PROVIDER_LINKS, *USAGE_LINKS, *POSTGRES_LINKS)
CLIENTS = ("client-1", "client-2")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens `at_s` seconds into a storm to `target`, and how long it lasts before it is healed.

    `value` is milliseconds of latency, or how rare a corrupted piece is.
    """

    at_s: float
    kind: str
    target: str
    hold_s: float
    value: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: its weight, whom it can strike, how long it lasts, how long recovery takes, and its values."""

    weight: int
    targets: tuple[str, ...]
    hold_s: tuple[float, float]
    recovery_s: float = 0.0
    values: tuple[int, ...] = (0,)


KINDS: Mapping[str, Kind] = {
    "kill": Kind(60, SERVICES, (0.0, 1.0), 3.0),
    "kill-routers": Kind(4, ("both-routers",), (0.0, 1.0), 4.0),
    "kill-all": Kind(8, ("services",), (0.0, 1.0), 5.0),
    "pause": Kind(6, SERVICES, (0.5, 4.0)),
    "restart": Kind(6, SERVICES, (0.0, 0.0), 6.0),
    "kill-client": Kind(2, CLIENTS, (0.0, 0.0), 1.0),
    "postgres-stop": Kind(3, ("postgres",), (0.5, 3.0), 2.0),
    "postgres-kill": Kind(18, ("postgres",), (0.0, 1.0), 3.0),
    "postgres-freeze": Kind(3, ("postgres",), (1.0, 5.0)),
    "backend-kill": Kind(3, ("postgres",), (0.0, 0.0), 2.0),
    "latency": Kind(4, LINKS, (1.0, 6.0), values=(20, 80, 250)),
    # The answer comes after the router's 5 s: what was stored is sent again.
    "late-answer": Kind(3, USAGE_LINKS, (6.0, 8.0), values=(2700,)),
    "blackhole": Kind(6, LINKS, (0.5, 5.0)),
    "reset": Kind(6, LINKS, (0.0, 2.0)),
    "refuse": Kind(4, LINKS, (0.5, 3.0)),
    "truncate": Kind(3, LINKS, (0.2, 1.0)),
    "corrupt": Kind(3, PROVIDER_LINKS, (0.5, 3.0), values=(1, 3, 10)),
    "disk-full": Kind(4, ("disk",), (0.5, 4.0)),
    "rotate-key": Kind(3, ("tenants",), (0.0, 0.0)),
    "reload": Kind(3, ("tenants",), (0.0, 0.0)),
}
# What is acknowledged, removed or unsynced too early is lost when a process dies or an answer does not arrive; what is
# not recognised comes twice when it is sent again.
DYING_ROUTERS: Mapping[str, Kind] = {"kill": Kind(1, ROUTERS, (0.0, 0.3), 2.0)}
DYING_LEDGER: Mapping[str, Kind] = {"kill": Kind(1, ("usage",), (0.0, 0.5), 1.5)}
LATE_ANSWERS: Mapping[str, Kind] = {"late-answer": Kind(1, USAGE_LINKS, (6.0, 7.0), values=(2700,))}

# A fault on a group keeps its members busy; a full disk its router.
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    "both-routers": ROUTERS,
    "services": SERVICES,
    "disk": ("router-b", "disk"),
}


def members(target: str) -> tuple[str, ...]:
    """Everything that a fault on `target` keeps busy."""
    return _MEMBERS.get(target, (target,))


def storm(
    rng: random.Random, *, length_s: float, mean_gap_s: float, kinds: Mapping[str, Kind] = KINDS
) -> tuple[Fault, ...]:
    """The faults of one storm. No target is struck again before it can have recovered."""
    faults: list[Fault] = []
    busy_until: dict[str, float] = {}
    at_s = rng.uniform(0.0, mean_gap_s)
    while at_s < length_s:
        (name,) = rng.choices(list(kinds), [kind.weight for kind in kinds.values()])
        kind = kinds[name]
        target = rng.choice(kind.targets)
        hold_s = round(rng.uniform(*kind.hold_s), 2)
        if all(busy_until.get(member, 0.0) <= at_s for member in members(target)):
            faults.append(Fault(round(at_s, 2), name, target, hold_s, rng.choice(kind.values)))
            for member in members(target):
                busy_until[member] = at_s + hold_s + kind.recovery_s
        at_s += rng.expovariate(1 / mean_gap_s)
    return tuple(faults)
