"""The short ways to a refusal say what ranking all candidates says, after any events."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_service.domain.candidate import Candidate
from router_service.domain.completion import TaskType
from router_service.domain.errors import FailureKind
from router_service.domain.selection import Needs, Selection
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import Funding
from router_service.routing.failures import key_rejected
from router_service.routing.planning import Plan, Planner
from router_service.routing.scoreboard import Block, Scoreboard
from tests.support.router_fakes import TODAY, FakeLimits, FakePrices, failure, key, spec, tenant

GROQ, LLM7 = spec("groq"), spec("llm7")
MINE, OPERATORS = key("groq"), key("operator", Funding.SYSTEM_KEY)
CANDIDATES = [
    *(Candidate(GROQ, GROQ.facts("groq-model"), whose) for whose in (MINE, OPERATORS, key("stranger"))),
    Candidate(LLM7, LLM7.facts("llm7-model"), key("llm7")),
]


CONFIGS = [
    InferenceConfig(preferred_provider="groq"),
    InferenceConfig(preferred_provider="groq", auto_failover=False),
    InferenceConfig(preferred_provider="groq", score_weights={"preference": 14.0}),
    InferenceConfig(preferred_provider="groq", score_weights={"preference": 17.0, "price": 0.0}),
    InferenceConfig(preferred_provider="llm7"),
    InferenceConfig(),
]


class WholeWay(Planner):
    """Ranks and parts whatever there is."""

    def _rejected_key(self, *_: object) -> Block | None:
        return None

    def _of_a_resting_only_candidate(self, tenant: Tenant, selection: Selection, now: float) -> Plan | None:
        del tenant, selection, now
        return None


class Events(RuleBasedStateMachine):
    """A tenant's keys for one or two providers, a stranger on the same route, an operator's key, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.board = Scoreboard(max_entries=100)
        self.running: list[tuple[Candidate, float]] = []

    def planner(self, kind: type[Planner], credentials: dict[str, Credential]) -> Planner:
        return kind(
            catalog={"groq": GROQ, "llm7": LLM7},
            system_credentials=credentials,
            prices=FakePrices(),
            limits=FakeLimits(),
            scoreboard=self.board,
            score_weights={},
            today=lambda: TODAY,
        )

    def planned(self, planner: Planner, who: Tenant, *, luck: float = 0.5) -> Plan:
        return planner.plan(who, Needs(), TaskType.CHAT, now=self.now, remaining_s=30.0, luck=lambda: luck)

    def rejected(self, who: Tenant) -> Block | None:
        """The key that the request is refused for, and without ranking anybody."""
        plan = self.planned(self.planner(Planner, {}), who)
        return plan.rejected_key if not plan.ranked and len(plan.blocks) == 1 else None

    @rule(seconds=st.floats(0.0, 70.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(candidate=st.sampled_from(CANDIDATES))
    def an_attempt_begins(self, candidate: Candidate) -> None:
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
    def an_only_candidate_that_rests_is_refused_as_if_it_were_ranked(self) -> None:
        for auto_failover in (True, False):
            config = InferenceConfig(preferred_provider="groq", auto_failover=auto_failover)
            for who, credentials in (
                (tenant(keys=["groq"], config=config), {}),
                (tenant(config=config), {"groq": OPERATORS}),
            ):
                short, whole = self.planner(Planner, credentials), self.planner(WholeWay, credentials)
                assert self.planned(short, who) == self.planned(whole, who)

    @invariant()
    def a_key_is_called_rejected_only_where_the_plan_calls_it_so(self) -> None:
        for config in CONFIGS:
            who = tenant(keys=["groq", "llm7"], config=config)
            rejected = self.rejected(who)
            if rejected is None:
                continue
            for luck in (0.0, 1.0):
                plan = self.planned(self.planner(WholeWay, {}), who, luck=luck)
                assert plan.rejected_key is not None
                assert vars(key_rejected(rejected, who)) == vars(key_rejected(plan.rejected_key, who))


TestEvents = Events.TestCase
TestEvents.settings = settings(max_examples=50, stateful_step_count=25)


def after_a_rejection(seconds: float) -> Events:
    world = Events()
    world.board.failed(CANDIDATES[0], failure(FailureKind.KEY_REJECTED), world.now, began_at=world.now)
    world.time_passes(seconds)
    return world


@given(seconds=st.floats(0.0, 100.0))
def test_an_only_rejected_key_is_refused_until_its_probe_is_due(seconds: float) -> None:
    world, who = after_a_rejection(seconds), tenant(keys=["groq"])

    plan = world.planned(world.planner(Planner, {}), who)

    assert (plan.rejected_key is not None) == (seconds < 5.0)
    assert (plan.ranked == ()) == (seconds < 5.0)


@given(seconds=st.floats(0.0, 59.9))
def test_a_preferred_rejected_key_is_refused_without_ranking_while_it_rests(seconds: float) -> None:
    world, who = after_a_rejection(seconds), tenant(keys=["groq", "llm7"], config=CONFIGS[0])

    assert world.rejected(who) is not None


def test_where_the_preference_may_be_outweighed_the_ranking_decides() -> None:
    slight = InferenceConfig(preferred_provider="groq", score_weights={"preference": 1.0})
    world, who = after_a_rejection(1.0), tenant(keys=["groq", "llm7"], config=slight)

    assert world.rejected(who) is None
