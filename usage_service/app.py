"""Composition root: the ledger's parts and how they fit. Everything it knows comes from the settings."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import structlog

from service_runtime import faults
from service_runtime.background import Periodic
from service_runtime.database import BringUp, LatePostgres, ServiceDatabase
from service_runtime.grpc_server import GrpcServer
from service_runtime.logs import configure_logging
from service_runtime.metrics import Metrics
from service_runtime.postgres import Postgres
from service_runtime.process import Lifecycle
from turnpike.usage.v1 import (
    audit_service_pb2_grpc,
    pricing_service_pb2_grpc,
    quota_service_pb2_grpc,
    usage_service_pb2_grpc,
)
from usage_service.api.audit_metrics import PrometheusAuditMetrics
from usage_service.api.audit_servicer import AuditServicer
from usage_service.api.journal_metrics import PrometheusJournalMetrics
from usage_service.api.pricing_servicer import PricingServicer
from usage_service.api.quota_servicer import QuotaServicer
from usage_service.api.recording_metrics import PrometheusRecordingMetrics
from usage_service.api.reports import ReportHandlers
from usage_service.api.usage_servicer import UsageServicer
from usage_service.api.watch import WatchHandler
from usage_service.domain.usage_event import EventRules
from usage_service.metering.auditing import Auditing
from usage_service.metering.group_commit import GroupedLedger
from usage_service.metering.journals import JournalAudit
from usage_service.metering.limit_setting import LimitSetting
from usage_service.metering.limiting import Limiting
from usage_service.metering.pricing import Pricing
from usage_service.metering.recording import Recorder
from usage_service.metering.reporting import Reporting
from usage_service.metering.repricing import Repricing
from usage_service.metering.watching import Watching
from usage_service.settings import UsageSettings
from usage_service.storage.audit import PostgresAudit
from usage_service.storage.bundled_prices import BundledPrices
from usage_service.storage.corrections import PostgresBookedRows
from usage_service.storage.events import PostgresLedger
from usage_service.storage.journals import PostgresJournals
from usage_service.storage.limits import PostgresLimits
from usage_service.storage.maintenance import Maintenance
from usage_service.storage.partitions import Partitions
from usage_service.storage.prices import PostgresPrices
from usage_service.storage.quarantine import PostgresQuarantine
from usage_service.storage.records import PostgresRecords
from usage_service.storage.rollups import CONNECTION_SETTINGS, PostgresRollups

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"
ROLE = "turnpike_usage"

_MAINTENANCE_STATEMENT_TIMEOUT_S = 60.0
_CLOSING_GRACE_S = 5.0
_JOURNAL_AUDIT_S = 15.0
_VENDOR_PRICES_S = timedelta(days=1).total_seconds()
_HEALTH_S = 2.0
DATABASE = "turnpike.usage.v1.UsageService/db"

_log = structlog.get_logger(__name__)


async def serve(settings: UsageSettings, lifecycle: Lifecycle) -> None:
    """Run the ledger until it is asked to stop. What was opened last is closed first."""
    configure_logging(settings.log_level, settings.log_format)
    faults.arm(settings.faults)
    metrics = Metrics(worker=settings.worker)
    async with AsyncExitStack() as opened:
        pools = _pools(settings)
        opened.push_async_callback(pools.database.close)
        parts = _parts(settings, pools, metrics)
        periodics = _periodics(settings, parts, metrics)
        for periodic in periodics:
            opened.push_async_callback(periodic.stop)
        opened.push_async_callback(parts.watching.stop)

        server = GrpcServer.from_settings(settings, metrics)
        _add_services(server, settings, parts)
        opened.push_async_callback(server.drain, 0.0)  # also when something below stops the start
        server.add_health_name(DATABASE)
        await server.start()
        opened.enter_context(metrics.serve(settings.bind_host, settings.own_metrics_port))

        async def judge() -> None:
            # Everything here is an answer from the database: without it this service serves nothing.
            answers = await pools.database.answers()
            if not lifecycle.stop_was_requested:
                server.set_serving(answers)

        async def ready() -> None:
            await parts.maintenance.cover()
            await parts.pricing.refresh()
            for periodic in periodics:
                periodic.start()
            await judge()
            _log.info("usage.ready", address=server.address)
            lifecycle.ready(server.address)

        bringing_up = BringUp(pools.database, lifecycle, then=ready)
        opened.push_async_callback(bringing_up.stop)
        await bringing_up.begin()
        health = Periodic("judge health", judge, interval_s=_HEALTH_S, metrics=metrics)
        health.start()
        opened.push_async_callback(health.stop)

        await lifecycle.wait_for_stop()
        server.set_serving(False)
        await asyncio.sleep(settings.drain_delay)
        # Who watches live totals opens them again elsewhere; whoever else is being answered is done in seconds, and a
        # router sends again what was cut.
        await parts.watching.stop()
        await server.drain(min(settings.drain_grace_s, _CLOSING_GRACE_S))


@dataclass(frozen=True, slots=True)
class _Pools:
    """The database and the ways into it."""

    database: ServiceDatabase
    everyday: LatePostgres  # what everything else works with, in the service's own role
    reports: LatePostgres  # what is told from rollups; it and ingest take each other no connection
    owner: LatePostgres  # of the tables' owner, for maintenance
    slow: LatePostgres  # for correcting and auditing what was booked: long statements that hold up nobody's


def _pools(settings: UsageSettings) -> _Pools:
    database = ServiceDatabase(
        settings.database_url.get_secret_value(),
        service="usage_service",
        migrations=MIGRATIONS,
        role=ROLE,
        setting="TURNPIKE_DATABASE_URL",
    )
    return _Pools(
        database,
        everyday=database.pool(
            min_size=settings.database_pool_min,
            max_size=settings.database_pool_max,
            application_name="usage_service",
        ),
        reports=database.pool(
            min_size=min(settings.database_pool_min, settings.report_pool_max),
            max_size=settings.report_pool_max,
            application_name="usage_service reports",
            settings=CONNECTION_SETTINGS,
        ),
        owner=database.pool(
            as_owner=True,
            min_size=0,
            max_size=2,  # one for the periodic work, one for a partition that an event needs meanwhile
            statement_timeout_s=_MAINTENANCE_STATEMENT_TIMEOUT_S,
            application_name="usage_service maintenance",
        ),
        slow=database.pool(
            min_size=0,
            max_size=5,  # two corrections, two audits, and one that keeps the audit on schedule alone
            statement_timeout_s=_MAINTENANCE_STATEMENT_TIMEOUT_S,
            application_name="usage_service slow work",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the ledger is made of, between the wire and the tables."""

    maintenance: Maintenance
    pricing: Pricing
    repricing: Repricing
    recorder: Recorder
    journals: JournalAudit
    reporting: Reporting
    watching: Watching
    auditing: Auditing
    limiting: Limiting
    limit_setting: LimitSetting


