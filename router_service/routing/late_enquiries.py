"""Asks providers afterwards what an answer consumed that ended without a count: the caller left, or it broke off.

The record of such an attempt is held in the journal with an estimate. It is let go once, with what the provider says,
or as it is when the provider has not said anything in time. Nobody waits for an enquiry, and their number is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from router_service.domain.catalog import ProviderSpec
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.tenant import Credential
from router_service.domain.usage import LateEnquiry, LateUsage
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.ports import Provider, Tenants, UsageJournal
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import ServiceError

_log: Any = structlog.get_logger(__name__)

LONGEST_DELAY_S = 30.0
ONE_TRY_S = 10.0
_HOPELESS = frozenset(
    {FailureKind.KEY_REJECTED, FailureKind.NO_CREDIT, FailureKind.NOT_ALLOWED, FailureKind.POLICY_REFUSED}
)


class _GivenUp(Exception):
    """No further asking helps."""


@dataclass(frozen=True, slots=True)
class _Question:
    """`credential` is None when it is still to be found, by the fingerprint in the enquiry."""

    event_id: UUID
    enquiry: LateEnquiry
    credential: Credential | None
    tenant_id: UUID | None = None


class LateEnquiries:
    """The enquiries of one router, each in a task of its own."""

    def __init__(
        self,
        *,
        providers: Mapping[str, Provider],
        catalog: Mapping[str, ProviderSpec],
        tenants: Tenants,
        system_credentials: Mapping[str, Credential],
        journal: UsageJournal,
        metrics: RoutingMetrics,
        settings: RoutingSettings,
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._tenants = tenants
        self._system_credentials = system_credentials
        self._journal = journal
        self._metrics = metrics
        self._settings = settings
        self._now_unix_s = now_unix_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._patience: set[asyncio.Timeout] = set()
        self._is_stopping = False

    @property
    def has_place(self) -> bool:
        """Whether one more answer may be enquired after."""
        settings = self._settings
        return (
            settings.late_usage_wait_s > 0 and not self._is_stopping and len(self._tasks) < settings.max_late_enquiries
        )

    def begin(self, event_id: UUID, enquiry: LateEnquiry, credential: Credential | None) -> None:
        """Enquire after an attempt whose record is held, and let go of the record at the end."""
        self._start(_Question(event_id, enquiry, credential), self._settings.late_usage_wait_s)

    async def resume(self) -> None:
        """Take up what an earlier run of this router held; each gets what is left of its time, and one try at least."""
        for held in await self._journal.held():
            if held.enquiry is None or not self.has_place:
                await self._journal.release(held.event_id, None)
                continue
            left_s = self._settings.late_usage_wait_s - max(0.0, self._now_unix_s() - held.held_since)
            question = _Question(held.event_id, held.enquiry, None, held.tenant_id)
            self._start(question, max(left_s, self._settings.late_usage_first_delay_s + ONE_TRY_S))

    async def stop(self, wait_s: float) -> None:
        """Wait a little for the last answers, then let every record go as it is."""
        self._is_stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=wait_s)
            for patience in self._patience:
                if not patience.expired():
                    patience.reschedule(asyncio.get_running_loop().time())
            await asyncio.gather(*self._tasks)

    def _start(self, question: _Question, wait_s: float) -> None:
        task = asyncio.create_task(self._run(question, wait_s), name=f"late usage {question.event_id}")
        self._tasks.add(task)
        self._metrics.set_enquiries(len(self._tasks))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._metrics.set_enquiries(len(self._tasks))

    async def _run(self, question: _Question, wait_s: float) -> None:
        late: LateUsage | None = None
        patience = asyncio.timeout(wait_s)
        try:
            async with patience:
                self._patience.add(patience)
                late = await self._answer(question)
        except (TimeoutError, _GivenUp):
            pass  # the estimate stands
        except Exception:  # noqa: BLE001 - whatever an answer does, its record must go
            _log.exception("late_usage.crashed", event_id=str(question.event_id))
        finally:
            self._patience.discard(patience)
        provider = question.enquiry.provider
        try:
            await self._journal.release(question.event_id, late)
        except Exception:  # noqa: BLE001 - still held on the disk: the next start takes it up
            _log.exception("late_usage.not_released", event_id=str(question.event_id))
            self._metrics.enquiry_ended(provider, "failed")
            return
        self._metrics.enquiry_ended(provider, "unanswered" if late is None else "answered")
        _log.info("late_usage.finished", event_id=str(question.event_id), provider=provider, answered=late is not None)

    async def _answer(self, question: _Question) -> LateUsage:
        """Ask until there is an answer, with growing pauses."""
        provider, spec = self._known(question.enquiry.provider)
        credential, delay_s = question.credential, self._settings.late_usage_first_delay_s
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(LONGEST_DELAY_S, 2 * delay_s)
            try:
                if credential is None and question.enquiry.key_fingerprint:
                    credential = await self._credential(question)
                late = await provider.late_usage(spec.base_url, credential, question.enquiry.response_id)
            except ServiceError:
                continue  # the tenants' table is away; the next try may find it
            except ProviderError as error:
                if error.kind in _HOPELESS:
                    raise _GivenUp from None
                continue
            if late is not None:
                return late

    def _known(self, name: str) -> tuple[Provider, ProviderSpec]:
        if name not in self._providers or name not in self._catalog:
            raise _GivenUp  # the router was started anew with another catalogue
        return self._providers[name], self._catalog[name]

    async def _credential(self, question: _Question) -> Credential:
        """The key that the answer was asked for with: never kept on the disk, so found again by its fingerprint."""
        name = question.enquiry.provider
        candidates = [self._system_credentials.get(name)]
        if question.tenant_id is not None:
            candidates.append((await self._tenants.get(question.tenant_id)).credentials.get(name))
        for credential in candidates:
            if credential is not None and credential.fingerprint == question.enquiry.key_fingerprint:
                return credential
        raise _GivenUp  # replaced or taken away meanwhile
