"""What routing counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service_runtime.metrics import Children

FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)


class RoutingMetrics:
    """Counters of one router process. Labels are names of the catalogue and of closed enums, never of callers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._attempts = Children(
            Counter(
                "turnpike_router_attempts",
                "Attempts at providers by how they ended; `reason` is the class of the failure, empty on success.",
                ["provider", "status", "reason"],
                registry=registry,
            )
        )
        self._completions = Children(
            Counter(
                "turnpike_router_completions",
                "Completions by how they ended for their caller: success, or the reason of the error.",
                ["outcome"],
                registry=registry,
            )
        )
        self._first_token = Children(
            Histogram(
                "turnpike_router_first_token_seconds",
                "From sending an attempt to its first content.",
                ["provider"],
                buckets=FIRST_TOKEN_BUCKETS_S,
                registry=registry,
            )
        )
        self._in_flight = Gauge(
            "turnpike_router_completions_in_flight",
            "Completions whose provider is still being read, with or without a caller.",
            registry=registry,
        )
        self._draining = Gauge(
            "turnpike_router_streams_draining",
            "Streams that are read to their end for the exact usage although their caller left.",
            registry=registry,
        )

        self._enquiries = Gauge(
            "turnpike_router_late_enquiries",
            "Answers whose provider is being asked what they consumed.",
            registry=registry,
        )
        self._enquiries_ended = Children(
            Counter(
                "turnpike_router_late_enquiries_ended",
                "Such enquiries by how they ended: answered, unanswered (the estimate stands), failed (the journal).",
                ["provider", "outcome"],
                registry=registry,
            )
        )

        self._models_gone = Children(
            Counter(
                "turnpike_router_models_gone",
                "Attempts whose provider said that it does not have a model that the catalogue lists.",
                ["provider", "model"],
                registry=registry,
            )
        )

    def attempt_ended(self, provider: str, status: str, reason: str, first_token_s: float | None) -> None:
        """Count an attempt; `first_token_s` is None when no content came."""
        self._attempts[provider, status, reason].inc()
        if first_token_s is not None:
            self._first_token[provider,].observe(first_token_s)

    def model_gone(self, provider: str, model: str) -> None:
        self._models_gone[provider, model].inc()

    def completion_ended(self, outcome: str) -> None:
        self._completions[outcome,].inc()

    def set_enquiries(self, running: int) -> None:
        self._enquiries.set(running)

    def enquiry_ended(self, provider: str, outcome: str) -> None:
        self._enquiries_ended[provider, outcome].inc()

    def count_in_flight(self, running: Callable[[], int]) -> None:
        """Ask `running` whenever the metrics are read."""
        self._in_flight.set_function(running)

    def set_draining(self, draining: int) -> None:
        self._draining.set(draining)
