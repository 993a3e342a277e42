"""The statements of the reports: parameters that fit their text, and few texts for many questions."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from usage_service.domain.report import Grouping, UsageFilter
from usage_service.domain.usage_event import Funding
from usage_service.domain.window import Grain, Tile, Window, tiles
from usage_service.storage.report_statements import Statement, on_tiles

TENANT = UUID(int=1)
START = datetime(2026, 3, 18, 22, 58, tzinfo=UTC)
FIVE = tiles(Window(START, START + timedelta(days=30, hours=2, minutes=5)))
ALTERNATING = tuple(
    Tile(grain, START + timedelta(days=day), START + timedelta(days=day) + grain.value)
    for day in range(40)
    for grain in (Grain.HOUR, Grain.DAY)
)
EVERY_FILTER = UsageFilter(
    "groq", "a model'); DROP TABLE usage_rollup_day; --", absorbed=False, funding=Funding.TENANT_KEY
)


def by_step(covering: tuple[Tile, ...], only: UsageFilter, grouping: Grouping = Grouping.MODEL) -> Statement:
    return on_tiles("usage_by_step", TENANT, [START], 100, tiles=covering, only=only, grouping=grouping)


@pytest.mark.parametrize("covering", [FIVE[:1], FIVE, ALTERNATING], ids=["one", "five", "eighty"])
@pytest.mark.parametrize("only", [UsageFilter(), UsageFilter(absorbed=True), EVERY_FILTER])
def test_every_value_is_a_parameter_and_every_parameter_is_used(covering: tuple[Tile, ...], only: UsageFilter) -> None:
    statement = by_step(covering, only)

    numbers = {int(number) for number in re.findall(r"\$(\d+)", statement.text)}
    assert numbers == set(range(1, len(statement.arguments) + 1))
    assert not re.search(r"{\w+}", re.sub(r"--.*", "", statement.text))
    assert "DROP" not in statement.text


def test_what_is_not_filtered_by_is_no_part_of_the_statement() -> None:
    text = re.sub(r"--.*", "", by_step(FIVE, UsageFilter(model="gpt-4o"), Grouping.NONE).text)

    assert text.count("model_name = $4") == len(FIVE)
    assert "provider =" not in text
    assert "absorbed =" not in text
    assert "funding" not in text


def test_a_few_tiles_have_a_branch_each_and_many_one_for_each_grain() -> None:
    assert [tile.grain for tile in FIVE] == [Grain.MINUTE, Grain.HOUR, Grain.DAY, Grain.HOUR, Grain.MINUTE]
    assert by_step(FIVE, UsageFilter()).text.count("UNION ALL") == 4

    many = by_step(ALTERNATING, UsageFilter())

    assert many.text.count("UNION ALL") == 1
    assert [len(bounds) for bounds in many.arguments[3:]] == [40, 40, 40, 40]  # type: ignore[arg-type]


def test_questions_of_one_shape_share_a_prepared_statement() -> None:
    a_day_later = tiles(Window(START + timedelta(days=1), START + timedelta(days=31, hours=2, minutes=7)))

    assert by_step(FIVE, EVERY_FILTER).text == by_step(a_day_later, EVERY_FILTER).text
    assert by_step(FIVE, EVERY_FILTER).text != by_step(FIVE, EVERY_FILTER, Grouping.PROVIDER).text
