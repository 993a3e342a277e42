"""Recording as Prometheus sees it."""

from __future__ import annotations

from service_runtime.metrics import Metrics
from usage_service.metering.recording import Disposition


class PrometheusRecordingMetrics:
    """Counters of the ledger's write side."""

    def __init__(self, metrics: Metrics) -> None:
        self._events = metrics.counter("usage_events", "Usage events by what became of them.", ["disposition"])
        self._unpriced = metrics.counter("usage_events_unpriced", "Stored events without a known price.", ["provider"])
        self._batch_s = metrics.histogram("usage_ingest_seconds", "From a batch's arrival to its commit.")
        self._batches = metrics.gauge("usage_ingest_batches", "Batches being stored or waiting for it.")
        # A series that exists from the start: an alert on its increase then sees the first event too.
        self._by_disposition = {
            disposition: self._events.labels(disposition=disposition.value) for disposition in Disposition
        }

    def events_recorded(self, disposition: Disposition, number: int) -> None:
        """Events of one batch were answered."""
        self._by_disposition[disposition].inc(number)

    def event_unpriced(self, provider: str) -> None:
        """One event was stored whose price is unknown."""
        self._unpriced.labels(provider=provider).inc()

    def batch_stored(self, seconds: float) -> None:
        """One batch was stored."""
        self._batch_s.observe(seconds)

    def batches_waiting(self, number: int) -> None:
        """How many batches are being stored or wait for it."""
        self._batches.set(number)
