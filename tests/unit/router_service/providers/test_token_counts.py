from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.domain.usage import TokenUsage
from router_service.providers.token_counts import cost_from_usage, usage_from_openai, usage_from_timings

COUNTS = st.integers(0, 10_000)


def reported(prompt: Any = 0, completion: Any = 0, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_classes_are_disjoint_and_keep_the_totals(
    prompt: int, completion: int, cached: int, written: int, thought: int
) -> None:
    usage = usage_from_openai(
        reported(
            prompt,
            completion,
            prompt_tokens_details={"cached_tokens": cached, "cache_write_tokens": written},
            completion_tokens_details={"reasoning_tokens": thought},
        )
    )

    assert usage is not None
    assert usage.input_tokens + usage.cached_read_tokens + usage.cached_write_tokens == prompt
    assert usage.output_tokens + usage.reasoning_tokens == completion
    assert min(usage.input_tokens, usage.output_tokens) >= 0


def test_reasoning_beside_the_completion_stays_beside_it_where_the_total_says_so() -> None:
    details = {"reasoning_tokens": 7}

    usage = usage_from_openai(reported(10, 5, total_tokens=22, completion_tokens_details=details))

    assert usage == TokenUsage(10, 5, reasoning_tokens=7)


def test_an_explicit_zero_is_a_value() -> None:
    assert usage_from_openai(reported(0, 0)) == TokenUsage()


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "total_tokens": 10}, TokenUsage(3, 7)),
        ({"completion_tokens": 3, "total_tokens": 10}, TokenUsage(7, 3)),
        (reported("12", 3.0), TokenUsage(12, 3)),
        (reported(1, 2, prompt_tokens_details=None, completion_tokens_details=[]), TokenUsage(1, 2)),
        ({}, None),
        ({"prompt_tokens": 3}, None),
        (reported(-5, 3), None),
        (reported(-0.5, 3), None),
        (reported(1_000_000_000.5, 3), None),
        (reported(2**64, 3), None),
        (reported("many", 3), None),
        (reported(True, 3), None),
        (reported(None, None), None),
        (reported(float("nan"), 3), None),
        ([], None),
        ("x", None),
    ],
)
def test_what_is_no_credible_report_is_none(usage: object, expected: TokenUsage | None) -> None:
    assert usage_from_openai(usage) == expected


def test_the_timings_of_llama_server_are_usage() -> None:
    assert usage_from_timings({"prompt_n": 4, "cache_n": 96, "predicted_n": 8}) == TokenUsage(4, 8, 96)
    assert usage_from_timings({"prompt_n": 4}) is None


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (0.000217, Decimal("0.000217")),
        ("0.01", Decimal("0.01")),
        (0, Decimal(0)),
        (-1, None),
        (1e300, None),
        pytest.param(10**5000, None, id="huge"),
        (float("nan"), None),
        ("x" * 100, None),
        (True, None),
        (None, None),
    ],
)
def test_the_cost_that_the_vendor_names_is_exact_or_absent(cost: object, expected: Decimal | None) -> None:
    assert cost_from_usage({"cost": cost}) == expected
