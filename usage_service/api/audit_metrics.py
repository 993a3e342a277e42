"""Audits as Prometheus sees them."""

from __future__ import annotations

from datetime import datetime

from service_runtime.metrics import Metrics
from usage_service.domain.audit import LedgerCheck, Results


class PrometheusAuditMetrics:
    """What the latest scheduled audit found. Without an audit there is no series: 0 would claim that one was made."""

    def __init__(self, metrics: Metrics) -> None:
        self._wrong = metrics.gauge(
            "usage_ledger_discrepancies", "What the latest scheduled audit found wrong, by check.", ["check"]
        )
        self._unchecked = metrics.gauge(
            "usage_ledger_unchecked_parts", "Parts that it could not check in time, by check.", ["check"]
        )
        self._audited_at = metrics.gauge(
            "usage_ledger_audit_timestamp_seconds", "When the latest scheduled audit was completed; 0 before the first."
        )

    def audited(self, results: Results, at: datetime) -> None:
        """A scheduled audit was completed."""
        for check in LedgerCheck:
            if check in results:
                self._wrong.labels(check=check.value).set(results[check].wrong)
                self._unchecked.labels(check=check.value).set(len(results[check].unchecked))
        self._audited_at.set(at.timestamp())
