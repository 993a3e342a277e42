"""Composition root: the router's parts and how they fit. Everything it knows comes from the settings."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from uuid import UUID

import grpc.aio
import structlog

from router_service.api.convert import RequestRules
from router_service.api.render import detail_to_proto
from router_service.api.router_servicer import RouterServicer
from router_service.api.tenant_servicer import TenantServicer
from router_service.domain.catalog import ProviderNames, ProviderSpec
from router_service.domain.secret import Secret
from router_service.domain.tenant import Credential, Tenant
from router_service.domain.usage import Funding
from router_service.providers.catalog import build_catalog, with_clocks
from router_service.providers.egress import parse_networks
from router_service.providers.provider_set import HttpSettings, build_providers
from router_service.providers.token_counter import TokenizerProcess
from router_service.readiness import RouterReadiness
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.router import Router
from router_service.routing.settings import RoutingSettings
from router_service.settings import RouterSettings
from router_service.tenants.cache import TenantCache
from router_service.tenants.metrics import TenantMetrics
from router_service.tenants.rows import RowReader
from router_service.tenants.sealed_keys import KeyRing, checked_token
from router_service.tenants.snapshot import FILE_NAME as SNAPSHOT_FILE_NAME
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
from service_runtime.ids import uuid7
from service_runtime.logs import configure_logging
from service_runtime.metrics import Metrics
from service_runtime.overload import gates_for, no_gates
from service_runtime.postgres import Listener
from service_runtime.process import Lifecycle
from service_runtime.redaction import REDACTOR
from service_runtime.startup import StartupError
from turnpike.router.v1 import router_service_pb2_grpc, tenant_service_pb2_grpc

MIGRATIONS = Path(__file__).parent / "tenants" / "migrations"
ROLE = "turnpike_router"
NEWCOMER = UUID("018f0000-0000-7000-8000-000000000001")

_COMPLETIONS = tuple(f"/turnpike.router.v1.RouterService/{name}" for name in ("StreamCompletion", "Complete"))

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
    metrics = Metrics()
    async with AsyncExitStack() as opened:
        catalog = _catalog(settings)
        ring = _key_ring(settings)
        database = _database(settings)
        opened.push_async_callback(database.close)
        store, cache, snapshot = _tenants(settings, catalog, ring, metrics, database)

        providers = build_providers(catalog, _http(settings))
        opened.push_async_callback(providers.aclose)

        channel = await opened.enter_async_context(usage_channel(settings.usage_address))
        journal, router_id = _journal(settings, metrics, channel, opened)
        counter = await opened.enter_async_context(aclosing(TokenizerProcess()))
        prices, limits = PriceCache(channel), LimitCache(channel, now_s=time.monotonic)
        router = Router(
            tenants=cache,
            providers=providers,
            catalog=catalog,
            system_credentials=_system_credentials(settings, catalog, ring),
            journal=journal,
            prices=prices,
            limits=limits,
            metrics=RoutingMetrics(metrics.registry),
            new_event_id=uuid7,
            counter=counter,
            settings=_routing(settings),
        )
        _start(
            opened,
            Periodic("poll tenant versions", cache.poll_versions, interval_s=settings.tenant_poll_s, metrics=metrics),
            Periodic("refresh prices", prices.refresh, interval_s=_PRICE_REFRESH_S, metrics=metrics),
            Periodic("refresh limits", limits.refresh, interval_s=_LIMIT_REFRESH_S, metrics=metrics),
        )

        gate_of = gates_for(*_COMPLETIONS) if settings.shed_late_calls else no_gates
        server = GrpcServer.from_settings(settings, metrics, detail_to_proto=detail_to_proto, gate_of=gate_of)
        _add_services(server, settings, router, TenantServicer(store, cache, catalog, providers, new_id=uuid7), catalog)
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

        async def follow_tenants() -> None:
            listener = _listener(settings, cache, database.role)
            listener.start()
            opened.push_async_callback(listener.close)
            await ready()

        bringing_up = BringUp(database, lifecycle, then=follow_tenants)
        opened.push_async_callback(bringing_up.stop)
        await bringing_up.begin()
        if len(snapshot) > 0:
            await ready()
        _start(
            opened,
            Periodic("keep tenants on disk", snapshot.save, interval_s=_SNAPSHOT_S, metrics=metrics),
            Periodic("judge health", readiness.judge, interval_s=_HEALTH_S, metrics=metrics),
        )
        opened.push_async_callback(snapshot.save)

        await lifecycle.wait_for_stop()
        readiness.drain()
        await asyncio.sleep(settings.drain_delay)
        await router.drain(settings.drain_grace_s)
        await server.drain(_SENDER_DRAIN_S)


def _start(opened: AsyncExitStack, *periodics: Periodic) -> None:
    for periodic in periodics:
        periodic.start()
        opened.push_async_callback(periodic.stop)


def _key_ring(settings: RouterSettings) -> KeyRing:
    return KeyRing.load(
        settings.key_encryption_keys.get_secret_value(),
        data_dir=settings.resolved_data_dir(),
        is_development=settings.development,
    )


def _database(settings: RouterSettings) -> ServiceDatabase:
    return ServiceDatabase(
        settings.database_url.get_secret_value(),
        service="router_service",
        migrations=MIGRATIONS,
        role=ROLE,
        setting="TURNPIKE_DATABASE_URL",
    )


def _journal(
    settings: RouterSettings, metrics: Metrics, channel: grpc.aio.Channel, opened: AsyncExitStack
) -> tuple[SqliteJournal, str]:
    """The journal with what carries it to usage_service, both at work; and the router's name."""
    directory = _journal_directory(settings)
    usage_metrics = UsageMetrics(metrics.registry)
    journal = SqliteJournal.open(
        directory, max_bytes=settings.journal_max_bytes, metrics=usage_metrics, new_epoch=_new_name
    )
    opened.push_async_callback(journal.close)
    router_id = _router_id(settings) or router_name(directory, _new_name)
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
        router_id=(lambda directory: _worker_name(set_name, directory.name.rpartition("-")[2])) if set_name else kept,
    )


