"""The tenants in memory: what nearly every request is served from.

An entry is fresh for its time to live. After that it is still served, while one task reads it anew; so a slow or absent
Postgres costs a running tenant nothing. A notification makes an entry stale at once, a poll of the versions finds what
no notification told, and a request may ask for a version that it knows of. A broken row is reported as such at once:
to go on with the configuration before it would hide the mistake from the person who made it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from router_service.domain.tenant import Tenant
from service_runtime.errors import Category, ServiceError

_log = structlog.get_logger(__name__)

_LOOKUPS = Counter("router_tenant_cache_lookups_total", "Lookups of a tenant's configuration", ["outcome"])
_ENTRIES = Gauge("router_tenant_cache_entries", "Tenants in memory")
_RELOAD_FAILURES = Counter("router_tenant_reload_failures_total", "Reads of a tenant that failed", ["reason"])

NEGATIVE_TTL_S = 5.0
RETRY_AFTER_FAILURE_S = 2.0
_OUTDATED = float("-inf")  # known to be old, not merely past its time: whoever asks waits for the new one


class TenantSource(Protocol):
    """Where tenants are read from."""

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        """The tenant as it stands, or None. Raises ServiceError for a broken row or an absent database."""
        ...

    async def versions(self, tenant_ids: list[UUID]) -> Mapping[UUID, int]:
        """The versions of those that exist."""
        ...


@dataclass(slots=True)
class _Entry:
    """What is known of a tenant: its configuration, that it does not exist (None), or why it is broken."""

    value: Tenant | ServiceError | None
    fresh_until: float

    @property
    def version(self) -> int:
        return self.value.version if isinstance(self.value, Tenant) else 0


class TenantCache:
    """Implements `routing.ports.Tenants`.

    `unknown_tenant` makes the answer for a tenant without a row: a default to serve, or the error to raise. `now_s` is
    a monotonic clock; `jitter` gives 0 … 1 and spreads the expiry of entries that were loaded together.
    """

    def __init__(
        self,
        source: TenantSource,
        *,
        unknown_tenant: Callable[[UUID], Tenant | ServiceError],
        ttl_s: float,
        max_entries: int,
        now_s: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        self._source = source
        self._unknown_tenant = unknown_tenant
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._now_s = now_s
        self._jitter = jitter
        self._entries: OrderedDict[UUID, _Entry] = OrderedDict()
        self._loads: dict[UUID, asyncio.Task[_Entry]] = {}
        # Of tenants that are being read: the generation of the last invalidation.
        self._invalidations: dict[UUID, int] = {}
        self._generation = 0

    async def get(self, tenant_id: UUID, *, min_version: int = 0) -> Tenant:
        """The tenant; see `routing.ports.Tenants`."""
        entry = self._entries.get(tenant_id)
        if entry is not None and entry.version >= min_version:
            self._entries.move_to_end(tenant_id)
            if self._now_s() < entry.fresh_until:
                _LOOKUPS.labels("hit").inc()
                return self._answer(tenant_id, entry)
            if isinstance(entry.value, Tenant) and entry.fresh_until > _OUTDATED:
                _LOOKUPS.labels("stale").inc()
                self._load(tenant_id)
                return self._answer(tenant_id, entry)
        _LOOKUPS.labels("miss").inc()
        entry = await asyncio.shield(self._load(tenant_id))
        if entry.version < min_version:
            raise ServiceError(
                Category.UNAVAILABLE,
                "CONFIG_VERSION_BEHIND",
                f"tenant {tenant_id} is at version {entry.version} here, and {min_version} was asked for; retry",
                retry_after_s=1.0,
            )
        return self._answer(tenant_id, entry)

    def put(self, tenant: Tenant) -> None:
        """Take a configuration that this router itself has just written, so that its caller reads its own write."""
        if tenant.id in self._loads:
            self._invalidations[tenant.id] = self._next_generation()
        self._store(tenant.id, tenant)

    def invalidate(self, tenant_id: UUID, version: int = 0) -> None:
        """Forget a tenant, unless what is held is already `version`. What was held serves while it is read anew."""
        entry = self._entries.get(tenant_id)
        if version and entry is not None and entry.version >= version:
            return
        if tenant_id in self._loads:
            self._invalidations[tenant_id] = self._next_generation()
        if entry is not None:
            self._expire(tenant_id, entry)

    def invalidate_all(self) -> None:
        """Forget everything, as after a time in which notifications may have been missed."""
        generation = self._next_generation()
        self._invalidations.update(dict.fromkeys(self._loads, generation))
        for tenant_id, entry in list(self._entries.items()):
            self._expire(tenant_id, entry)

    def on_notification(self, payload: str) -> None:
        """Act on a message of the tenants' channel: `<uuid> <version>`, or `all`."""
        if payload == "all":
            self.invalidate_all()
            return
        text, _, version = payload.partition(" ")
        try:
            self.invalidate(UUID(text), int(version or 0))
        except ValueError:
            _log.warning("tenant.notification_unreadable")

    async def poll_versions(self) -> None:
        """Find what no notification told: compare the versions that are held with those that are stored."""
        held = {tenant_id: entry.version for tenant_id, entry in self._entries.items() if entry.version}
        if not held:
            return
        stored = await self._source.versions(list(held))
        for tenant_id, version in held.items():
            if stored.get(tenant_id, 0) != version:
                self.invalidate(tenant_id, stored.get(tenant_id, 0))

    def _expire(self, tenant_id: UUID, entry: _Entry) -> None:
        if isinstance(entry.value, Tenant):
            # The next request waits for the new configuration; only when Postgres is away does the old one serve on.
            entry.fresh_until = _OUTDATED
        else:
            del self._entries[tenant_id]

    def _answer(self, tenant_id: UUID, entry: _Entry) -> Tenant:
        value = self._unknown_tenant(tenant_id) if entry.value is None else entry.value
        if isinstance(value, ServiceError):
            raise value
        return value

    def _load(self, tenant_id: UUID) -> asyncio.Task[_Entry]:
        """The one task that reads a tenant; whoever needs it meanwhile waits for the same."""
        task = self._loads.get(tenant_id)
        if task is None:
            task = asyncio.create_task(self._read(tenant_id), name=f"read tenant {tenant_id}")
            self._loads[tenant_id] = task
            task.add_done_callback(lambda done: self._loaded(tenant_id, done))
        return task

    def _loaded(self, tenant_id: UUID, task: asyncio.Task[_Entry]) -> None:
        del self._loads[tenant_id]
        self._invalidations.pop(tenant_id, None)
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody waiting is no reason to complain

    async def _read(self, tenant_id: UUID) -> _Entry:
        while True:
            began = self._generation
            value: Tenant | ServiceError | None
            try:
                value = await self._source.tenant(tenant_id)
            except ServiceError as error:
                _RELOAD_FAILURES.labels(error.reason).inc()
                if error.reason != "TENANT_CONFIG_INVALID":
                    return self._last_good(tenant_id, error)
                value = error
            # What was read before an invalidation may be what was valid before it: read once more.
            if self._invalidations.get(tenant_id, 0) <= began:
                return self._store(tenant_id, value)

    def _last_good(self, tenant_id: UUID, error: ServiceError) -> _Entry:
        """Postgres is away: serve on with what was good, and ask again soon."""
        entry = self._entries.get(tenant_id)
        if entry is None or not isinstance(entry.value, Tenant):
            raise ServiceError(
                Category.UNAVAILABLE,
                "CONFIG_UNAVAILABLE",
                f"the configuration of tenant {tenant_id} is not in memory and the database does not answer; retry",
                retry_after_s=error.retry_after_s or RETRY_AFTER_FAILURE_S,
            ) from error
        entry.fresh_until = self._now_s() + RETRY_AFTER_FAILURE_S
        return entry

    def _store(self, tenant_id: UUID, value: Tenant | ServiceError | None) -> _Entry:
        ttl_s = self._ttl_s * (1 - 0.1 * self._jitter()) if isinstance(value, Tenant) else NEGATIVE_TTL_S
        entry = _Entry(value, self._now_s() + ttl_s)
        self._entries[tenant_id] = entry
        self._entries.move_to_end(tenant_id)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        _ENTRIES.set(len(self._entries))
        return entry

    def _next_generation(self) -> int:
        self._generation += 1
        return self._generation
