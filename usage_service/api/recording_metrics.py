"""Recording as Prometheus sees it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from usage_service.metering.recording import Disposition


class PrometheusRecordingMetrics:
    """Counters of the ledger's write side, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "usage_events", "Usage events by what became of them.", ["disposition"], registry=registry
        )
        self._unpriced = Counter(
            "usage_events_unpriced", "Stored events whose price is unknown.", ["provider"], registry=registry
        )
        self._batch_s = Histogram(
            "usage_ingest_seconds",
            "From the arrival of a batch to its commit.",
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=registry,
        )
        self._batches = Gauge("usage_ingest_batches", "Batches being stored or waiting for it.", registry=registry)
        # A series that exists from the start: an alert on its increase then sees the first event too.
        self._by_disposition = {
            disposition: self._events.labels(disposition=disposition.value) for disposition in Disposition
        }

    def event_recorded(self, disposition: Disposition) -> None:
        """One event was answered."""
        self._by_disposition[disposition].inc()

    def event_unpriced(self, provider: str) -> None:
        """One event was stored whose price is unknown."""
        self._unpriced.labels(provider=provider).inc()

    def batch_stored(self, seconds: float) -> None:
        """One batch was stored."""
        self._batch_s.observe(seconds)

    def batches_waiting(self, number: int) -> None:
        """How many batches are being stored or wait for it."""
        self._batches.set(number)
