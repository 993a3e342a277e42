"""However many calls are refused, each is told, and most of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from service_runtime import refusal_log
from service_runtime.errors import Category, ServiceError
from service_runtime.refusal_log import TOLD_ONE_BY_ONE, RefusalLog

METHOD = "/turnpike.test.v1.Test/Call"
LONG_S = 3600.0  # no second passes unless the test says so


@pytest.fixture(autouse=True)
def _fresh_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a service in an earlier test has used keeps that service's settings, and nothing of it is captured."""
    monkeypatch.setattr(refusal_log, "log", structlog.get_logger())


def refusal(message: str = "no key: store one", reason: str = "NO_PROVIDER") -> ServiceError:
    return ServiceError(Category.FAILED_PRECONDITION, reason, message)


def told(lines: Sequence[Any]) -> int:
    """The refusals that the lines stand for."""
    return sum(line.get("count", 1) for line in lines)


async def test_a_few_refusals_are_told_one_by_one_with_method_code_reason_and_cause() -> None:
    refusals, error = RefusalLog(window_s=LONG_S), refusal()
    error.__cause__ = OSError("away")

    with capture_logs() as lines:
        refusals.refused(METHOD, error)
        refusals.tell()

    assert lines == [
        {
            "event": "rpc.refused",
            "log_level": "info",
            "method": METHOD,
            "code": "FAILED_PRECONDITION",
            "reason": "NO_PROVIDER",
            "cause": "OSError",
        }
    ]


@pytest.mark.parametrize("count", [TOLD_ONE_BY_ONE, TOLD_ONE_BY_ONE + 1, 1000])
async def test_of_many_alike_the_rest_is_one_line_with_its_number(count: int) -> None:
    refusals = RefusalLog(window_s=LONG_S)

    with capture_logs() as lines:
        for _ in range(count):
            refusals.refused(METHOD, refusal())
        refusals.tell()

    assert told(lines) == count
    assert len(lines) == min(count, TOLD_ONE_BY_ONE + 1)


async def test_a_flood_of_one_tenant_hides_no_refusal_of_another() -> None:
    refusals = RefusalLog(window_s=LONG_S)
    for _ in range(1000):
        refusals.refused(METHOD, refusal("store another key for tenant a"))

    with capture_logs() as lines:
        refusals.refused(METHOD, refusal("store another key for tenant b"))

    assert [line["event"] for line in lines] == ["rpc.refused"]
    refusals.tell()


async def test_more_kinds_than_are_kept_apart_are_still_all_told() -> None:
    refusals = RefusalLog(window_s=LONG_S)

    with capture_logs() as lines:
        for number in range(5000):
            refusals.refused(METHOD, refusal(f"message {number}"))
        refusals.tell()

    assert told(lines) == 5000
    assert len(lines) < 1100


async def test_a_new_window_tells_one_by_one_again() -> None:
    refusals = RefusalLog(window_s=LONG_S)
    for _ in range(100):
        refusals.refused(METHOD, refusal())
    refusals.tell()

    with capture_logs() as lines:
        refusals.refused(METHOD, refusal())

    assert [line["event"] for line in lines] == ["rpc.refused"]
    refusals.tell()


async def test_the_window_ends_by_itself() -> None:
    refusals = RefusalLog(window_s=0.001)
    with capture_logs() as lines:
        for _ in range(100):
            refusals.refused(METHOD, refusal())
        while told(lines) < 100:
            await asyncio.sleep(0.001)

    assert lines[-1]["event"] == "rpc.refused_again"
