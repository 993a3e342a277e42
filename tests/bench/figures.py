"""Figures: what was measured, under what conditions, and what it is held against."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for a median."""

    limit: float
    is_at_most: bool = True

    def is_met_by(self, value: float) -> bool:
        return value <= self.limit if self.is_at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.is_at_most else '≥'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure over the rounds of a run. `samples` has one value per round and is never empty."""

    name: str
    unit: str
    samples: Sequence[float]
    conditions: str
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def as_entry(self) -> dict[str, str | float]:
        """The figure as it stands in the results file."""
        return {
            "figure": self.name,
            "unit": self.unit,
            "median": round(self.median, 4),
            "min": round(min(self.samples), 4),
            "max": round(max(self.samples), 4),
            "conditions": self.conditions,
        }


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value that `fraction` of the ascending values do not exceed."""
    return ordered[max(0, -(-int(len(ordered) * fraction * 1_000) // 1_000) - 1)]


def write_results(path: Path, figures: Sequence[Figure]) -> None:
    path.write_text(json.dumps([figure.as_entry() for figure in figures], indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_results(path: Path) -> Mapping[str, Mapping[str, str | float]]:
    """A results file by figure. Raises OSError, or ValueError when it is not one."""
    entries = json.loads(path.read_text("utf-8"))
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "figure" in each for each in entries):
        raise ValueError(f"{path} is not a results file of the bench")
    return {str(entry["figure"]): entry for entry in entries}
