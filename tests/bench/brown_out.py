"""What breakers, scores and the retry budget make of a brown-out: a simulation, without clock and network.

    python -m tests.bench.brown_out

Two providers, the first preferred, and a Poisson stream of requests. Prints attempts per request, which is the
amplification, and how many callers were served, refused by open breakers, or failed with an attempt.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from rich.console import Console
from rich.table import Table

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import ModelFacts, ProviderSpec
from router_service.domain.completion import TaskType
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.scoring import Facts, rank
from router_service.domain.tenant import Credential
from router_service.routing.retry_budgets import Further, RetryBudgets
from router_service.routing.scoreboard import Scoreboard

TENANT = UUID(int=1)
FAULT = ProviderError(FailureKind.UPSTREAM_BROKEN, "simulated")
Policy = Callable[[Further], Further]  # what a further attempt is taken for

DECIDED: Policy = lambda further: further  # noqa: E731 - beside its siblings
POLICIES: dict[str, Policy] = {
    "strict tenth": lambda _: Further.RETRY,
    "decided": DECIDED,
    "no budget": lambda _: Further.STRAGGLER,
}
SCENARIOS: dict[str, tuple[float, float]] = {
    "one fails half": (0.5, 0.0),
    "both fail half": (0.5, 0.5),
    "one is dead": (1.0, 0.0),
}
RATES_PER_S = (2, 10, 50, 200)
ANSWERS_S = (0.05, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of one simulated run."""

    requests: int
    attempts: tuple[int, int]
    served: int
    refused: int
    failed: int

    @property
    def amplification(self) -> float:
        return sum(self.attempts) / self.requests


class Simulation:
    """`failing` are the shares of attempts that fail at each provider; `answer_s` is how long an attempt takes."""

    def __init__(self, *, failing: Sequence[float], answer_s: float, policy: Policy = DECIDED, seed: int = 1) -> None:
        self._failing = failing
        self._answer_s = answer_s
        self._policy = policy
        self._random = random.Random(seed)
        self._board = Scoreboard(max_entries=100)
        self._budgets = RetryBudgets(max_tenants=10)
        self._candidates = [_candidate(name) for name in ("first", "second")]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._attempts = [0, 0]
        self._requests = self._served = self._refused = self._failed = 0

    def run(self, *, requests_per_s: float, seconds: float) -> Outcome:
        at = 0.0
        while (at := at + self._random.expovariate(requests_per_s)) < seconds:
            self._at(at, self._arrive)
        while self._events:
            now, _, act = heapq.heappop(self._events)
            act(now)
        first, second = self._attempts
        return Outcome(self._requests, (first, second), self._served, self._refused, self._failed)

    def _at(self, time: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), act))

    def _arrive(self, now: float) -> None:
        self._requests += 1
        self._budgets.request_arrived(TENANT, now)
        facts = [Facts(c, health=self._board.health(c).at(now), luck=self._random.random()) for c in self._candidates]
        ranked = [
            s.candidate
            for s in rank(facts, task=TaskType.CHAT, preferred_provider="first", weights={}, remaining_s=None)
        ]
        free = [c for c in ranked if self._is_free(c, now)] or [c for c in ranked if self._is_free(c, now, only=True)]
        if not free:
            self._refused += 1
            return
        self._start(free[0], free[1:], now)

    def _start(self, candidate: Candidate, others: Sequence[Candidate], now: float) -> None:
        number = self._candidates.index(candidate)
        self._attempts[number] += 1
        self._board.started(candidate, now)
        fails = self._random.random() < self._failing[number]
        takes_s = self._answer_s * (0.5 + self._random.random())
        self._at(now + takes_s, lambda at: self._end(candidate, others, began_at=now, fails=fails, now=at))

    def _end(
        self, candidate: Candidate, others: Sequence[Candidate], *, began_at: float, fails: bool, now: float
    ) -> None:
        if not fails:
            self._served += 1
            self._board.succeeded(candidate, now, began_at=began_at, first_token_s=0.1, tokens_per_s=None)
            return
        self._board.failed(candidate, FAULT, now, began_at=began_at)
        for other in others:
            is_well = self._board.health(other).is_well(now)
            further = Further.RETRY
            if is_well:
                further = Further.FAILOVER if self._is_free(candidate, now) else Further.STRAGGLER
            further = self._policy(further)
            if self._is_free(other, now) and self._budgets.allow(further, TENANT, now):
                self._budgets.spend(further, TENANT, now)
                self._start(other, [], now)
                return
        self._failed += 1

    def _is_free(self, candidate: Candidate, now: float, *, only: bool = False) -> bool:
        return self._board.block(candidate, now, is_only_candidate=only) is None


def _candidate(name: str) -> Candidate:
    model = ModelFacts(f"{name}-model")
    spec = ProviderSpec(name, name, f"http://{name}/v1", False, "", model.name, {model.name: model})
    key: Credential | None = None
    return Candidate(spec, model, key)


def outcomes(policy: Policy, failing: Sequence[float]) -> Iterator[tuple[int, float, Outcome]]:
    """Every rate and duration of an answer under one policy."""
    for rate, answer_s in itertools.product(RATES_PER_S, ANSWERS_S):
        simulation = Simulation(failing=failing, answer_s=answer_s, policy=policy)
        yield rate, answer_s, simulation.run(requests_per_s=rate, seconds=60 if rate >= 200 else 120)


def main() -> None:
    table = Table(title="A brown-out, simulated")
    for heading in ("providers", "policy", "requests/s", "answer s", "attempts/request", "served", "refused", "failed"):
        table.add_column(heading, justify="right")
    for scenario, failing in SCENARIOS.items():
        for name, policy in POLICIES.items():
            for rate, answer_s, outcome in outcomes(policy, failing):
                shares = [
                    f"{count / outcome.requests:.1%}" for count in (outcome.served, outcome.refused, outcome.failed)
                ]
                table.add_row(scenario, name, str(rate), f"{answer_s:g}", f"{outcome.amplification:.3f}", *shares)
            table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
