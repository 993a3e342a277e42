from __future__ import annotations

import json

import pytest

from turnpike_client.cli.decision import difference, left_out, ranking

KEPT = json.dumps(
    {
        "terms": ["preference", "latency", "price"],
        "weights": [6.0, 3, 1],
        "rank": [
            ["groq", "m", "tenant_key", 0.913, [1.0, 0.5, 0.2]],
            ["llm7", "n", "", 0.341, [0.0, 0.9, 0.2]],
            ["local", "o", "", 0.2],
        ],
        "out": [["openrouter", "", "NO_KEY"], ["llm7", "gpt-4-turbo", "MODEL_RETIRED"]],
    }
)


def test_a_decision_is_told_in_three_short_texts() -> None:
    assert ranking(KEPT) == "groq 0.91, llm7 0.34, local 0.20"
    assert difference(KEPT) == "preference +0.600, latency -0.120"
    assert left_out(KEPT) == "openrouter NO_KEY, llm7 MODEL_RETIRED"


@pytest.mark.parametrize(
    "kept", ["", "{}", "[]", "no JSON", '{"rank": 3, "shortened": true}', '{"rank":[["a","b","",1.0]]}']
)
def test_a_decision_that_was_not_kept_or_is_of_another_version_says_nothing(kept: str) -> None:
    assert (difference(kept), left_out(kept)) == ("-", "-")


def test_equal_candidates_were_chosen_by_luck() -> None:
    equal = {"terms": ["price"], "weights": [1], "rank": [["a", "m", "", 0.5, [0.5]], ["b", "m", "", 0.5, [0.5]]]}

    assert difference(json.dumps(equal)) == "equal: by luck"
