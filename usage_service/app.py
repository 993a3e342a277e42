"""Composition root: the ledger's parts and how they fit. Everything it knows comes from the settings."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
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
from usage_service.storage.rollups import PostgresRollups

MIGRATIONS = Path(__file__).parent / "storage" / "migrations"
ROLE = "turnpike_usage"

_MAINTENANCE_STATEMENT_TIMEOUT_S = 60.0
_CLOSING_GRACE_S = 5.0
_JOURNAL_AUDIT_S = 15.0
_HEALTH_S = 2.0
DATABASE = "turnpike.usage.v1.UsageService/db"

_log = structlog.get_logger(__name__)


async def serve(settings: UsageSettings, lifecycle: Lifecycle) -> None:
    """Run the ledger until it is asked to stop. What was opened last is closed first."""
    configure_logging(settings.log_level, settings.log_format)
    faults.arm(settings.faults)
    metrics = Metrics()
    async with AsyncExitStack() as opened:
        database, postgres, owner, slow = _databases(settings)
        opened.push_async_callback(database.close)
        partitions = Partitions(owner)
        maintenance = Maintenance(
            owner,
            partitions,
            accept_back=settings.accept_back,
            raw_retention=settings.raw_retention,
            rollup_retention=settings.rollup_retention,
            now=_now,
        )
        bundled_prices = BundledPrices()
        pricing = Pricing(
            store=PostgresPrices(postgres),
            vendors=bundled_prices,
            now=_now,
            seen_within=timedelta(seconds=settings.price_refresh_s),
        )
        bundled_prices.load()
        recorder = Recorder(
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
        auditing = _auditing(settings, slow, metrics)
        journals = JournalAudit(PostgresJournals(postgres), PrometheusJournalMetrics(metrics, now=_now))
        periodics = [
            Periodic("audit journals", journals.refresh, interval_s=_JOURNAL_AUDIT_S, metrics=metrics),
            Periodic("maintain", maintenance.run, interval_s=settings.maintenance_interval_s, metrics=metrics),
            Periodic("refresh prices", pricing.refresh, interval_s=settings.price_refresh_s, metrics=metrics),
            Periodic(
                "follow list prices",
                pricing.follow_vendors,
                interval_s=timedelta(days=1).total_seconds(),
                metrics=metrics,
            ),
            *_verification(settings, auditing, metrics),
        ]
        for periodic in periodics:
            opened.push_async_callback(periodic.stop)
        server = GrpcServer.from_settings(settings, metrics)
        repricing = Repricing(
            rows=PostgresBookedRows(slow, jitter=random.random), pricing=pricing, monotonic_s=time.monotonic
        )
        watching = Watching(reporting := _reporting(settings, postgres), settings.watch_limits)
        opened.push_async_callback(watching.stop)
        usage = UsageServicer(
            recorder=recorder,
            reports=ReportHandlers(reporting),
            journals=journals,
            watch=WatchHandler(watching),
            now=_now,
        )
        _add_services(server, settings, postgres, usage=usage, pricing=pricing, repricing=repricing, auditing=auditing)
        opened.push_async_callback(server.drain, 0.0)  # also when something below stops the start
        server.add_health_name(DATABASE)
        await server.start()
        opened.enter_context(metrics.serve(settings.bind_host, settings.own_metrics_port))

        async def judge() -> None:
            # Everything here is an answer from the database: without it this service serves nothing.
            answers = await database.answers()
            if not lifecycle.stop_was_requested:
                server.set_serving(answers)

        async def ready() -> None:
            await maintenance.cover()
            await pricing.refresh()
            for periodic in periodics:
                periodic.start()
            await judge()
            _log.info("usage.ready", address=server.address)
            lifecycle.ready(server.address)

        bringing_up = BringUp(database, lifecycle, then=ready)
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
        await watching.stop()
        await server.drain(min(settings.drain_grace_s, _CLOSING_GRACE_S))


def _reporting(settings: UsageSettings, postgres: Postgres) -> Reporting:
    return Reporting(
        rollups=PostgresRollups(postgres),
        records=PostgresRecords(postgres),
        retention=settings.rollup_retention,
        now=_now,
    )


def _auditing(settings: UsageSettings, slow: Postgres, metrics: Metrics) -> Auditing:
    return Auditing(
        store=PostgresAudit(slow),
        metrics=PrometheusAuditMetrics(metrics),
        retention=settings.rollup_retention,
        raw_retention=settings.raw_retention,
        accept_back=settings.accept_back,
        open_attempt_bound=settings.open_attempt_bound,
        now=_now,
        monotonic_s=time.monotonic,
    )


def _verification(settings: UsageSettings, auditing: Auditing, metrics: Metrics) -> list[Periodic]:
    """The audit on schedule, unless it is turned off."""
    if not settings.verify_interval_s:
        return []
    return [
        Periodic(
            "verify ledger",
            partial(auditing.verify_on_schedule, settings.verify_days),
            interval_s=settings.verify_interval_s,
            metrics=metrics,
            starts_at_once=False,  # a restart is no reason to recount everything while traffic comes back
        )
    ]


def _databases(settings: UsageSettings) -> tuple[ServiceDatabase, LatePostgres, LatePostgres, LatePostgres]:
    """The database; the pool that everything works with, in the service's own role; one of the tables' owner, for
    maintenance; and one for correcting and auditing what was booked, whose statements may take longer and hold up
    nobody's.
    """
    database = ServiceDatabase(
        settings.database_url.get_secret_value(),
        service="usage_service",
        migrations=MIGRATIONS,
        role=ROLE,
        setting="TURNPIKE_DATABASE_URL",
    )
    postgres = database.pool(
        min_size=settings.database_pool_min,
        max_size=settings.database_pool_max,
        application_name="usage_service",
    )
    owner = database.pool(
        as_owner=True,
        min_size=0,
        max_size=2,  # one for the periodic work, one for a partition that an event needs meanwhile
        statement_timeout_s=_MAINTENANCE_STATEMENT_TIMEOUT_S,
        application_name="usage_service maintenance",
    )
    slow = database.pool(
        min_size=0,
        max_size=5,  # two corrections, two audits, and one that keeps the audit on schedule alone
        statement_timeout_s=_MAINTENANCE_STATEMENT_TIMEOUT_S,
        application_name="usage_service slow work",
    )
    return database, postgres, owner, slow


def _add_services(
    server: GrpcServer,
    settings: UsageSettings,
    postgres: Postgres,
    *,
    usage: UsageServicer,
    pricing: Pricing,
    repricing: Repricing,
    auditing: Auditing,
) -> None:
    limits = PostgresLimits(postgres)
    limiting = Limiting(
        rollups=PostgresRollups(postgres),
        limits=limits,
        defaults=settings.default_limits,
        thresholds=settings.level_thresholds,
        retention=settings.rollup_retention,
        now=_now,
    )
    server.add(
        "turnpike.usage.v1.UsageService",
        partial(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, usage),
    )
    server.add(
        "turnpike.usage.v1.AuditService",
        partial(audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(auditing)),
    )
    server.add(
        "turnpike.usage.v1.QuotaService",
        partial(
            quota_service_pb2_grpc.add_QuotaServiceServicer_to_server,
            QuotaServicer(limiting, LimitSetting(limits), providers=settings.providers),
        ),
    )
    server.add(
        "turnpike.usage.v1.PricingService",
        partial(
            pricing_service_pb2_grpc.add_PricingServiceServicer_to_server,
            PricingServicer(pricing=pricing, repricing=repricing, providers=settings.providers, now=_now),
        ),
    )


def _now() -> datetime:
    return datetime.now(UTC)
