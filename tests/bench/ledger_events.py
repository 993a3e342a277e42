"""The events of the ledger's bench: the same for the same seed, in the mix that a gateway of many tenants sees.

A few tenants make most of the traffic (Zipf, exponent 1.1) and so do a few models; one event in twenty fails. Events
are a millisecond apart, so that a batch of 500 spans half a second and meets some 270 rows of each rollup.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from turnpike.usage.v1 import token_usage_pb2, usage_event_pb2, usage_service_pb2

TENANTS: Final = 200
ROUTER_ID: Final = "bench"
# Provider, model and share; all have a price in a new ledger but the last, which nobody prices.
MODELS: Final[Sequence[tuple[str, str, int]]] = (
    ("groq", "llama-3.3-70b-versatile", 30),
    ("groq", "llama-3.1-70b-versatile", 12),
    ("groq", "mixtral-8x7b-32768", 6),
    ("openrouter", "deepseek/deepseek-r1", 14),
    ("openrouter", "anthropic/claude-3.5-sonnet", 12),
    ("openrouter", "google/gemini-pro-1.5", 6),
    ("llm7", "gpt-4o-mini", 8),
    ("llm7", "gpt-4o", 4),
    ("llm7", "gpt-4-turbo", 2),
    ("local", "llama3.2", 3),
    ("local", "qwen2.5", 2),
    ("llm7", "unheard-of", 1),
)
_OUTCOMES: Final = (
    (usage_event_pb2.USAGE_STATUS_SUCCESS, "", 950),
    (usage_event_pb2.USAGE_STATUS_ERROR, "overloaded", 20),
    (usage_event_pb2.USAGE_STATUS_ERROR, "timeout", 10),
    (usage_event_pb2.USAGE_STATUS_RATE_LIMIT, "rate_limit", 15),
    (usage_event_pb2.USAGE_STATUS_CANCELLED, "", 5),
)
_FUNDINGS: Final = (token_usage_pb2.FUNDING_TENANT_KEY, token_usage_pb2.FUNDING_SYSTEM_KEY)  # of even and odd tenants
ZIPF_EXPONENT: Final = 1.1


@dataclass(frozen=True, slots=True)
class Traffic:
    """Which events there are: `seed` chooses them, `start` is the time of the first, `gap` that between two."""

    seed: int
    start: datetime
    gap: timedelta = timedelta(milliseconds=1)
    tenants: int = TENANTS

    def events(self) -> Iterator[usage_event_pb2.UsageEvent]:
        """Events without end, oldest first."""
        rng = random.Random(self.seed)
        tenants = [str(tenant_id(number)) for number in range(self.tenants)]
        tenant_weights = list(itertools.accumulate((n + 1) ** -ZIPF_EXPONENT for n in range(self.tenants)))
        model_weights = list(itertools.accumulate(share for _, _, share in MODELS))
        outcome_weights = list(itertools.accumulate(share for _, _, share in _OUTCOMES))
        for number in itertools.count():
            (tenant,) = rng.choices(tenants, cum_weights=tenant_weights)
            ((provider, model, _),) = rng.choices(MODELS, cum_weights=model_weights)
            ((status, error_class, _),) = rng.choices(_OUTCOMES, cum_weights=outcome_weights)
            is_success = status == usage_event_pb2.USAGE_STATUS_SUCCESS
            latency_ms = min(600_000, int(rng.lognormvariate(6.8, 0.9)))
            event = usage_event_pb2.UsageEvent(
                event_id=str(_event_id(self.start + number * self.gap, rng)),
                tenant_id=tenant,
                request_id=str(uuid.UUID(int=rng.getrandbits(128))),
                attempt=1,
                provider=provider,
                model=model,
                endpoint="/chat",
                user_id=f"user-{rng.randrange(1_000)}",
                status=status,
                error_class=error_class,
                error_message="" if is_success else "the provider did not answer as it should",
                absorbed=not is_success and rng.random() < 0.5,
                usage_source=token_usage_pb2.TOKEN_USAGE_SOURCE_NONE,
                funding=token_usage_pb2.FUNDING_TENANT_KEY
                if tenant[-1] in "02468"
                else token_usage_pb2.FUNDING_SYSTEM_KEY,
                latency=Duration(seconds=latency_ms // 1_000, nanos=latency_ms % 1_000 * 1_000_000),
                labels={"team": "search"},
                sequence=number + 1,
                task_type="chat",
            )
            if is_success:
                event.usage_source = token_usage_pb2.TOKEN_USAGE_SOURCE_PROVIDER
                event.token_usage.input_tokens = rng.randrange(20, 4_000)
                event.token_usage.output_tokens = rng.randrange(1, 800)
                event.time_to_first_token.FromMilliseconds(latency_ms // 4)
            yield event

    def requests(self, count: int, size: int) -> tuple[list[bytes], list[list[str]]]:
        """`count` requests of RecordUsage with `size` new events each, and the events' ids."""
        events = self.events()
        batches = [list(itertools.islice(events, size)) for _ in range(count)]
        return [serialised(batch) for batch in batches], [[event.event_id for event in batch] for batch in batches]


def serialised(events: Sequence[usage_event_pb2.UsageEvent], *, epoch: str = "1") -> bytes:
    """A request of RecordUsage; without an epoch its events are from no journal."""
    return usage_service_pb2.RecordUsageRequest(router_id=ROUTER_ID, epoch=epoch, events=events).SerializeToString()


def tenant_id(number: int) -> uuid.UUID:
    """The tenant with a number; 0 has the most traffic."""
    return uuid.UUID(int=0x00000000_0000_4000_8000_000000000000 + number)


def _event_id(used_at: datetime, rng: random.Random) -> uuid.UUID:
    unix_ms = int(used_at.timestamp() * 1_000)
    return uuid.UUID(int=unix_ms << 80 | 0x7 << 76 | rng.getrandbits(12) << 64 | 0b10 << 62 | rng.getrandbits(62))
