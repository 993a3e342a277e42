"""Metrics of one process, and the HTTP endpoint that Prometheus reads them from."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import Metric

from service_runtime.startup import StartupError

# Seconds. From a cached answer to the longest stream.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


M = TypeVar("M", bound=Counter | Gauge | Histogram)


class Children(dict[tuple[str, ...], M], Generic[M]):
    """The children of a metric by the values of their labels: `children["groq", "error"].inc()`.

    For labels of few values, as all are. `labels` builds, checks and locks each time: 3 us instead of 0.1.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> M:
        child: M = self._metric.labels(*values)  # type: ignore[assignment]  # typed as whichever metric, not as this one
        self[values] = child
        return child


class _Labelled(CollectorRegistry):
    """A registry all whose series carry some labels more. They are put on when somebody reads."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        super().__init__()
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample._replace(labels={**self._labels, **sample.labels}) for sample in metric.samples]
            yield metric


class Metrics:
    """The registry of one process. Asking twice for a metric gives the same one, so that nobody has to pass it on."""

    def __init__(self, *, worker: int | None = None) -> None:
        """`worker`: which of several processes of a service this is; all its series then say so."""
        self.registry = CollectorRegistry() if worker is None else _Labelled({"worker": str(worker)})
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._lock = threading.Lock()

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
        """A count that only grows. Labels must have few values: never a tenant, a request or a text."""
        with self._lock:
            metric = self._made.get(name)
            if not isinstance(metric, Counter):
                metric = self._made[name] = Counter(name, meaning, labels, registry=self.registry)
            return metric

    def gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Gauge:
        """A value that goes up and down."""
        with self._lock:
            metric = self._made.get(name)
            if not isinstance(metric, Gauge):
                metric = self._made[name] = Gauge(name, meaning, labels, registry=self.registry)
            return metric

    def histogram(
        self, name: str, meaning: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        """A distribution, by default of seconds."""
        with self._lock:
            metric = self._made.get(name)
            if not isinstance(metric, Histogram):
                metric = self._made[name] = Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)
            return metric

    def serve(self, host: str, port: int) -> MetricsEndpoint:
        """Answer `GET http://host:port/metrics` from a thread of its own, also while the event loop is busy.

        Port 0 takes any free one. Raises StartupError, in one line, when the port is taken.
        """
        try:
            server, thread = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            remedy = (
                "is taken; stop its owner or set the service's METRICS_PORT"
                if error.errno == errno.EADDRINUSE
                else error.strerror
            )
            raise StartupError(f"metrics port {host}:{port} {remedy}") from error
        return MetricsEndpoint(server, thread)


class MetricsEndpoint:
    """A running endpoint."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_port)

    def close(self) -> None:
        """Stop answering, and return when the thread has ended and the port is free."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
