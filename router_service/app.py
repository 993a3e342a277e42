"""Composition root: the router's parts and how they fit. Everything it knows comes from the settings."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from uuid import UUID

import grpc.aio
import structlog

from router_service.api.render import detail_to_proto
from router_service.api.request_check import RequestRules
from router_service.api.router_servicer import RouterServicer
from router_service.api.tenant_servicer import TenantServicer
from router_service.configured import (
    ROUTER_SERVICE,
    gates,
    http_settings,
    journal_directory,
    key_ring,
    own_router_id,
    provider_catalog,
    routing_settings,
    service_database,
    snapshot_files,
    system_credentials,
    turn_rules,
    worker_name,
)
from router_service.domain.catalog import ProviderNames, ProviderSpec
from router_service.domain.tenant import Tenant
from router_service.providers.provider_set import build_providers
from router_service.providers.token_counter import TokenizerProcess
from router_service.readiness import RouterReadiness
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.router import Router
from router_service.settings import RouterSettings
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from router_service.tenants.rows import RowReader
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.snapshot import SnapshottedTenants, TenantSnapshot
from router_service.tenants.source import StoredTenants
from router_service.tenants.store import CHANNEL, TenantStore, unknown_tenant
from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal, router_name
from router_service.usage.journal_report import JournalReporter
from router_service.usage.limit_cache import LimitCache
from router_service.usage.metrics import UsageMetrics
from router_service.usage.orphans import OrphanDrain
from router_service.usage.pacing import PaceSettings
from router_service.usage.price_cache import PriceCache
from router_service.usage.right_of_way import RightOfWay
from router_service.usage.sender import UsageSender
from service_runtime import faults
from service_runtime.background import Periodic
from service_runtime.database import BringUp, ServiceDatabase
from service_runtime.errors import ServiceError
from service_runtime.grpc_server import GrpcServer
from service_runtime.held_refusals import HeldRefusals
from service_runtime.ids import uuid7
from service_runtime.logs import configure_logging
from service_runtime.metrics import Metrics
from service_runtime.postgres import Listener
from service_runtime.process import Lifecycle
from service_runtime.redaction import REDACTOR
from turnpike.router.v1 import router_service_pb2_grpc, tenant_service_pb2_grpc

NEWCOMER = UUID("018f0000-0000-7000-8000-000000000001")

_PRICE_REFRESH_S = 15.0
_LIMIT_REFRESH_S = 1.0
_SENDER_DRAIN_S = 5.0
_JOURNAL_REPORT_S = 15.0
_ORPHANS_S = 30.0
_SNAPSHOT_S = 10.0
_HEALTH_S = 2.0

_log = structlog.get_logger(__name__)


async def serve(settings: RouterSettings, lifecycle: Lifecycle) -> None:
    """Run the router until it is asked to stop. What was opened last is closed first."""
    configure_logging(settings.log_level, settings.log_format)
    faults.arm(settings.faults)
    metrics = Metrics(worker=settings.worker)
    async with AsyncExitStack() as opened:
        catalog, ring, database = provider_catalog(settings), key_ring(settings), service_database(settings)
        opened.push_async_callback(database.close)
        store, cache, snapshot = _tenants(settings, catalog, ring, metrics, database)
        providers = build_providers(catalog, http_settings(settings))
        opened.push_async_callback(providers.aclose)
        channel = await opened.enter_async_context(usage_channel(settings.usage_address))
        journal, router_id = _journal(settings, metrics, channel, opened)
        counter = await opened.enter_async_context(aclosing(TokenizerProcess()))
        prices = PriceCache(channel, [(spec.name, model) for spec in catalog.values() for model in spec.models])
        limits = LimitCache(channel, now_s=time.monotonic)
        router = Router(
            tenants=cache,
            providers=providers,
            catalog=catalog,
            system_credentials=system_credentials(settings, catalog, ring),
            journal=journal,
            prices=prices,
            limits=limits,
            metrics=RoutingMetrics(metrics.registry),
            new_event_id=uuid7,
            counter=counter,
            settings=routing_settings(settings),
        )
        _start(
            opened,
            Periodic("poll tenant versions", cache.poll_versions, interval_s=settings.tenant_poll_s, metrics=metrics),
            Periodic("refresh prices", prices.refresh, interval_s=_PRICE_REFRESH_S, metrics=metrics),
            Periodic("refresh limits", limits.refresh, interval_s=_LIMIT_REFRESH_S, metrics=metrics),
        )
        tenant_servicer = TenantServicer(store, cache, catalog, providers, new_id=uuid7)
        server = _server(settings, metrics, router, tenant_servicer, catalog)
        opened.push_async_callback(server.drain, 0.0)  # also when something below stops the start
        readiness = RouterReadiness(server, database, journal, snapshot)  # before the start: it adds names to health
        await router.resume()
        await server.start()
        opened.enter_context(metrics.serve(settings.bind_host, settings.own_metrics_port))

        async def ready() -> None:
            await readiness.judge()
            if not lifecycle.is_ready:
                _log.info("router.ready", address=server.address, providers=sorted(catalog), router_id=router_id)
                lifecycle.ready(server.address, _hint(settings, catalog))

        await _bring_up(opened, database, lifecycle, partial(_listener, settings, cache), ready)
        if len(snapshot) > 0:
            await ready()  # from the copy on disk, while Postgres is away
        _start(opened, Periodic("judge health", readiness.judge, interval_s=_HEALTH_S, metrics=metrics))
        _start(opened, Periodic("keep tenants on disk", snapshot.save, interval_s=_SNAPSHOT_S, metrics=metrics))
        opened.push_async_callback(snapshot.save)

        await lifecycle.wait_for_stop()
        readiness.drain()
        server.release_held()
        await asyncio.sleep(settings.drain_delay)
        await router.drain(settings.drain_grace_s)
        await server.drain(_SENDER_DRAIN_S)


async def _bring_up(
    opened: AsyncExitStack,
    database: ServiceDatabase,
    lifecycle: Lifecycle,
    listener_as: Callable[[str | None], Listener],
    ready: Callable[[], Awaitable[None]],
) -> None:
    """Open the database, now or once it answers; from then on follow the tenants' changes, and be ready."""

    async def follow_tenants() -> None:
        listener = listener_as(database.role)
        listener.start()
        opened.push_async_callback(listener.close)
        await ready()

    bringing_up = BringUp(database, lifecycle, then=follow_tenants)
    opened.push_async_callback(bringing_up.stop)
    await bringing_up.begin()


