"""The checker finds each kind of damage in doctored facts, and nothing in sound ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

import pytest

from tests.chaos.checker import Case, Finding, Garbling, Kind, check
from tests.chaos.witnesses import Books, Call, Final, Row, SeenAttempt, Served, Tokens

TENANT = "tenant-1"
MODEL = "deepseek/deepseek-r1"
TOKENS = Tokens(input=7, output=10, cached_read=3)
COST = Decimal("0.000027400000")  # (10 × 0.55 + 10 × 2.19) / 1,000,000


def row(number: int, request: str, **changes: object) -> Row:
    sound = Row(
        id=f"event-{number}",
        request_id=request,
        tenant_id=TENANT,
        attempt=1,
        provider="openrouter",
        model=MODEL,
        status="success",
        absorbed=False,
        usage_source="provider",
        tokens=TOKENS,
        total_tokens=TOKENS.total,
        cost_usd=COST,
        router_id="router",
        epoch="epoch",
        sequence=number,
    )
    return replace(sound, **changes)  # type: ignore[arg-type]


def failed(number: int, request: str, **changes: object) -> Row:
    nothing = {"tokens": Tokens(), "total_tokens": 0, "cost_usd": None, "usage_source": "none"}
    return row(number, request, **{"status": "error", "absorbed": True, **nothing, **changes})


def served(request: str, **changes: object) -> Served:
    sound = Served(request, MODEL, tokens_generated=10, reported=(10, 10), began_at=100.0, ended_at=101.0)
    return replace(sound, **changes)  # type: ignore[arg-type]


def call(request: str, *attempts: SeenAttempt) -> Call:
    final = Final("openrouter", MODEL, TOKENS, "0.000027")
    return Call(request, TENANT, "router-a", "stream", 100.0, "result", "Completion", 101.0, final, attempts, True)


@dataclass
class Facts:
    """A success at the first attempt, a success at the second, and a caller who was killed while a router died."""

    calls: list[Call] = field(
        default_factory=lambda: [
            call("first", SeenAttempt(1, "event-1", "success")),
            call("second", SeenAttempt(1, "event-2", "error"), SeenAttempt(2, "event-3", "success")),
            Call("third", TENANT, "router-b", "unary", 100.0),
        ]
    )
    served: list[Served] = field(
        default_factory=lambda: [
            served("first"),
            served("second", tokens_generated=0, reported=None),
            served("second"),
            served("third", tokens_generated=2, reported=None),
        ]
    )
    rows: list[Row] = field(
        default_factory=lambda: [
            row(1, "first"),
            failed(2, "second"),
            row(3, "second", attempt=2),
            row(4, "third", status="interrupted", usage_source="estimated"),
        ]
    )
    kept_aside: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    garblings: list[Garbling] = field(default_factory=list)

    def findings(self) -> list[Finding]:
        books = Books(self.rows, self.kept_aside, self.differences)
        return check(Case(self.calls, self.served, books, self.garblings))


def change(number: int, **changes: object) -> Callable[[Facts], None]:
    """The row with that number otherwise than it should be."""

    def doctor(facts: Facts) -> None:
        facts.rows[number - 1] = replace(facts.rows[number - 1], **changes)  # type: ignore[arg-type]

    return doctor


def drop(number: int) -> Callable[[Facts], None]:
    def doctor(facts: Facts) -> None:
        del facts.rows[number - 1]

    return doctor


def add(*rows: Row) -> Callable[[Facts], None]:
    return lambda facts: facts.rows.extend(rows)


DAMAGE: dict[str, tuple[Callable[[Facts], None], Kind]] = {
    "the row of a success": (drop(1), Kind.LOST),
    "the last row of a router, which leaves no gap": (drop(4), Kind.LOST),
    "the row of an absorbed attempt": (drop(2), Kind.LOST),
    "a sequence": (change(4, sequence=6), Kind.LOST),
    "an event twice": (add(row(1, "first", sequence=5)), Kind.DUPLICATED),
    "an attempt twice under another event": (add(row(5, "first")), Kind.DUPLICATED),
    "a sequence twice": (change(4, sequence=3), Kind.DUPLICATED),
    "other tokens than caller and provider saw": (
        change(1, tokens=replace(TOKENS, output=11), total_tokens=21, cost_usd=Decimal("0.00002959")),
        Kind.WRONG,
    ),
    "the same sum in other classes": (change(1, tokens=Tokens(input=10, output=10)), Kind.WRONG),
    "a total that is no sum": (change(1, total_tokens=19), Kind.WRONG),
    "another cost": (change(1, cost_usd=COST + Decimal("0.000000000001")), Kind.WRONG),
    "no cost": (change(1, cost_usd=None), Kind.WRONG),
    "another model": (change(1, model="other"), Kind.WRONG),
    "another tenant": (change(4, tenant_id="tenant-2"), Kind.WRONG),
    "another status than the caller was told": (change(2, status="rate_limit"), Kind.WRONG),
    "a success that is called absorbed": (change(1, absorbed=True), Kind.WRONG),
    "two outcomes of one request": (change(2, absorbed=False), Kind.WRONG),
    "nothing for generated tokens": (
        change(4, tokens=Tokens(), total_tokens=0, cost_usd=None, usage_source="none"),
        Kind.WRONG,
    ),
    "a provider's count that it never reported": (change(4, usage_source="provider"), Kind.WRONG),
    "a request that nobody made": (add(row(5, "fourth")), Kind.WRONG),
    "an event kept aside": (lambda facts: facts.kept_aside.append("conflict event-9"), Kind.WRONG),
    "a rollup that is no sum": (lambda facts: facts.differences.append("minute rollup"), Kind.WRONG),
    "a call that a fault of ours ended": (
        lambda facts: facts.calls.append(Call("fourth", TENANT, "router-a", "stream", 100.0, "INTERNAL")),
        Kind.WRONG,
    ),
    "a text that was cut": (
        lambda facts: facts.calls.__setitem__(0, replace(facts.calls[0], text_is_right=False)),
        Kind.WRONG,
    ),
}


def test_sound_books_have_no_findings() -> None:
    assert Facts().findings() == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(damage: str) -> None:
    doctor, kind = DAMAGE[damage]
    facts = Facts()

    doctor(facts)

    assert kind in {finding.kind for finding in facts.findings()}


def test_a_lost_row_counts_once_for_each_witness_who_knows_of_it() -> None:
    facts = Facts()
    del facts.rows[0]

    kinds = {finding.kind for finding in facts.findings()}

    assert kinds == {Kind.LOST}


def test_what_was_garbled_on_its_way_need_not_be_what_the_provider_said_but_what_the_caller_saw() -> None:
    facts = Facts(garblings=[Garbling(100.5, 100.6)])
    facts.served[0] = replace(facts.served[0], reported=(10, 99))
    assert facts.findings() == []

    change(1, tokens=replace(TOKENS, output=99), total_tokens=109)(facts)

    assert Kind.WRONG in {finding.kind for finding in facts.findings()}


def test_of_an_answer_that_was_garbled_whole_nothing_need_be_counted() -> None:
    facts = Facts(garblings=[Garbling(100.5, 100.6)])

    change(4, tokens=Tokens(), total_tokens=0, cost_usd=None, usage_source="none")(facts)

    assert facts.findings() == []


def test_of_an_answer_that_was_garbled_there_is_still_a_row() -> None:
    facts = Facts(garblings=[Garbling(100.5, 100.6)])

    drop(4)(facts)

    assert Kind.LOST in {finding.kind for finding in facts.findings()}


def test_rows_of_requests_that_never_reached_a_provider_are_no_surprise() -> None:
    facts = Facts()
    facts.calls.append(Call("refused", TENANT, "router-a", "unary", 100.0, "RATE_LIMITED"))
    facts.calls.append(Call("unreached", TENANT, "router-a", "unary", 100.0, "ALL_TARGETS_FAILED"))
    add(failed(5, "refused", provider="turnpike", absorbed=False), failed(6, "unreached", absorbed=False))(facts)

    assert facts.findings() == []
