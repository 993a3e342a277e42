"""S6 in a simulation of breakers, scores and budgets together; the router itself is in tests/e2e."""

from __future__ import annotations

import functools

import pytest

from tests.bench.brown_out import SCENARIOS, Outcome, Simulation


@functools.cache  # several tests look at the same run
def simulated(scenario: str, rate: int, answer_s: float, seed: int) -> Outcome:
    simulation = Simulation(failing=SCENARIOS[scenario], answer_s=answer_s, seed=seed)
    return simulation.run(requests_per_s=rate, seconds=60)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("rate", "answer_s"), [(10, 1.0), (50, 0.05), (50, 5.0)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_load_is_multiplied_by_a_fifth_at_most(scenario: str, rate: int, answer_s: float, seed: int) -> None:
    outcome = simulated(scenario, rate, answer_s, seed)

    assert outcome.amplification <= 1.2
    assert outcome.served + outcome.refused + outcome.failed == outcome.requests


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("rate", "answer_s"), [(10, 1.0), (50, 0.05), (50, 5.0)])
@pytest.mark.parametrize("scenario", ["one fails half", "one is dead"])
def test_while_one_provider_is_well_nobody_is_refused_and_hardly_anybody_fails(
    scenario: str, rate: int, answer_s: float, seed: int
) -> None:
    outcome = simulated(scenario, rate, answer_s, seed)

    assert outcome.refused == 0
    assert outcome.failed <= 0.005 * outcome.requests


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("rate", "answer_s"), [(10, 1.0), (50, 0.05), (50, 5.0)])
def test_while_every_provider_fails_half_about_half_of_the_callers_are_served(
    rate: int, answer_s: float, seed: int
) -> None:
    outcome = simulated("both fail half", rate, answer_s, seed)

    assert outcome.served >= 0.4 * outcome.requests


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("rate", "answer_s"), [(10, 1.0), (50, 0.05), (50, 5.0)])
def test_providers_that_are_dead_are_left_alone_though_nobody_else_is_there(
    rate: int, answer_s: float, seed: int
) -> None:
    outcome = Simulation(failing=(1.0, 1.0), answer_s=answer_s, seed=seed).run(requests_per_s=rate, seconds=60)

    assert outcome.amplification <= 0.2
    assert outcome.refused >= 0.85 * outcome.requests
