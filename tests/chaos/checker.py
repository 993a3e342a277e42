"""Compares the witnesses, and says what was lost, duplicated or wrong.

It knows neither a service nor the network: facts in, findings out. `tests/unit/chaos` doctors the facts and proves that
each kind of damage is found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from itertools import groupby
from typing import TypeVar

from tests.chaos.witnesses import Books, Call, Row, SeenAttempt, Served

# US dollars per million tokens, input and output: the seeds of the price book, written down here again on purpose.
CONTRACT_PRICES: Mapping[tuple[str, str], tuple[Decimal, Decimal]] = {
    ("openrouter", "deepseek/deepseek-r1"): (Decimal("0.55"), Decimal("2.19")),
    ("llm7", "gpt-4o-mini"): (Decimal("0.15"), Decimal("0.60")),
    ("local", "default"): (Decimal(0), Decimal(0)),
}
_MILLION = Decimal(1_000_000)
_LEDGER_UNIT = Decimal("0.000000000001")
_CALLER_UNIT = Decimal("0.000001")
_REFUSED_BY_TURNPIKE = "turnpike"

T = TypeVar("T")


class Kind(StrEnum):
    """What is wrong with the books."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the witnesses do not agree on."""

    kind: Kind
    what: str


@dataclass(frozen=True, slots=True)
class Garbling:
    """A time, in wall-clock seconds, in which bytes between router and provider were changed on their way.

    What the provider generated and reported then need not be what the router read: the status may have been hit. That
    each of its answers has a row still holds, and that the caller and the ledger agree.
    """

    began_at: float
    ended_at: float

    def touches(self, served: Served) -> bool:
        return served.began_at <= self.ended_at and self.began_at <= served.ended_at


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that the witnesses said, and each one's part by request."""

    calls: Sequence[Call]
    served: Sequence[Served]
    books: Books
    garblings: Sequence[Garbling] = ()

    def is_garbled(self, lines: Iterable[Served]) -> bool:
        return any(garbling.touches(line) for line in lines for garbling in self.garblings)


def check(case: Case) -> list[Finding]:
    """Everything that does not fit. Empty when the books are right."""
    checks: Sequence[Callable[[Case], Iterator[Finding]]] = (
        _each_row_is_there_once,
        _sequences_have_no_gap,
        _final_messages_are_in_the_books,
        _attempts_that_callers_know_are_in_the_books,
        _the_provider_has_no_more_to_bill,
        _rows_say_what_the_provider_said,
        _no_row_comes_from_nowhere,
        _each_request_has_one_outcome,
        _costs_are_price_times_tokens,
        _texts_are_whole,
        _no_call_met_a_fault_of_ours,
        _sums_are_sums,
    )
    return [finding for check_one in checks for finding in check_one(case)]


def _each_row_is_there_once(case: Case) -> Iterator[Finding]:
    rows = case.books.rows
    for what, key in (
        ("event", lambda row: row.id),
        ("attempt", lambda row: (row.request_id, row.attempt)),
        ("sequence", lambda row: (row.router_id, row.epoch, row.sequence) if row.sequence else row.id),
    ):
        for value, count in Counter(map(key, rows)).items():
            if count > 1:
                yield Finding(Kind.DUPLICATED, f"{what} {value} has {count} rows")


def _sequences_have_no_gap(case: Case) -> Iterator[Finding]:
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in case.books.rows:
        numbers[row.router_id, row.epoch].add(row.sequence)
    for (router, epoch), found in numbers.items():
        for missing in sorted(set(range(1, max(found) + 1)) - found):
            yield Finding(Kind.LOST, f"router {router} epoch {epoch} has no row with sequence {missing}")


def _final_messages_are_in_the_books(case: Case) -> Iterator[Finding]:
    rows = _by(case.books.rows, lambda row: row.request_id)
    for call in case.calls:
        if call.final is None:
            continue
        succeeded = [row for row in rows[call.request_id] if row.status == "success" and not row.absorbed]
        if not succeeded:
            yield Finding(Kind.LOST, f"request {call.request_id} ended well for its caller and has no row of success")
        for row in succeeded:
            seen, kept = (
                (call.final.provider, call.final.model, call.final.tokens, call.tenant_id),
                (row.provider, row.model, row.tokens, row.tenant_id),
            )
            if seen != kept:
                yield Finding(Kind.WRONG, f"request {call.request_id}: the caller saw {seen}, the row says {kept}")
            if call.final.cost_usd and (
                row.cost_usd is None or row.cost_usd.quantize(_CALLER_UNIT) != Decimal(call.final.cost_usd)
            ):
                yield Finding(
                    Kind.WRONG,
                    f"request {call.request_id}: the caller saw ${call.final.cost_usd}, the row says {row.cost_usd}",
                )


