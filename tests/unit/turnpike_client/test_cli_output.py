from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from turnpike.router.v1 import completion_pb2
from turnpike_client.accounting import CostSummary
from turnpike_client.cli.chat import summary
from turnpike_client.cli.output import (
    dollars,
    duration,
    jsonable,
    number,
    one_line,
    plain_table,
    print_table,
    printable,
)
from turnpike_client.cli.reports import cost
from turnpike_client.completion_codec import completion_from_proto


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "unpriced"),
        (Decimal(0), "$0.00"),
        (Decimal("0.000217"), "$0.000217"),
        (Decimal("0.0000004"), "$0.00"),
        (Decimal("12.5"), "$12.50"),
        (Decimal("1E+2"), "$100.00"),
    ],
)
def test_money_is_told_from_the_unknown(amount: Decimal | None, text: str) -> None:
    assert dollars(amount) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (timedelta(milliseconds=210), "210 ms"),
        (timedelta(seconds=1.234), "1.23 s"),
        (timedelta(minutes=5), "5 min"),
        (timedelta(days=1), "24 h"),
    ],
)
def test_spans_are_said_as_people_say_them(value: timedelta | None, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12345, "12,345"), (Decimal("1500.00"), "1,500"), (Decimal("0.50"), "0.5"), (100, "100")]
)
def test_numbers_keep_their_zeros_and_lose_their_padding(value: Decimal | int, text: str) -> None:
    assert number(value) == text


@given(st.text())
def test_nothing_that_steers_a_terminal_is_printed(text: str) -> None:
    assert not set(printable(text)) & set("\x1b\x07\x08\r\x9b\u202e")
    assert "\n" not in one_line(text)


def test_an_escape_sequence_loses_its_power_but_not_its_letters() -> None:
    assert printable("a\x1b[2Jb\n\tc") == "a[2Jb\n\tc"
    assert printable("family \U0001f468\u200d\U0001f469") == "family \U0001f468\u200d\U0001f469"


def test_json_has_money_as_text_spans_in_milliseconds_and_no_messages() -> None:
    completion = completion_from_proto(
        completion_pb2.CompletionResult(provider="groq", cost_usd="0.000217", total_tokens=5, input_tokens=5)
    )

    made = jsonable(completion)

    json.dumps(made)
    assert "proto" not in made
    assert made["cost_usd"] == "0.000217"
    assert made["latency_ms"] == 0
    assert made["tokens"]["input_tokens"] == 5
    assert jsonable(datetime(2026, 11, 23, tzinfo=UTC)) == "2026-11-23T00:00:00Z"


WORDS = st.text(alphabet="abcä漢字", min_size=1, max_size=8)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_plain_columns_line_up_whatever_they_hold(rows: list[tuple[str, str]]) -> None:
    lines = list(plain_table(["text", "n>"], rows))

    assert len(lines) == len(rows) + 1
    assert len({cell_len(line) for line in lines}) == 1


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a"], [], empty="nothing")

    assert capsys.readouterr().out == "nothing\n"


def test_a_plain_table_has_no_lines_colours_or_trailing_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count>"], [("a\x1b[31m", "1"), ("bcd", "20")], empty="")

    assert capsys.readouterr().out == "name   count\na[31m      1\nbcd       20\n"


@pytest.mark.parametrize(
    ("known", "estimated", "unpriced", "text"),
    [
        ("0.5", "0", 0, "$0.50"),
        ("0.5", "0.1", 0, "$0.50 ($0.10 estimated)"),
        ("0.5", "0.1", 2, "$0.50 ($0.10 estimated, 2 unpriced)"),
        ("0", "0", 2, "unpriced"),
        ("0", "0", 0, "$0.00"),
    ],
)
def test_a_cost_says_how_sure_it_is(known: str, estimated: str, unpriced: int, text: str) -> None:
    total, part = Decimal(known), Decimal(estimated)

    assert cost(CostSummary(total, total - part, part, unpriced, unpriced * 10)) == text


def test_the_summary_of_a_doubtful_completion_names_every_doubt() -> None:
    result = completion_pb2.CompletionResult(
        provider="groq",
        model="m\x1b[2J",
        finish_reason=completion_pb2.FINISH_REASON_LENGTH,
        input_tokens=1200,
        attempts=[completion_pb2.AttemptSummary(), completion_pb2.AttemptSummary()],
    )

    line = summary(completion_from_proto(result))

    assert line == "groq | m[2J | about 1200 tokens in, 0 out | unpriced | 0 ms | 2 attempts | cut at the token limit"
