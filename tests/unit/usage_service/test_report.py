"""The total of a report's groups."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from usage_service.domain import histogram
from usage_service.domain.pricing import TokenCounts
from usage_service.domain.report import Cost, Durations, ModelUsage, Outcomes, total_of

COUNTS = st.integers(min_value=0, max_value=2**40)
USD = st.decimals(min_value=0, max_value=10**6, places=12)
DURATIONS_MS = st.lists(st.integers(min_value=0, max_value=2_000_000), max_size=20)


def durations(measured_ms: Sequence[int]) -> Durations:
    return Durations(len(measured_ms), sum(measured_ms), histogram.count(measured_ms))


@st.composite
def groups(draw: st.DrawFn) -> tuple[ModelUsage, list[int]]:
    """Usage of one model, and the latencies that it is of."""
    measured_ms = draw(DURATIONS_MS)
    usage = ModelUsage(
        "groq",
        draw(st.sampled_from(["a", "b"])),
        Outcomes(*draw(st.tuples(*[COUNTS] * 7))),
        TokenCounts(*draw(st.tuples(*[COUNTS] * 5))),
        Cost(*draw(st.tuples(USD, USD, COUNTS, COUNTS))),
        durations(measured_ms),
        durations(measured_ms[:1]),
    )
    return usage, measured_ms


@given(st.lists(groups(), max_size=4))
def test_the_total_adds_up_every_figure_exactly_and_names_nobody(drawn: list[tuple[ModelUsage, list[int]]]) -> None:
    usages = [usage for usage, _ in drawn]

    total = total_of(usages)

    assert (total.provider, total.model) == ("", "")
    for figure in Outcomes._fields:
        assert getattr(total.outcomes, figure) == sum(getattr(usage.outcomes, figure) for usage in usages)
    for figure in TokenCounts._fields:
        assert getattr(total.tokens, figure) == sum(getattr(usage.tokens, figure) for usage in usages)
    assert total.cost.exact_usd == sum((usage.cost.exact_usd for usage in usages), Decimal(0))
    assert total.cost.estimated_usd == sum((usage.cost.estimated_usd for usage in usages), Decimal(0))
    assert total.cost.unpriced_attempts == sum(usage.cost.unpriced_attempts for usage in usages)
    assert total.cost.unpriced_tokens == sum(usage.cost.unpriced_tokens for usage in usages)
    assert total.latency == durations([ms for _, measured_ms in drawn for ms in measured_ms])
    assert total.first_token == durations([ms for _, measured_ms in drawn for ms in measured_ms[:1]])


def test_the_total_of_nothing_is_zero() -> None:
    assert total_of([]) == ModelUsage()
