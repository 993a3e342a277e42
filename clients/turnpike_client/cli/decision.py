"""A routing decision that the books kept, for people: who was how good, what made the difference, and who was out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def ranking(decision: str) -> str:
    """The candidates, best first, with their scores: "groq 0.91, llm7 0.34"; a dash when nothing was kept."""
    return ", ".join(f"{entry[0]} {entry[3]:.2f}" for entry in _list(decision, "rank")) or "-"


def difference(decision: str) -> str:
    """The terms that put the first candidate before the second, the strongest first."""
    detailed = [entry[4] for entry in _list(decision, "rank") if len(entry) > 4]
    if len(detailed) < 2:
        return "-"
    first, second = detailed[:2]
    names, weights = _list(decision, "terms"), _list(decision, "weights")
    gains = [
        ((mine - others) * weight, name)
        for name, weight, mine, others in zip(names, weights, first, second, strict=False)
    ]
    total = sum(weights) or 1.0
    telling = sorted(((gain / total, name) for gain, name in gains if abs(gain / total) >= 0.0005), key=_by_size)
    return ", ".join(f"{name} {gain:+.3f}" for gain, name in telling) or "equal: by luck"


def left_out(decision: str) -> str:
    """Who was excluded, each with its reason."""
    return ", ".join(f"{provider} {reason}" for provider, _, reason in _list(decision, "out")) or "-"


def _by_size(gain: tuple[float, str]) -> float:
    return -abs(gain[0])


def _list(decision: str, name: str) -> Sequence[Any]:
    """A list of the decision; empty where a router of another version has written it otherwise."""
    try:
        found = json.loads(decision)[name]
    except (ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []
