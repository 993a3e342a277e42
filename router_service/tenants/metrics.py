"""What the tenants' cache counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from service_runtime.metrics import Children


class TenantMetrics:
    """Metrics of one router process; never a label per tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lookups = Children(
            Counter(
                "turnpike_router_tenant_lookups",
                "Lookups of a tenant's configuration: hit, stale or miss.",
                ["outcome"],
                registry=registry,
            )
        )
        self.entries = Gauge("turnpike_router_tenants_cached", "Tenants in memory.", registry=registry)
        self.snapshot_reads = Counter(
            "turnpike_router_tenant_snapshot_reads",
            "Tenants read from the snapshot on disk because Postgres was away.",
            registry=registry,
        )
        self.snapshot_age = Gauge(
            "turnpike_router_tenant_snapshot_age_seconds",
            "How long ago Postgres confirmed what is served from the snapshot; 0 when nothing is.",
            registry=registry,
        )
        self.reload_failures = Counter(
            "turnpike_router_tenant_reload_failures",
            "Reads of a tenant that failed, by the reason of the error.",
            ["reason"],
            registry=registry,
        )
