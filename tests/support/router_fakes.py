"""Fakes of the ports of `routing`, and short ways to the values that its tests are about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from uuid import UUID, uuid4

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from router_service.domain.candidate import Candidate
from router_service.domain.catalog import CallerGonePolicy, Clocks, ModelFacts, ProviderSpec
from router_service.domain.completion import (
    CompletionRequest,
    ContentDelta,
    FinishReason,
    Message,
    ProviderAccepted,
    ProviderFinished,
    ProviderItem,
    Role,
)
from router_service.domain.errors import FailureKind, ProviderError
from router_service.domain.secret import Secret
from router_service.domain.tenant import Credential, InferenceConfig, Tenant
from router_service.domain.usage import AttemptOpened, AttemptSettled, Funding, HeldAttempt, LateUsage, TokenUsage
from router_service.routing.metrics import RoutingMetrics
from router_service.routing.ports import KeyVerdict, LimitHeadroom
from router_service.routing.router import Router
from router_service.routing.settings import RoutingSettings
from service_runtime.errors import Category, ServiceError
from service_runtime.ids import uuid7

TODAY = date(2026, 11, 23)
TENANT_ID = UUID("11111111-1111-4111-8111-111111111111")
USAGE = TokenUsage(input_tokens=10, output_tokens=5)


# ── what a scripted provider does, step by step ──────────────────────────────────────────────────────────────────


class Silence:
    """Say nothing until somebody closes the stream."""


@dataclass(frozen=True)
class Until:
    """Wait for an event of the test's."""

    event: asyncio.Event


Step = ProviderItem | ProviderError | Exception | Silence | Until


def text(content: str) -> ContentDelta:
    return ContentDelta(text=content)


def finished(
    usage: TokenUsage | None = USAGE, *, reason: FinishReason = FinishReason.STOP, model: str = ""
) -> ProviderFinished:
    return ProviderFinished(reason, usage, model=model)


def answer(content: str = "hello", usage: TokenUsage | None = USAGE) -> list[Step]:
    return [ProviderAccepted(), text(content), finished(usage)]


def failure(
    kind: FailureKind, *, status: int | None = None, retry_after_s: float | None = None, reached: bool = True
) -> ProviderError:
    return ProviderError(
        kind, f"it was {kind.value}", status=status, retry_after_s=retry_after_s, may_have_reached_provider=reached
    )


