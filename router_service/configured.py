"""What the settings mean: each part of the router that needs nothing but them, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from router_service.domain.catalog import ProviderSpec
from router_service.domain.secret import Secret
from router_service.domain.tenant import Credential
from router_service.domain.usage import Funding
from router_service.providers.catalog import build_catalog, with_clocks
from router_service.providers.egress import parse_networks
from router_service.providers.provider_set import HttpSettings
from router_service.routing.settings import RoutingSettings
from router_service.settings import RouterSettings
from router_service.tenants.sealed_keys import KeyRing, checked_token
from router_service.tenants.snapshot import FILE_NAME as SNAPSHOT_FILE_NAME
from service_runtime.database import ServiceDatabase
from service_runtime.overload import GateOf, gates_for, no_gates
from service_runtime.redaction import REDACTOR
from service_runtime.refusal_turns import TurnRules
from service_runtime.startup import StartupError

MIGRATIONS = Path(__file__).parent / "tenants" / "migrations"
ROLE = "turnpike_router"
ROUTER_SERVICE = "turnpike.router.v1.RouterService"


def key_ring(settings: RouterSettings) -> KeyRing:
    return KeyRing.load(
        settings.key_encryption_keys.get_secret_value(),
        data_dir=settings.resolved_data_dir(),
        is_development=settings.development,
    )


def service_database(settings: RouterSettings) -> ServiceDatabase:
    return ServiceDatabase(
        settings.database_url.get_secret_value(),
        service="router_service",
        migrations=MIGRATIONS,
        role=ROLE,
        setting="TURNPIKE_DATABASE_URL",
    )


def provider_catalog(settings: RouterSettings) -> Mapping[str, ProviderSpec]:
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


def http_settings(settings: RouterSettings) -> HttpSettings:
    texts = [text.strip() for text in settings.allowed_networks.split(",") if text.strip()]
    try:
        return HttpSettings(
            allowed_networks=parse_networks(texts),
            ca_file=settings.ca_file or None,
            read_window_s=settings.read_window_ms / 1e3,
        )
    except ValueError as error:
        raise StartupError(f"ROUTER_ALLOWED_NETWORKS: {error}") from error


def system_credentials(
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


def routing_settings(settings: RouterSettings) -> RoutingSettings:
    return RoutingSettings(
        max_attempts=settings.max_attempts,
        max_running_per_tenant=settings.max_running_per_tenant,
        max_running_per_provider=settings.max_running_per_provider,
        total_s=settings.default_deadline_s,
        drain_s=settings.drain_grace_s,
        late_usage_wait_s=settings.late_usage_wait_s,
        score_weights=settings.score_weights,
    )


def gates(settings: RouterSettings) -> GateOf:
    """Completions may be refused for want of time; everything else, such as health, never is."""
    completions = [f"/{ROUTER_SERVICE}/{name}" for name in ("StreamCompletion", "Complete")]
    return gates_for(*completions) if settings.shed_late_calls else no_gates


def turn_rules(settings: RouterSettings) -> TurnRules:
    return TurnRules(longest_wait_s=settings.hold_refusals_s, busy_ratio=settings.hold_refusals_busy_ratio)


def snapshot_files(settings: RouterSettings) -> list[Path]:
    """A file for each worker, this one's first: one file would hold the last writer's alone. All are read, for a
    tenant's next connection may come to another worker.
    """
    own = settings.worker or 0
    numbers = [own, *(number for number in range(settings.workers) if number != own)]
    names = (f"{SNAPSHOT_FILE_NAME}-{number}" if number else SNAPSHOT_FILE_NAME for number in numbers)
    return [settings.resolved_data_dir() / name for name in names]


def journal_directory(settings: RouterSettings) -> Path:
    """`journal` for the only or the first worker, `journal/worker-<k>` for the others: one writer per directory."""
    journal = settings.resolved_data_dir() / "journal"
    return journal / f"worker-{settings.worker}" if settings.worker else journal


def own_router_id(settings: RouterSettings) -> str:
    """The stable name that was set, one for each worker; empty when it is kept beside the journal."""
    if settings.router_id and settings.worker:
        return worker_name(settings.router_id, str(settings.worker))
    return settings.router_id


def worker_name(router_id: str, worker: str) -> str:
    return f"{router_id}-{worker}"