def _parts(settings: UsageSettings, pools: _Pools, metrics: Metrics) -> _Parts:
    postgres = pools.everyday
    partitions = Partitions(pools.owner)
    rollups = PostgresRollups(pools.reports)
    limits = PostgresLimits(postgres)
    pricing = _pricing(settings, postgres)
    reporting = Reporting(
        rollups=rollups, records=PostgresRecords(postgres), retention=settings.rollup_retention, now=_now
    )
    return _Parts(
        maintenance=Maintenance(
            pools.owner,
            partitions,
            accept_back=settings.accept_back,
            raw_retention=settings.raw_retention,
            rollup_retention=settings.rollup_retention,
            now=_now,
        ),
        pricing=pricing,
        repricing=Repricing(
            rows=PostgresBookedRows(pools.slow, jitter=random.random), pricing=pricing, monotonic_s=time.monotonic
        ),
        recorder=_recorder(settings, postgres, partitions, pricing, metrics),
        journals=JournalAudit(PostgresJournals(postgres), PrometheusJournalMetrics(metrics, now=_now)),
        reporting=reporting,
        watching=Watching(reporting, settings.watch_limits),
        auditing=Auditing(
            store=PostgresAudit(pools.slow),
            metrics=PrometheusAuditMetrics(metrics),
            retention=settings.rollup_retention,
            raw_retention=settings.raw_retention,
            accept_back=settings.accept_back,
            open_attempt_bound=settings.open_attempt_bound,
            now=_now,
            monotonic_s=time.monotonic,
        ),
        limiting=Limiting(
            rollups=rollups,
            limits=limits,
            defaults=settings.default_limits,
            thresholds=settings.level_thresholds,
            retention=settings.rollup_retention,
            now=_now,
        ),
        limit_setting=LimitSetting(limits),
    )


