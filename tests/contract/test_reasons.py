"""The reasons of errors: callers act on them, so each that can reach one stands in the contract."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# What no caller of an RPC sees: said in logs, to nobody who is there, or by the standard health service.
UNTOLD = {"CALLER_LEFT", "USAGE_SERVICE_UNAVAILABLE", "USAGE_UNAVAILABLE", "SERVICE_UNKNOWN"}


def raised() -> set[str]:
    sources = [
        path
        for root in ("router_service", "usage_service", "service_runtime")
        for path in (REPOSITORY / root).rglob("*.py")
    ]
    found = [re.findall(r'Category\.[A-Z_]+,\s*"([A-Z_]+)"', path.read_text()) for path in sources]
    return {reason for reasons in found for reason in reasons} - UNTOLD


def told() -> str:
    comments = (
        line.strip()
        for path in (REPOSITORY / "protos" / "turnpike").rglob("*.proto")
        for line in path.read_text().splitlines()
    )
    return " ".join(line.removeprefix("//") for line in comments if line.startswith("//"))


def test_every_reason_of_an_error_is_told_in_the_contract() -> None:
    contract = told()

    assert len(raised()) > 30
    assert {reason for reason in raised() if f"`{reason}`" not in contract} == set()
