"""What the journal and its sender count, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service_runtime.metrics import Children

_DISK_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class CommitMetrics:
    """What the thread counts that writes the journal."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commits = Counter("turnpike_router_journal_commits", "Commits of the journal.", registry=registry)
        self.group_size = Histogram(
            "turnpike_router_journal_group_size",
            "Records per commit.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "turnpike_router_journal_commit_seconds",
            "How long commits took, the disk's sync included.",
            buckets=_DISK_SECONDS,
            registry=registry,
        )
        self.rotation_seconds = Histogram(
            "turnpike_router_journal_rotation_seconds",
            "How long it took to move SQLite's log into the main file; records wait meanwhile.",
            buckets=_DISK_SECONDS,
            registry=registry,
        )
        self.refusals = Counter(
            "turnpike_router_journal_refusals",
            "Records that found no room in journal or on disk: `new` attempts, which were refused, or `running` ones.",
            ["kind"],
            registry=registry,
        )
        for kind in ("new", "running"):
            self.refusals.labels(kind)  # so that an alert finds 0 rather than nothing
        self.kept = Gauge(
            "turnpike_router_journal_kept_records",
            "Ends of attempts that found no room on the disk and are in memory until there is some.",
            registry=registry,
        )
        self.failed_writes = Counter(
            "turnpike_router_journal_failed_writes",
            "Writes that the disk or SQLite refused, before any remedy.",
            registry=registry,
        )


class JournalMetrics:
    """What is in the journal, and what was found in it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records = Children(
            Counter(
                "turnpike_router_journal_records",
                "Records written: opened, settled or held.",
                ["kind"],
                registry=registry,
            )
        )
        self.waiting = Gauge(
            "turnpike_router_journal_waiting_events", "Events that the ledger has not acknowledged.", registry=registry
        )
        self.held = Gauge(
            "turnpike_router_journal_held_events",
            "Settled events held back while their provider is asked what they consumed.",
            registry=registry,
        )
        self.opened = Gauge(
            "turnpike_router_journal_open_attempts", "Attempts that run, as of the last report.", registry=registry
        )
        self.oldest_opened = Gauge(
            "turnpike_router_journal_oldest_open_timestamp_seconds",
            "When the longest running attempt was opened; 0 when none runs.",
            registry=registry,
        )
        self.oldest_waiting = Gauge(
            "turnpike_router_journal_oldest_waiting_timestamp_seconds",
            "When the longest waiting event was written; 0 when none waits.",
            registry=registry,
        )
        self.missing = Gauge(
            "turnpike_router_journal_missing_events",
            "Events of this journal that neither it nor the ledger has, as the ledger last said.",
            registry=registry,
        )
        self.used_bytes = Gauge(
            "turnpike_router_journal_bytes", "Bytes that the journal's records take.", registry=registry
        )
        self.reserve_bytes = Gauge(
            "turnpike_router_journal_reserve_bytes",
            "Disk space held back for the records of running attempts.",
            registry=registry,
        )
        self.dead_letters = Counter(
            "turnpike_router_journal_dead_letters",
            "Events kept aside because the ledger will never take them.",
            ["reason"],
            registry=registry,
        )
        self.corrupt_files = Counter(
            "turnpike_router_journal_corrupt_files",
            "Journal files that were damaged or foreign and were set aside.",
            registry=registry,
        )
        self.recovered = Counter(
            "turnpike_router_journal_recovered",
            "Records found at start: interrupted, salvaged or unreadable.",
            ["kind"],
            registry=registry,
        )


class SenderMetrics:
    """What became of the events that were sent, and how fast they go."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sent = Children(
            Counter(
                "turnpike_router_usage_events_sent",
                "Usage events by what became of them.",
                ["disposition"],
                registry=registry,
            )
        )
        self.send_failures = Counter(
            "turnpike_router_usage_send_failures", "Failed RecordUsage calls.", ["code"], registry=registry
        )
        self.backoff_seconds = Gauge(
            "turnpike_router_usage_backoff_seconds", "Present pause after failures.", registry=registry
        )
        self.backlog_pace = Gauge(
            "turnpike_router_usage_backlog_events_per_second",
            "How many events of a backlog may be sent beside requests; 0 while nothing is held back.",
            registry=registry,
        )
        self.backlog_strain = Gauge(
            "turnpike_router_usage_backlog_strain_ratio",
            "How long requests wait with a backlog's batches over without, as last felt.",
            registry=registry,
        )


class UsageMetrics(CommitMetrics, JournalMetrics, SenderMetrics):
    """All of one router process. Labels are closed sets, never a tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        for part in (CommitMetrics, JournalMetrics, SenderMetrics):
            part.__init__(self, registry)
