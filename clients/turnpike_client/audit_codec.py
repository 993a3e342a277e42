"""Audits between the client's values and the wire."""

from __future__ import annotations

from turnpike.usage.v1 import audit_service_pb2
from turnpike_client.audit import Discrepancy, LedgerAudit, LedgerCheckResult
from turnpike_client.enums import LedgerCheck, from_wire
from turnpike_client.wire import instant


def audit_with_page(
    audit: LedgerAudit | None, page: audit_service_pb2.VerifyLedgerResponse, *, most: int
) -> LedgerAudit:
    """What earlier pages and this one found together, with at most `most` discrepancies of each check."""
    results = {result.check: result for result in audit.results} if audit else {}
    for message in page.results:
        found = _result_from_proto(message)
        held = results.get(found.check, LedgerCheckResult(found.check, 0, 0))
        results[found.check] = LedgerCheckResult(
            check=found.check,
            checked=held.checked + found.checked,
            wrong=held.wrong + found.wrong,
            discrepancies=(held.discrepancies + found.discrepancies)[:most],
            unchecked=(held.unchecked + found.unchecked)[:most],
        )
    order = list(LedgerCheck)
    return LedgerAudit(
        results=tuple(sorted(results.values(), key=lambda result: order.index(result.check))),
        start=instant(page.start_time),
        end=instant(page.end_time),
    )


def _result_from_proto(message: audit_service_pb2.LedgerCheckResult) -> LedgerCheckResult:
    return LedgerCheckResult(
        check=from_wire(LedgerCheck, message.check),
        checked=message.checked_count,
        wrong=message.wrong_count,
        discrepancies=tuple(Discrepancy(one.subject, one.expected, one.actual) for one in message.discrepancies),
        unchecked=tuple(message.unchecked),
    )
