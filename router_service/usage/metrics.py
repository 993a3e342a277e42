"""What the journal and its sender count, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class UsageMetrics:
    """Metrics of one router process. Labels are closed sets, never a tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commits = Counter("turnpike_router_journal_commits", "Commits of the journal.", registry=registry)
        self.records = Counter(
            "turnpike_router_journal_records", "Records written: opened or settled.", ["kind"], registry=registry
        )
        self.group_size = Histogram(
            "turnpike_router_journal_group_size",
            "Records per commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.waiting = Gauge(
            "turnpike_router_journal_waiting_events", "Events that the ledger has not acknowledged.", registry=registry
        )
        self.used_bytes = Gauge(
            "turnpike_router_journal_bytes", "Bytes that the journal's records take.", registry=registry
        )
        self.dead_letters = Counter(
            "turnpike_router_journal_dead_letters",
            "Events kept aside because the ledger will never take them.",
            ["reason"],
            registry=registry,
        )
        self.recovered = Counter(
            "turnpike_router_journal_recovered",
            "Records found at start: interrupted, salvaged or unreadable.",
            ["kind"],
            registry=registry,
        )
        self.sent = Counter(
            "turnpike_router_usage_events_sent",
            "Usage events by what became of them.",
            ["disposition"],
            registry=registry,
        )
        self.send_failures = Counter(
            "turnpike_router_usage_send_failures", "Failed RecordUsage calls.", ["code"], registry=registry
        )
        self.backoff_seconds = Gauge(
            "turnpike_router_usage_backoff_seconds", "Present pause after failures.", registry=registry
        )
