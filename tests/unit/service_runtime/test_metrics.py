from __future__ import annotations

import threading
import urllib.request

import pytest

from service_runtime.metrics import Children, Metrics
from service_runtime.startup import StartupError


def read(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        return str(response.read(), "utf-8")


def test_the_endpoint_shows_what_was_counted_and_the_process() -> None:
    metrics = Metrics()
    metrics.counter("pages_read", "Pages.", ("shelf",)).labels("top").inc(3)

    with metrics.serve("127.0.0.1", 0) as endpoint:
        text = read(endpoint.port)

    assert 'pages_read_total{shelf="top"} 3.0' in text
    assert "process_resident_memory_bytes" in text


def test_closing_frees_the_port_and_ends_the_thread() -> None:
    metrics = Metrics()
    threads = threading.active_count()
    first = metrics.serve("127.0.0.1", 0)
    read(first.port)
    first.close()

    with metrics.serve("127.0.0.1", first.port):
        pass

    assert threading.active_count() <= threads + 1  # of the request, which may still be ending


def test_a_taken_port_is_refused_in_one_line() -> None:
    metrics = Metrics()

    with (
        metrics.serve("127.0.0.1", 0) as endpoint,
        pytest.raises(StartupError, match=f"{endpoint.port} is taken; stop"),
    ):
        Metrics().serve("127.0.0.1", endpoint.port)


def test_asking_twice_gives_the_same_metric_and_two_processes_share_nothing() -> None:
    metrics = Metrics()

    assert metrics.counter("a", "A.") is metrics.counter("a", "A.")
    assert metrics.gauge("b", "B.") is metrics.gauge("b", "B.")
    assert metrics.histogram("c", "C.") is metrics.histogram("c", "C.")
    assert Metrics().counter("a", "A.") is not metrics.counter("a", "A.")


def test_a_metrics_children_are_counted_under_their_labels() -> None:
    metrics = Metrics()
    counted = Children(metrics.counter("books_lent", "Books.", ("shelf", "kind")))

    counted["top", "atlas"].inc()
    counted["top", "atlas"].inc(2)
    counted["low", "novel"].inc()

    assert metrics.registry.get_sample_value("books_lent_total", {"shelf": "top", "kind": "atlas"}) == 3
    assert metrics.registry.get_sample_value("books_lent_total", {"shelf": "low", "kind": "novel"}) == 1