def _start(opened: AsyncExitStack, *periodics: Periodic) -> None:
    for periodic in periodics:
        periodic.start()
        opened.push_async_callback(periodic.stop)


def _journal(
    settings: RouterSettings, metrics: Metrics, channel: grpc.aio.Channel, opened: AsyncExitStack
) -> tuple[SqliteJournal, str]:
    """The journal with what carries it to usage_service, both at work; and the router's name."""
    directory = journal_directory(settings)
    usage_metrics = UsageMetrics(metrics.registry)
    journal = SqliteJournal.open(
        directory, max_bytes=settings.journal_max_bytes, metrics=usage_metrics, new_epoch=_new_name
    )
    opened.push_async_callback(journal.close)
    router_id = own_router_id(settings) or router_name(directory, _new_name)
    reporter = JournalReporter(journal, channel, router_id=router_id, metrics=usage_metrics)
    opened.push_async_callback(_last_report, reporter)
    pace = PaceSettings(floor_per_s=settings.backlog_min_per_s, ceiling_per_s=settings.backlog_max_per_s)
    right_of_way = RightOfWay.beside(journal, usage_metrics, settings=pace)
    opened.push_async_callback(right_of_way.close)
    sender = UsageSender(journal, channel, router_id=router_id, metrics=usage_metrics, right_of_way=right_of_way)
    sender.start()
    opened.push_async_callback(sender.stop, _SENDER_DRAIN_S)
    _start(opened, Periodic("report journal", reporter.report, interval_s=_JOURNAL_REPORT_S, metrics=metrics))
    if not settings.worker:
        orphans = _orphan_drain(settings, channel, right_of_way)
        _start(opened, Periodic("carry orphans", orphans.run, interval_s=_ORPHANS_S, metrics=metrics))
    return journal, router_id