class FakeProvider:
    """A provider whose calls follow scripts, one script a call; the last one repeats."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self.scripts = [list(script) for script in scripts] or [answer()]
        self.calls: list[Candidate] = []
        self.closed = 0
        self.handed_out = 0
        self.late_answers: list[LateUsage | ProviderError | None] = [None]
        self.enquiries: list[tuple[str, str]] = []

    async def stream(
        self, candidate: Candidate, request: CompletionRequest, *, connect_timeout_s: float
    ) -> AsyncGenerator[ProviderItem, None]:
        assert connect_timeout_s > 0
        script = self.scripts[min(len(self.calls), len(self.scripts) - 1)]
        self.calls.append(candidate)
        try:
            for step in script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Silence):
                    await asyncio.Event().wait()
                elif isinstance(step, Until):
                    await step.event.wait()
                else:
                    self.handed_out += 1
                    yield step
        finally:
            self.closed += 1

    async def verify_key(self, base_url: str, credential: Credential) -> tuple[KeyVerdict, str]:
        return KeyVerdict.UNKNOWN, "the fake does not know"

    async def late_usage(self, base_url: str, credential: Credential | None, response_id: str) -> LateUsage | None:
        self.enquiries.append((credential.fingerprint if credential else "", response_id))
        said = self.late_answers[min(len(self.enquiries), len(self.late_answers)) - 1]
        if isinstance(said, ProviderError):
            raise said
        return said


class FakeTenants:
    """Tenants in memory."""

    def __init__(self, *tenants: Tenant) -> None:
        self.tenants = {tenant.id: tenant for tenant in tenants}

    async def get(self, tenant_id: UUID, *, min_version: int = 0) -> Tenant:
        if tenant_id not in self.tenants:
            raise ServiceError(Category.NOT_FOUND, "UNKNOWN_TENANT", f"no tenant {tenant_id}")
        return self.tenants[tenant_id]


class FakeJournal:
    """A journal in memory, as strict as the books: opened before settled, and settled once."""

    def __init__(self) -> None:
        self.opened_attempts: list[AttemptOpened] = []
        self.rows: list[AttemptSettled] = []
        self.held_back: dict[UUID, AttemptSettled] = {}
        self.released: list[tuple[UUID, LateUsage | None]] = []
        self.held_since = time.time()
        self.refuses_opening = False
        self.breaks_settling = False
        self.gate: asyncio.Event | None = None
        self.settling_gate: asyncio.Event | None = None

    async def opened(self, attempt: AttemptOpened) -> None:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.refuses_opening:
            raise ServiceError(Category.RESOURCE_EXHAUSTED, "JOURNAL_FULL", "the journal is full")
        self.opened_attempts.append(attempt)

    async def settled(self, attempt: AttemptSettled) -> None:
        assert attempt.opened in self.opened_attempts, "settled an attempt that was never opened"
        assert all(row.opened.event_id != attempt.opened.event_id for row in self.rows), "settled twice"
        if self.breaks_settling:
            raise ServiceError(Category.UNAVAILABLE, "JOURNAL_BROKEN", "the disk is gone")
        self.rows.append(attempt)
        if attempt.enquiry is not None:
            self.held_back[attempt.opened.event_id] = attempt
        await asyncio.sleep(0)
        if self.settling_gate is not None:
            await self.settling_gate.wait()

    async def held(self) -> list[HeldAttempt]:
        return [
            HeldAttempt(event_id, row.opened.tenant_id, row.enquiry, self.held_since)
            for event_id, row in self.held_back.items()
        ]

    async def release(self, event_id: UUID, late: LateUsage | None) -> bool:
        if self.held_back.pop(event_id, None) is None:
            return False
        self.released.append((event_id, late))
        return True

    @property
    def is_balanced(self) -> bool:
        """Every opened attempt was settled."""
        return {row.opened.event_id for row in self.rows} == {a.event_id for a in self.opened_attempts}


class FakeCounter:
    """Counts words, or nothing when it `is_away`; `fault` is what it raises instead, which no counter should."""

    def __init__(self) -> None:
        self.is_away = False
        self.fault: Exception | None = None
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    async def count(self, vocabulary: str, texts: Sequence[str]) -> list[int] | None:
        self.asked.append((vocabulary, tuple(texts)))
        if self.fault is not None:
            raise self.fault
        return None if self.is_away else [len(text.split()) for text in texts]


class FakePrices:
    """One price for all, or none."""

    def __init__(self, price: tuple[Decimal, Decimal] | None = (Decimal(1), Decimal(2))) -> None:
        self.price = price

    def cost_usd(self, provider: str, model: str, usage: TokenUsage) -> Decimal | None:
        if self.price is None:
            return None
        return (self.price[0] * usage.input_tokens + self.price[1] * usage.output_tokens) / 1_000_000

    def usd_per_million(self, provider: str, model: str) -> tuple[Decimal, Decimal] | None:
        return self.price


@dataclass
class FakeLimits:
    """Headroom by provider."""

    by_provider: dict[str, LimitHeadroom] = field(default_factory=dict)

    def headroom(self, tenant_id: UUID, provider: str, model: str) -> LimitHeadroom | None:
        return self.by_provider.get(provider)


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────


def spec(
    name: str,
    *,
    needs_key: bool = True,
    window: int | None = 100_000,
    on_caller_gone: CallerGonePolicy = CallerGonePolicy.ABORT,
    clocks: Clocks | None = None,
    is_sandbox: bool = False,
    counts_late: bool = False,
    models: Mapping[str, ModelFacts] | None = None,
) -> ProviderSpec:
    """A provider with one model, `<name>-model`, unless others are given."""
    default = ModelFacts(f"{name}-model", context_window_tokens=window)
    return ProviderSpec(
        name=name,
        display_name=name.title(),
        base_url=f"http://{name}.test/v1",
        needs_key=needs_key,
        system_key_env=f"{name.upper()}_API_KEY",
        default_model=default.name,
        models=models or {default.name: default},
        on_caller_gone=on_caller_gone,
        clocks=clocks or Clocks(),
        is_sandbox=is_sandbox,
        counts_late=counts_late,
    )


def key(name: str, funding: Funding = Funding.TENANT_KEY) -> Credential:
    return Credential(funding, f"print-of-{name}", Secret(f"sk-canary-of-{name}-0123456789"))


def tenant(*, keys: Sequence[str] = (), config: InferenceConfig | None = None, version: int = 7) -> Tenant:
    return Tenant(
        TENANT_ID, "Acme", version, config or InferenceConfig(), credentials={name: key(name) for name in keys}
    )


def request(**changes: object) -> CompletionRequest:
    base = CompletionRequest(
        tenant_id=TENANT_ID, request_id=uuid4(), messages=(Message(Role.USER, "Say hello to the people."),)
    )
    return replace(base, **changes)


class World:
    """A router over fakes, without luck: equal providers are tried in the order in which they are given."""

    def __init__(
        self,
        providers: Mapping[str, FakeProvider],
        *,
        specs: Sequence[ProviderSpec] = (),
        config: InferenceConfig | None = None,
        settings: RoutingSettings | None = None,
        system_keys: Sequence[str] = (),
        tenant_keys: Sequence[str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.providers = dict(providers)
        given = {item.name: item for item in specs}
        self.catalog = {name: given.get(name) or spec(name) for name in providers}
        self.journal = FakeJournal()
        self.limits = FakeLimits()
        self.counter = FakeCounter()
        self.registry = CollectorRegistry()
        own = [name for name in providers if name not in system_keys] if tenant_keys is None else tenant_keys
        self.tenants = FakeTenants(tenant(keys=own, config=config))
        self.router = Router(
            tenants=self.tenants,
            providers=self.providers,
            catalog=self.catalog,
            system_credentials={name: key(f"system-{name}", Funding.SYSTEM_KEY) for name in system_keys},
            journal=self.journal,
            prices=FakePrices(),
            limits=self.limits,
            metrics=RoutingMetrics(self.registry),
            settings=settings,
            new_event_id=uuid7,
            counter=self.counter,
            monotonic=monotonic,
            today=lambda: TODAY,
            luck=lambda: 0.0,
        )

    async def idle(self) -> None:
        """Wait until every request is settled."""
        while self.router.running:
            await asyncio.sleep(0)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)