def _pricing(settings: UsageSettings, postgres: Postgres) -> Pricing:
    vendors = BundledPrices()
    vendors.load()
    return Pricing(
        store=PostgresPrices(postgres),
        vendors=vendors,
        now=_now,
        seen_within=timedelta(seconds=settings.price_refresh_s),
    )


def _recorder(
    settings: UsageSettings, postgres: Postgres, partitions: Partitions, pricing: Pricing, metrics: Metrics
) -> Recorder:
    return Recorder(
        ledger=GroupedLedger(
            PostgresLedger(postgres, partitions=partitions, jitter=random.random), writers=settings.ingest_writers
        ),
        quarantine=PostgresQuarantine(postgres),
        pricing=pricing,
        rules=EventRules(settings.accept_back, settings.accept_ahead, settings.providers),
        metrics=PrometheusRecordingMetrics(metrics),
        now=_now,
        monotonic_s=time.monotonic,
        writers=settings.ingest_writers,
        max_waiting=settings.ingest_max_waiting,
    )


def _periodics(settings: UsageSettings, parts: _Parts, metrics: Metrics) -> list[Periodic]:
    """What the service does by itself, once the database is open."""
    pricing = parts.pricing
    periodics = [
        Periodic("audit journals", parts.journals.refresh, interval_s=_JOURNAL_AUDIT_S, metrics=metrics),
        Periodic("maintain", parts.maintenance.run, interval_s=settings.maintenance_interval_s, metrics=metrics),
        Periodic("refresh prices", pricing.refresh, interval_s=settings.price_refresh_s, metrics=metrics),
        Periodic("follow list prices", pricing.follow_vendors, interval_s=_VENDOR_PRICES_S, metrics=metrics),
    ]
    if settings.verify_interval_s and not settings.worker:  # of several workers the first one's alone
        verify = Periodic(
            "verify ledger",
            partial(parts.auditing.verify_on_schedule, settings.verify_days),
            interval_s=settings.verify_interval_s,
            metrics=metrics,
            starts_at_once=False,  # a restart is no reason to recount everything while traffic comes back
        )
        periodics.append(verify)
    return periodics


def _add_services(server: GrpcServer, settings: UsageSettings, parts: _Parts) -> None:
    usage = UsageServicer(
        recorder=parts.recorder,
        reports=ReportHandlers(parts.reporting),
        journals=parts.journals,
        watch=WatchHandler(parts.watching),
        now=_now,
    )
    prices = PricingServicer(pricing=parts.pricing, repricing=parts.repricing, providers=settings.providers, now=_now)
    quota = QuotaServicer(parts.limiting, parts.limit_setting, providers=settings.providers)
    server.add(
        "turnpike.usage.v1.UsageService",
        partial(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, usage),
    )
    server.add(
        "turnpike.usage.v1.AuditService",
        partial(audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(parts.auditing)),
    )
    server.add(
        "turnpike.usage.v1.QuotaService",
        partial(quota_service_pb2_grpc.add_QuotaServiceServicer_to_server, quota),
    )
    server.add(
        "turnpike.usage.v1.PricingService",
        partial(pricing_service_pb2_grpc.add_PricingServiceServicer_to_server, prices),
    )


def _now() -> datetime:
    return datetime.now(UTC)
