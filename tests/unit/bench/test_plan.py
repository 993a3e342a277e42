"""A run has a number for every figure of its table, or it has failed."""

from __future__ import annotations

import pytest

from tests.bench.plan import FULL, SMOKE, contracts, figures_of
from tests.bench.processes import BenchFailed

WHOLE = {name: [2.0, 1.0, 3.0] for name in contracts(SMOKE)}


def test_the_figures_of_a_run_are_those_of_the_table_in_its_order() -> None:
    figures = figures_of(SMOKE, WHOLE)

    assert [figure.name for figure in figures] == list(contracts(SMOKE))
    assert all(figure.conditions.endswith("; 3 samples") for figure in figures)


@pytest.mark.parametrize("samples", [None, [], [1.0, float("nan")]], ids=["never taken", "none", "no number"])
@pytest.mark.parametrize("name", contracts(SMOKE))
def test_a_run_without_one_of_its_figures_has_failed(name: str, samples: list[float] | None) -> None:
    taken = {**WHOLE, name: samples} if samples is not None else {each: WHOLE[each] for each in WHOLE if each != name}

    with pytest.raises(BenchFailed, match=f"^no value for {name}$"):
        figures_of(SMOKE, taken)


def test_a_sample_of_no_figure_is_a_mistake() -> None:
    with pytest.raises(BenchFailed, match=r"^not in the table of figures: router CPU per brust stream$"):
        figures_of(SMOKE, {**WHOLE, "router CPU per brust stream": [1.0]})


def test_what_a_short_run_has_done_less_of_its_conditions_say() -> None:
    assert "20,000 unary requests" in contracts(FULL)["router RSS growth, unary requests"][1]
    assert "100 unary requests" in contracts(SMOKE)["router RSS growth, unary requests"][1]
