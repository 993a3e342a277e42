"""The tenants in memory: what nearly every request is served from.

An entry is fresh for its time to live. After that it is still served, while one task reads it anew; so a slow or absent
Postgres costs a running tenant nothing. A notification makes an entry outdated at once, a poll of the versions finds
what no notification told, and a request may ask for a version that it knows of. A broken row is reported as such at
once: to go on with the configuration before it would hide the mistake from the person who made it.

Tenants that exist and tenants that do not, or are broken, are kept apart: a flood of made-up ids pushes out none that
works.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from uuid import UUID

import structlog

from router_service.domain.tenant import Tenant
from router_service.tenants.metrics import TenantMetrics
from service_runtime.errors import Category, ServiceError

_log = structlog.get_logger(__name__)


NEGATIVE_TTL_S = 5.0
RETRY_AFTER_FAILURE_S = 2.0
# How long a request waits for a configuration that is known to have changed before it takes the last good one.
OUTDATED_WAIT_S = 1.0
_READS_PER_LOAD = 10  # whoever changes a tenant faster than it can be read does not keep its requests waiting for ever
_VERSIONS_AT_ONCE = 1000  # compared in a millisecond; ten thousand would hold up everybody for twenty
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
    """What is known of a tenant: its configuration, which is the default if nobody created it, or why it has none."""

    value: Tenant | ServiceError
    fresh_until: float

    @property
    def version(self) -> int:
        return self.value.version if isinstance(self.value, Tenant) else 0

    @property
    def serves_while_reloading(self) -> bool:
        """A default or a refusal does not: the row may just have been written."""
        return self.version > 0 and self.fresh_until > _OUTDATED


@dataclass(slots=True, eq=False)
class _Load:
    """A read under way. `overtaken` says that the tenant changed since, so that what was read may be outdated."""

    task: asyncio.Task[_Entry] | None = None
    overtaken: bool = False


class TenantCache:
    """Implements `routing.ports.Tenants`.

    `unknown_tenant` makes the answer for a tenant without a row: a default to serve, or the error to raise. `now_s` is
    a monotonic clock; `jitter` gives 0 … 1 and spreads the expiry of entries that were loaded together.
    `outdated_wait_s` bounds how long a request waits for a configuration that is known to have changed.
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
        metrics: TenantMetrics,
        outdated_wait_s: float = OUTDATED_WAIT_S,
    ) -> None:
        self._source = source
        self._unknown_tenant = unknown_tenant
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._now_s = now_s
        self._jitter = jitter
        self._metrics = metrics
        self._outdated_wait_s = outdated_wait_s
        # Least recently used first, each at most `max_entries` long.
        self._existing: OrderedDict[UUID, _Entry] = OrderedDict()
        self._absent: OrderedDict[UUID, _Entry] = OrderedDict()
        self._loads: dict[UUID, _Load] = {}

    async def get(self, tenant_id: UUID, *, min_version: int = 0) -> Tenant:
        """The tenant; see `routing.ports.Tenants`."""
        entry = self._find(tenant_id)
        if entry is not None and entry.version >= min_version:
            if self._now_s() < entry.fresh_until:
                self._metrics.lookups["hit",].inc()
                return _answer(entry)
            if entry.serves_while_reloading:
                self._metrics.lookups["stale",].inc()
                self._load(tenant_id)
                return _answer(entry)
        self._metrics.lookups["miss",].inc()
        began_before = tenant_id in self._loads
        entry = await self._reloaded(tenant_id, min_version)
        if entry.version < min_version and began_before:
            # The read that was joined may have begun before the version was written.
            entry = await self._reloaded(tenant_id, min_version)
        if isinstance(entry.value, Tenant) and entry.version < min_version:
            raise ServiceError(
                Category.UNAVAILABLE,
                "CONFIG_VERSION_BEHIND",
                f"tenant {tenant_id} is at version {entry.version} here, and {min_version} was asked for; retry",
                retry_after_s=1.0,
            )
        return _answer(entry)

    def put(self, tenant: Tenant) -> None:
        """Take a configuration that this router itself has just written, so that its caller reads its own write."""
        self._overtake(tenant.id)
        held = self._find(tenant.id)
        if held is not None and held.version > tenant.version:
            # A later write was answered first, or the row was made anew: only the table knows.
            held.fresh_until = _OUTDATED
            return
        self._store(tenant.id, tenant)

    def invalidate(self, tenant_id: UUID, version: int = 0) -> None:
        """Read a tenant anew before it is served again, unless what is held is already `version`."""
        if tenant_id in self._loads:
            self._overtake(tenant_id)
        entry = self._find(tenant_id)
        if entry is not None and not (0 < version <= entry.version):
            entry.fresh_until = _OUTDATED

    def invalidate_all(self) -> None:
        """Read everything anew before it is served again, as after a time in which notifications may be missing."""
        for tenant_id in self._loads:
            self._overtake(tenant_id)
        for entry in (*self._existing.values(), *self._absent.values()):
            entry.fresh_until = _OUTDATED

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

    async def on_listening(self) -> None:
        """Find what changed while no notification could be heard: to be run each time that listening begins."""
        for tenant_id in self._loads:
            self._overtake(tenant_id)
        for entry in self._absent.values():
            entry.fresh_until = _OUTDATED
        await self.poll_versions()

    async def poll_versions(self) -> None:
        """Find what no notification told: compare the versions that are held with those that are stored."""
        tenant_ids = list(self._existing)
        for first in range(0, len(tenant_ids), _VERSIONS_AT_ONCE):
            some = tenant_ids[first : first + _VERSIONS_AT_ONCE]
            held = {tenant_id: entry.version for tenant_id in some if (entry := self._existing.get(tenant_id))}
            stored = await self._source.versions(some)
            for tenant_id, version in held.items():
                if stored.get(tenant_id, 0) != version:
                    self.invalidate(tenant_id)  # also a lower one: the row was deleted and made anew

    def _find(self, tenant_id: UUID) -> _Entry | None:
        for entries in (self._existing, self._absent):
            entry = entries.get(tenant_id)
            if entry is not None:
                entries.move_to_end(tenant_id)
                return entry
        return None

    def _overtake(self, tenant_id: UUID) -> None:
        if load := self._loads.get(tenant_id):
            load.overtaken = True

    async def _reloaded(self, tenant_id: UUID, min_version: int) -> _Entry:
        """What a load finds, or the last good configuration (S1) when the database is away or takes too long."""
        task = self._load(tenant_id)
        entry = self._find(tenant_id)
        if entry is not None and isinstance(entry.value, Tenant) and entry.version >= min_version:
            await asyncio.wait({task}, timeout=self._outdated_wait_s)
            if not task.done():
                self._metrics.lookups["stale",].inc()
                entry.fresh_until = self._now_s() + RETRY_AFTER_FAILURE_S  # let nobody else wait for the same silence
                return entry
        return await asyncio.shield(task)

    def _load(self, tenant_id: UUID) -> asyncio.Task[_Entry]:
        """The one task that reads a tenant; whoever needs it meanwhile waits for the same."""
        load = self._loads.get(tenant_id)
        if load is None:
            load = self._loads[tenant_id] = _Load()
            load.task = asyncio.create_task(self._read(tenant_id, load), name=f"read tenant {tenant_id}")
            load.task.add_done_callback(partial(self._loaded, tenant_id, load))
        assert load.task is not None
        return load.task

    def _loaded(self, tenant_id: UUID, load: _Load, task: asyncio.Task[_Entry]) -> None:
        if task.cancelled():
            self._forget(tenant_id, load)  # perhaps before its first step
            return
        error = task.exception()
        if error is not None and not isinstance(error, ServiceError):
            # Perhaps nobody waits for it: said here, or nowhere.
            self._metrics.reload_failures.labels("INTERNAL").inc()
            _log.error("tenant.load_failed", tenant_id=str(tenant_id), exc_info=error)

    def _forget(self, tenant_id: UUID, load: _Load) -> None:
        if self._loads.get(tenant_id) is load:
            del self._loads[tenant_id]

    async def _read(self, tenant_id: UUID, load: _Load) -> _Entry:
        try:
            return await self._read_until_current(tenant_id, load)
        finally:
            # In the same step as the read ends: nobody may join one that can no longer notice a change.
            self._forget(tenant_id, load)

    async def _read_until_current(self, tenant_id: UUID, load: _Load) -> _Entry:
        for _ in range(_READS_PER_LOAD):
            load.overtaken = False
            value: Tenant | ServiceError | None
            try:
                value = await self._source.tenant(tenant_id)
            except ServiceError as error:
                self._metrics.reload_failures.labels(error.reason).inc()
                if error.reason != "TENANT_CONFIG_INVALID":
                    return self._last_good(tenant_id, error)
                value = _unraised(error)
            # What was read before a change may be what was valid before it: read once more.
            if not load.overtaken:
                break
        entry = self._store(tenant_id, self._unknown_tenant(tenant_id) if value is None else value)
        if load.overtaken:
            entry.fresh_until = _OUTDATED
        return entry

    def _last_good(self, tenant_id: UUID, error: ServiceError) -> _Entry:
        """Postgres is away: serve on with what was good, and ask again soon."""
        entry = self._find(tenant_id)
        if entry is None or not isinstance(entry.value, Tenant):
            raise ServiceError(
                Category.UNAVAILABLE,
                "CONFIG_UNAVAILABLE",
                f"the configuration of tenant {tenant_id} is not in memory and the database does not answer; retry",
                retry_after_s=error.retry_after_s or RETRY_AFTER_FAILURE_S,
            ) from error
        entry.fresh_until = self._now_s() + RETRY_AFTER_FAILURE_S
        return entry

    def _store(self, tenant_id: UUID, value: Tenant | ServiceError) -> _Entry:
        exists = isinstance(value, Tenant) and value.version > 0
        ttl_s = self._ttl_s * (1 - 0.1 * self._jitter()) if exists else NEGATIVE_TTL_S
        entry = _Entry(value, self._now_s() + ttl_s)
        entries, others = (self._existing, self._absent) if exists else (self._absent, self._existing)
        others.pop(tenant_id, None)
        entries[tenant_id] = entry
        entries.move_to_end(tenant_id)
        if len(entries) > self._max_entries:
            entries.popitem(last=False)
        self._metrics.entries.set(len(self._existing) + len(self._absent))
        return entry


def _answer(entry: _Entry) -> Tenant:
    if isinstance(entry.value, ServiceError):
        raise _unraised(entry.value)
    return entry.value


def _unraised(error: ServiceError) -> ServiceError:
    """The same error without the frames it went through: one that is kept would collect those of every request."""
    return ServiceError(
        error.category, error.reason, error.message, metadata=error.metadata, retry_after_s=error.retry_after_s
    )
