"""A run's score card, and its verdict as an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from tests.chaos.checker import Kind
from tests.chaos.supervisor import Outcome, ends_of

EXIT_RIGHT = 0
EXIT_WRONG = 1
EXIT_KILLED_BY_OTHERS = 3  # most likely by the kernel for want of memory: says nothing about the books

_SHOWN_FINDINGS = 20


def exit_code(outcome: Outcome) -> int:
    """What a run's process ends with."""
    if outcome.findings or outcome.violations or outcome.crashes:
        return EXIT_WRONG
    return EXIT_KILLED_BY_OTHERS if outcome.kills_by_others else EXIT_RIGHT


def numbers(outcome: Outcome) -> tuple[int, int, int]:
    """Lost, duplicated, wrong."""
    found = Counter(finding.kind for finding in outcome.findings)
    return found[Kind.LOST], found[Kind.DUPLICATED], found[Kind.WRONG]


def lines(outcome: Outcome) -> Iterator[str]:
    """The score card."""
    shape, faults = outcome.shape, outcome.faults
    sabotage = f", SABOTAGE={shape.sabotage}" if shape.sabotage else ""
    yield f"seed {shape.seed}{sabotage}: {shape.storms} storms of {shape.storm_s:.0f} s in {outcome.took_s:.0f} s"
    by_kind: Counter[str] = Counter()
    for (kind, _), times in faults.injected.items():
        by_kind[kind] += times
    yield f"faults {sum(by_kind.values())}: " + ", ".join(f"{kind} {times}" for kind, times in sorted(by_kind.items()))
    yield "kill -9: " + ", ".join(f"{name} {times}" for name, times in sorted(faults.kills.items()))
    yield f"full disk: {outcome.disk}"
    statuses = Counter(row.status for row in outcome.rows)
    completed = sum(call.final is not None for call in outcome.calls)
    yield (
        f"requests {len(outcome.calls)}: completed {completed}, interrupted {statuses['interrupted']} (all recorded); "
        f"provider worked on {outcome.provider_requests}, rows {len(outcome.rows)}"
    )
    yield "for the callers: " + _counted(ends_of(outcome.calls))
    yield "in the books: " + _counted(statuses)
    for name, times_s in sorted(outcome.start_times_s.items()):
        yield f"start of {name}: {_spread(times_s)}"
    if faults.refused_starts:
        yield "starts refused for want of the database, tried again: " + _counted(faults.refused_starts)
    yield f"first success of each router after the storm: {_spread(outcome.first_success_s)}"
    yield f"journals empty after the storm: {_spread(outcome.drain_s)}; most events waiting {outcome.deepest_backlog}"
    for line in (*outcome.violations, *map(str, outcome.crashes), *map(str, outcome.kills_by_others)):
        yield f"VIOLATION {line}"
    for finding in outcome.findings[:_SHOWN_FINDINGS]:
        yield f"{finding.kind.upper()} {finding.what}"
    if len(outcome.findings) > _SHOWN_FINDINGS:
        yield f"… and {len(outcome.findings) - _SHOWN_FINDINGS} more"
    lost, duplicated, wrong = numbers(outcome)
    yield f"lost {lost}, duplicated {duplicated}, wrong {wrong}"


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def _spread(values_s: Sequence[float]) -> str:
    if not values_s:
        return "never"
    return f"median {median(values_s):.1f} s, longest {max(values_s):.1f} s of {len(values_s)}"
