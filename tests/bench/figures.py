"""Figures: what was measured, under what conditions, and what it is held against."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec


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


class Entry(msgspec.Struct, frozen=True):
    """A figure as it was read from a results file."""

    figure: str
    unit: str
    median: float
    min: float
    max: float
    conditions: str


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The value that `fraction` of the ascending values do not exceed."""
    return ordered[max(0, -(-int(len(ordered) * fraction * 1_000) // 1_000) - 1)]


def require_writable(path: Path) -> None:
    """Raise ValueError, before anything is measured, when there is no place for the results at `path`."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written; name a file in a directory that exists by --output")


def write_results(path: Path, figures: Sequence[Figure]) -> None:
    path.write_text(json.dumps([figure.as_entry() for figure in figures], indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_results(path: Path) -> Mapping[str, Entry]:
    """A results file by figure. Raises ValueError, naming the file, when it is none."""
    remedy = "name a file that a run of the bench has written by --output"
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[Entry])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read as results of a bench: {cause}; {remedy}") from error
    by_name = {entry.figure: entry for entry in entries}
    if not entries or len(by_name) < len(entries):
        raise ValueError(f"{path} has no figures, or one of them twice; {remedy}")
    return by_name
