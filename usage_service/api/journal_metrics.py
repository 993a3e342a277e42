"""The routers' journals as Prometheus sees them: sums over all routers, because their names are without number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from service_runtime.metrics import Metrics
from usage_service.domain.journal import Journal

HEARD_LATELY = timedelta(minutes=2)  # a router reports every 15 seconds


class PrometheusJournalMetrics:
    """Gauges, as of the last refresh. `now` is in UTC."""

    def __init__(self, metrics: Metrics, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._missing = metrics.gauge(
            "usage_journal_missing_events", "Sequences that routers no longer hold and the ledger never answered for."
        )
        self._waiting = metrics.gauge(
            "usage_journal_waiting_events", "Events that wait in routers' journals, as last reported."
        )
        self._dead = metrics.gauge(
            "usage_journal_dead_letters", "Events set aside in routers' journals, as last reported."
        )
        self._reporting = metrics.gauge("usage_journals_reporting", "Journals whose router reported lately.")
        self._silent = metrics.gauge(
            "usage_journals_silent", "Journals that last had events or attempts, and whose router no longer reports."
        )

    def journals_known(self, journals: Sequence[Journal]) -> None:
        """All journals, as they stand."""
        reports = [journal.report for journal in journals if journal.report is not None]
        since = self._now() - HEARD_LATELY
        self._missing.set(sum(journal.missing_count for journal in journals))
        self._waiting.set(sum(report.waiting for report in reports))
        self._dead.set(sum(report.dead_letters for report in reports))
        self._reporting.set(sum(report.reported_at >= since for report in reports))
        self._silent.set(
            sum(
                report.reported_at < since and bool(report.waiting or report.opened or report.held)
                for report in reports
            )
        )