def _orphan_drain(settings: RouterSettings, channel: grpc.aio.Channel, right_of_way: RightOfWay) -> OrphanDrain:
    """What carries the journals of workers that there are no more, each under the name that its worker had."""
    kept = partial(router_name, new_name=_new_name)
    set_name = settings.router_id
    return OrphanDrain(
        settings.resolved_data_dir() / "journal",
        channel,
        workers=settings.workers,
        max_bytes=settings.journal_max_bytes,
        new_name=_new_name,
        right_of_way=right_of_way,
        router_id=(lambda directory: worker_name(set_name, directory.name.rpartition("-")[2])) if set_name else kept,
    )


async def _last_report(reporter: JournalReporter) -> None:
    """When the sender is done: what the ledger has not got, it knows to be waiting."""
    try:
        await reporter.report()
    except ServiceError as error:
        _log.warning("journal.last_report_failed", cause=error.message)


def _tenants(
    settings: RouterSettings,
    catalog: Mapping[str, ProviderSpec],
    ring: KeyRing,
    metrics: Metrics,
    database: ServiceDatabase,
) -> tuple[TenantStore, TenantCache, TenantSnapshot]:
    """The tenants' table, its cache, and the copy on disk that stands in for an absent Postgres."""
    postgres = database.pool(min_size=settings.database_pool_min, max_size=settings.database_pool_max)
    names = ProviderNames(catalog)
    reader = RowReader(names, ring, accepts_plaintext=settings.accepts_plaintext_keys)
    tenant_metrics = TenantMetrics(metrics.registry)
    own_file, *other_files = snapshot_files(settings)
    snapshot = TenantSnapshot(
        own_file,
        max_entries=settings.tenant_cache_size,
        max_age_s=settings.tenant_snapshot_max_age_s,
    )
    snapshot.load(*other_files)
    store = TenantStore(postgres, reader, ring, names, on_secret=REDACTOR.register, on_read=snapshot.keep)
    cache = TenantCache(
        SnapshottedTenants(StoredTenants(store), snapshot, reader, tenant_metrics, on_secret=REDACTOR.register),
        unknown_tenant=partial(_unknown_tenant, settings),
        ttl_s=settings.tenant_cache_ttl_s,
        max_entries=settings.tenant_cache_size,
        now_s=time.monotonic,
        jitter=random.random,
        metrics=tenant_metrics,
    )
    return store, cache, snapshot


def _listener(settings: RouterSettings, cache: TenantCache, role: str | None) -> Listener:
    """What hears of changes of tenants. Needs the database open: only then its role is known."""
    return Listener(
        settings.database_url.get_secret_value(),
        [CHANNEL],
        on_connect=cache.on_listening,
        on_notify=lambda _channel, payload: cache.on_notification(payload),
        role=role,
    )


def _unknown_tenant(settings: RouterSettings, tenant_id: UUID) -> Tenant | ServiceError:
    return unknown_tenant(tenant_id) if settings.refuses_unknown_tenants else Tenant(tenant_id, "", 0)


def _server(
    settings: RouterSettings,
    metrics: Metrics,
    router: Router,
    tenants: TenantServicer,
    catalog: Mapping[str, ProviderSpec],
) -> GrpcServer:
    """The gRPC server with both services, not started yet."""
    held = HeldRefusals(turn_rules(settings), metrics, service=ROUTER_SERVICE)
    server = GrpcServer.from_settings(
        settings, metrics, detail_to_proto=detail_to_proto, gate_of=gates(settings), held=held
    )
    rules = RequestRules(
        ProviderNames(catalog), new_request_id=uuid7, max_prompt_characters=settings.max_prompt_characters
    )
    completions = RouterServicer(router, rules, used_by=held.used)
    server.add(
        ROUTER_SERVICE,
        partial(router_service_pb2_grpc.add_RouterServiceServicer_to_server, completions),
    )
    server.add(
        "turnpike.router.v1.TenantService",
        partial(tenant_service_pb2_grpc.add_TenantServiceServicer_to_server, tenants),
    )
    return server


def _hint(settings: RouterSettings, catalog: Mapping[str, ProviderSpec]) -> str:
    """A first command for a newcomer: the development profile serves tenants that nobody created."""
    if settings.refuses_unknown_tenants or not any(spec.is_sandbox for spec in catalog.values()):
        return ""
    return f'try: .venv/bin/turnpike chat --tenant {NEWCOMER} --provider sandbox "hello"'


def _new_name() -> str:
    return str(uuid7())