def _attempts_that_callers_know_are_in_the_books(case: Case) -> Iterator[Finding]:
    rows = {row.id: row for row in case.books.rows}
    for call in case.calls:
        for attempt in call.attempts:
            row = rows.get(attempt.event_id)
            if row is None:
                yield Finding(Kind.LOST, f"request {call.request_id}: no row of {attempt}, which the caller knows")
            elif call.final is not None and _told(row) != attempt:
                yield Finding(Kind.WRONG, f"request {call.request_id}: the caller saw {attempt}, the row {_told(row)}")


def _the_provider_has_no_more_to_bill(case: Case) -> Iterator[Finding]:
    rows = _by(case.books.rows, lambda row: row.request_id)
    for request_id, lines in _by(case.served, lambda line: line.request_id).items():
        attempts = [row for row in rows[request_id] if row.provider != _REFUSED_BY_TURNPIKE]
        for _ in range(len(lines) - len(attempts)):
            yield Finding(
                Kind.LOST,
                f"request {request_id}: the provider worked on it {len(lines)} times, it has {len(attempts)} rows",
            )
        worked = sum(line.tokens_generated > 0 for line in lines)
        counted = sum(row.total_tokens > 0 for row in attempts)
        if counted < worked and len(attempts) >= len(lines) and not case.is_garbled(lines):
            yield Finding(
                Kind.WRONG, f"request {request_id}: {worked} attempts generated tokens, {counted} rows count some"
            )


def _rows_say_what_the_provider_said(case: Case) -> Iterator[Finding]:
    served = _by(case.served, lambda line: line.request_id)
    for request_id, rows in _by(case.books.rows, lambda row: row.request_id).items():
        lines = served[request_id]
        if case.is_garbled(lines):
            continue
        kept = Counter((row.model, row.tokens.as_reported) for row in rows if row.usage_source == "provider")
        said = Counter((line.model, line.reported) for line in lines if line.reported is not None)
        for (model, tokens), count in (kept - said).items():
            yield Finding(
                Kind.WRONG,
                f"request {request_id}: {count} rows say {model} reported {tokens}, it reported {dict(said)}",
            )


def _no_row_comes_from_nowhere(case: Case) -> Iterator[Finding]:
    asked = {call.request_id: call.tenant_id for call in case.calls}
    for row in case.books.rows:
        if row.request_id not in asked:
            yield Finding(Kind.WRONG, f"row {row.id} belongs to request {row.request_id}, which nobody made")
        elif asked[row.request_id] != row.tenant_id:
            yield Finding(Kind.WRONG, f"row {row.id} is on tenant {row.tenant_id}, {asked[row.request_id]} asked")


def _each_request_has_one_outcome(case: Case) -> Iterator[Finding]:
    for request_id, rows in _by(case.books.rows, lambda row: row.request_id).items():
        numbers = {row.attempt for row in rows}
        for missing in sorted(set(range(1, max(numbers) + 1)) - numbers):
            yield Finding(Kind.LOST, f"request {request_id} has a row of attempt {max(numbers)}, none of {missing}")
        outcomes = sum(not row.absorbed for row in rows)
        if outcomes != 1:
            said = [(row.attempt, row.status, row.absorbed) for row in rows]
            yield Finding(Kind.WRONG, f"request {request_id} has {outcomes} rows that are not absorbed: {said}")


def _costs_are_price_times_tokens(case: Case) -> Iterator[Finding]:
    for row in case.books.rows:
        if row.total_tokens != row.tokens.total:
            yield Finding(Kind.WRONG, f"row {row.id}: {row.total_tokens} tokens in all, {row.tokens.total} by class")
        price = CONTRACT_PRICES.get((row.provider, row.model))
        if price is None or row.total_tokens == 0:
            continue
        prompt, completion = row.tokens.as_reported
        cost = ((prompt * price[0] + completion * price[1]) / _MILLION).quantize(_LEDGER_UNIT)
        if row.cost_usd != cost:
            yield Finding(Kind.WRONG, f"row {row.id}: costs {row.cost_usd}, price times tokens is {cost}")


def _texts_are_whole(case: Case) -> Iterator[Finding]:
    for call in case.calls:
        if call.text_is_right is False and not case.is_garbled(
            [line for line in case.served if line.request_id == call.request_id]
        ):
            yield Finding(Kind.WRONG, f"request {call.request_id}: the caller saw another text than was generated")


def _no_call_met_a_fault_of_ours(case: Case) -> Iterator[Finding]:
    for call in case.calls:
        if call.outcome == "INTERNAL":
            yield Finding(Kind.WRONG, f"request {call.request_id} ended in INTERNAL on {call.router}: see its log")


def _sums_are_sums(case: Case) -> Iterator[Finding]:
    for difference in case.books.rollup_differences:
        yield Finding(Kind.WRONG, difference)
    for kept in case.books.kept_aside:
        yield Finding(Kind.WRONG, kept)


def _told(row: Row) -> SeenAttempt:
    return SeenAttempt(row.attempt, row.id, row.status)


def _by(values: Collection[T], key: Callable[[T], str]) -> Mapping[str, list[T]]:
    found: dict[str, list[T]] = defaultdict(list)
    for name, group in groupby(sorted(values, key=key), key=key):
        found[name] = list(group)
    return found