async def _last_report(reporter: JournalReporter) -> None:
    """When the sender is done: what the ledger has not got, it knows to be waiting."""
    try:
        await reporter.report()
    except ServiceError as error:
        _log.warning("journal.last_report_failed", cause=error.message)


def _routing(settings: RouterSettings) -> RoutingSettings:
    return RoutingSettings(
        max_attempts=settings.max_attempts,
        max_running_per_tenant=settings.max_running_per_tenant,
        max_running_per_provider=settings.max_running_per_provider,
        total_s=settings.default_deadline_s,
        drain_s=settings.drain_grace_s,
        late_usage_wait_s=settings.late_usage_wait_s,
        score_weights=settings.score_weights,
    )


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
    own_file, *other_files = _snapshot_files(settings)
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


def _catalog(settings: RouterSettings) -> Mapping[str, ProviderSpec]:
    try:
        catalog = build_catalog(
            {
                "groq": settings.groq_base_url,
                "openrouter": settings.openrouter_base_url,
                "llm7": settings.llm7_base_url,
                "local": settings.local_base_url,
            },
            settings.local_model or None,
            sandbox_enabled=settings.has_sandbox,
        )
    except ValueError as error:
        raise StartupError(f"a provider's address is wrong: {error}") from error
    try:
        return with_clocks(catalog, settings.provider_clocks)
    except ValueError as error:
        raise StartupError(f"ROUTER_PROVIDER_CLOCKS: {error}") from error


def _http(settings: RouterSettings) -> HttpSettings:
    texts = [text.strip() for text in settings.allowed_networks.split(",") if text.strip()]
    try:
        return HttpSettings(
            allowed_networks=parse_networks(texts),
            ca_file=settings.ca_file or None,
            read_window_s=settings.read_window_ms / 1e3,
        )
    except ValueError as error:
        raise StartupError(f"ROUTER_ALLOWED_NETWORKS: {error}") from error


def _system_credentials(
    settings: RouterSettings, catalog: Mapping[str, ProviderSpec], ring: KeyRing
) -> Mapping[str, Credential]:
    """The operator's provider keys. One that cannot be sent as a header stops the start, and is not quoted."""
    written = {
        "groq": settings.groq_api_key,
        "openrouter": settings.openrouter_api_key,
        "llm7": settings.llm7_api_key,
        "local": settings.local_api_key,
    }
    credentials: dict[str, Credential] = {}
    for provider, setting in written.items():
        text = setting.get_secret_value()
        if not text.strip():
            continue
        secret: Secret | None = checked_token(text)
        if secret is None:
            raise StartupError(
                f"{catalog[provider].system_key_env} must be 8 to 512 printable ASCII characters; paste the key again"
            )
        REDACTOR.register(secret.reveal())
        fingerprint = ring.fingerprint(secret, tenant_id=None)
        credentials[provider] = Credential(Funding.SYSTEM_KEY, fingerprint, secret)
    return credentials


def _add_services(
    server: GrpcServer,
    settings: RouterSettings,
    router: Router,
    tenants: TenantServicer,
    catalog: Mapping[str, ProviderSpec],
) -> None:
    rules = RequestRules(
        ProviderNames(catalog), new_request_id=uuid7, max_prompt_characters=settings.max_prompt_characters
    )
    completions = RouterServicer(router, rules)
    server.add(
        "turnpike.router.v1.RouterService",
        partial(router_service_pb2_grpc.add_RouterServiceServicer_to_server, completions),
    )
    server.add(
        "turnpike.router.v1.TenantService",
        partial(tenant_service_pb2_grpc.add_TenantServiceServicer_to_server, tenants),
    )


def _journal_directory(settings: RouterSettings) -> Path:
    """`journal` for the only or the first worker, `journal/worker-<k>` for the others: one writer per directory."""
    journal = settings.resolved_data_dir() / "journal"
    return journal / f"worker-{settings.worker}" if settings.worker else journal


def _router_id(settings: RouterSettings) -> str:
    """The stable name that was set, one for each worker; empty when it is kept beside the journal."""
    if settings.router_id and settings.worker:
        return _worker_name(settings.router_id, str(settings.worker))
    return settings.router_id


def _worker_name(router_id: str, worker: str) -> str:
    return f"{router_id}-{worker}"


def _snapshot_files(settings: RouterSettings) -> list[Path]:
    """A file for each worker, this one's first: one file would hold the last writer's alone. All are read, for a
    tenant's next connection may come to another worker.
    """
    own = settings.worker or 0
    numbers = [own, *(number for number in range(settings.workers) if number != own)]
    names = (f"{SNAPSHOT_FILE_NAME}-{number}" if number else SNAPSHOT_FILE_NAME for number in numbers)
    return [settings.resolved_data_dir() / name for name in names]


def _hint(settings: RouterSettings, catalog: Mapping[str, ProviderSpec]) -> str:
    """A first command for a newcomer: the development profile serves tenants that nobody created."""
    if settings.refuses_unknown_tenants or not any(spec.is_sandbox for spec in catalog.values()):
        return ""
    return f'try: .venv/bin/turnpike chat --tenant {NEWCOMER} --provider sandbox "hello"'


def _new_name() -> str:
    return str(uuid7())
