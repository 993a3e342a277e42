"""The short way to a refusal, where the only candidate is kept out, says what the whole way says, after any events."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_service.domain.candidate import Candidate
from router_service.domain.completion import TaskType
from router_service.domain.errors import FailureKind
from router_service.domain.selection import Needs, Selection
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import Funding
from router_service.routing.planning import Plan, Planner
from router_service.routing.scoreboard import Scoreboard
from tests.support.router_fakes import TODAY, FakeLimits, FakePrices, failure, key, spec, tenant

GROQ = spec("groq")
MINE, OPERATORS = key("groq"), key("operator", Funding.SYSTEM_KEY)


class WholeWay(Planner):
    """Ranks and parts whatever there is."""

    def _of_a_resting_only_candidate(self, tenant: Tenant, selection: Selection, now: float) -> Plan | None:
        del tenant, selection, now
        return None


class OneCandidate(RuleBasedStateMachine):
    """A tenant with one key, a stranger on the same route, an operator's key, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.board = Scoreboard(max_entries=100)
        self.running: list[tuple[Candidate, float]] = []

    def planned(self, kind: type[Planner], who: Tenant, credentials: dict[str, Credential], **others: Any) -> Plan:
        planner = kind(
            catalog={"groq": GROQ},
            system_credentials=credentials,
            prices=FakePrices(),
            limits=FakeLimits(),
            scoreboard=self.board,
            score_weights={},
            today=lambda: TODAY,
        )
        return planner.plan(who, Needs(), TaskType.CHAT, now=self.now, remaining_s=30.0, luck=lambda: 0.5, **others)

    @rule(seconds=st.floats(0.0, 70.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(whose=st.sampled_from([MINE, OPERATORS, key("stranger")]))
    def an_attempt_begins(self, whose: Credential) -> None:
        candidate = Candidate(GROQ, GROQ.facts("groq-model"), whose)
        self.board.started(candidate, self.now)
        self.running.append((candidate, self.now))

    @precondition(lambda self: self.running)
    @rule(
        which=st.integers(0, 1000),
        kind=st.sampled_from(FailureKind),
        times=st.integers(1, 5),
        retry_after_s=st.none() | st.floats(0.0, 90.0),
    )
    def it_fails(self, which: int, kind: FailureKind, times: int, retry_after_s: float | None) -> None:
        candidate, began_at = self.running.pop(which % len(self.running))
        for _ in range(times):
            self.board.failed(candidate, failure(kind, retry_after_s=retry_after_s), self.now, began_at=began_at)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000))
    def it_succeeds(self, which: int) -> None:
        candidate, began_at = self.running.pop(which % len(self.running))
        self.board.succeeded(candidate, self.now, began_at=began_at, first_token_s=0.2, tokens_per_s=50.0)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000))
    def it_is_abandoned(self, which: int) -> None:
        candidate, began_at = self.running.pop(which % len(self.running))
        self.board.abandoned(candidate, began_at=began_at)

    @invariant()
    def both_ways_say_the_same(self) -> None:
        for auto_failover in (True, False):
            config = InferenceConfig(preferred_provider="groq", auto_failover=auto_failover)
            for who, credentials in (
                (tenant(keys=["groq"], config=config), {}),
                (tenant(config=config), {"groq": OPERATORS}),
            ):
                assert self.planned(Planner, who, credentials) == self.planned(WholeWay, who, credentials)


TestOneCandidate = OneCandidate.TestCase
TestOneCandidate.settings = settings(max_examples=50, stateful_step_count=25)


@given(after_s=st.floats(0.0, 100.0))
def test_a_rejected_key_is_refused_by_the_short_way_until_its_probe_is_due(after_s: float) -> None:
    machine = OneCandidate()
    own = Candidate(GROQ, GROQ.facts("groq-model"), MINE)
    machine.board.failed(own, failure(FailureKind.KEY_REJECTED), machine.now, began_at=machine.now)
    machine.time_passes(after_s)

    plan = machine.planned(Planner, tenant(keys=["groq"]), {})

    assert (plan.rejected_key is not None) == (after_s < 5.0)
    assert (plan.ranked == ()) == (after_s < 5.0)
