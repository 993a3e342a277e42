"""Two runs of the bench held against each other, and what cannot be."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.figures import Entry, Figure, read_results, require_writable, write_results
from tests.bench.processes import BenchFailed
from tests.bench.report import print_comparison

GOOD: Mapping[str, object] = {"figure": "a", "unit": "ms", "median": 2, "min": 1, "max": 3, "conditions": "c"}


def entry(*samples: float, name: str = "cost", unit: str = "ms", conditions: str = "32 in flight") -> Entry:
    low, median, high = samples
    return Entry(name, unit, median, low, high, conditions)


def compared(before: Entry, after: Entry) -> list[str]:
    """The cells of the one row."""
    console = Console(file=io.StringIO(), width=120)
    print_comparison(console, {before.figure: before}, {after.figure: after})
    assert isinstance(console.file, io.StringIO)
    row = next(line for line in console.file.getvalue().splitlines() if "cost" in line)
    return [cell.strip() for cell in row.strip("\u2502").split("\u2502")]


@pytest.mark.parametrize(
    ("before", "after", "ratio", "caveat"),
    [
        pytest.param(entry(1, 2, 3), entry(4, 5, 6), "2.50", "", id="apart"),
        pytest.param(entry(1, 2, 3), entry(2, 3, 4), "1.50", "spreads overlap", id="overlapping"),
        pytest.param(entry(2, 2, 2), entry(3, 4, 5), "2.00", "spread unknown", id="a run of one round"),
        pytest.param(entry(1, 2, 3), entry(4, 5, 6, conditions="8 in flight"), "2.50", "other conditions", id="smoke"),
        pytest.param(entry(1, 2, 3), entry(4, 5, 6, unit="us"), "-", "A is in ms", id="units"),
        pytest.param(entry(-3, -2, -1), entry(4, 5, 6), "-", "", id="below zero"),
        pytest.param(entry(0, 0, 1), entry(4, 5, 6), "-", "", id="zero"),
    ],
)
def test_a_ratio_stands_beside_what_speaks_against_it(before: Entry, after: Entry, ratio: str, caveat: str) -> None:
    cells = compared(before, after)

    assert (cells[3], cells[5]) == (ratio, caveat)


def test_a_figure_that_one_run_lacks_is_said_to_be_the_others() -> None:
    both, console = entry(1, 2, 3), Console(file=io.StringIO(), width=120)

    print_comparison(console, {"x": both, "old": entry(1, 2, 3, name="old")}, {"x": both, "new": entry(7, 8, 9)})

    assert isinstance(console.file, io.StringIO)
    assert "only in A" in console.file.getvalue()
    assert "only in B" in console.file.getvalue()


def test_runs_of_different_benches_are_not_compared() -> None:
    with pytest.raises(BenchFailed, match="no figure in common; compare two runs of the same bench"):
        print_comparison(Console(file=io.StringIO()), {"a": entry(1, 2, 3)}, {"b": entry(1, 2, 3)})


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"[1]",
        json.dumps([{name: value for name, value in GOOD.items() if name != "median"}]).encode(),
        json.dumps([{**GOOD, "median": "much"}]).encode(),
        json.dumps([{**GOOD, "max": None}]).encode(),
        json.dumps([GOOD, GOOD]).encode(),
    ],
    ids=[
        "missing",
        "empty",
        "cut off",
        "no text",
        "no list",
        "no figures",
        "no figure",
        "no median",
        "text",
        "null",
        "twice",
    ],
)
def test_a_file_that_is_no_results_is_named_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=rf"^{path} .*; name a file that a run of the bench has written by --output$"):
        read_results(path)


def test_what_a_run_writes_has_the_promised_keys_and_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "results.json"

    write_results(path, [Figure("cost", "ms", (3.0, 1.0, 2.0), "32 in flight; 3 samples")])

    assert json.loads(path.read_text()) == [
        {"figure": "cost", "unit": "ms", "median": 2, "min": 1, "max": 3, "conditions": "32 in flight; 3 samples"}
    ]
    assert read_results(path) == {"cost": entry(1, 2, 3, conditions="32 in flight; 3 samples")}


def test_results_that_could_not_be_written_are_refused_before_the_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "results.json"):
        with pytest.raises(ValueError, match="cannot be written; name a file in a directory that exists by --output"):
            require_writable(path)
    require_writable(tmp_path / "results.json")

    assert not list(tmp_path.iterdir())
