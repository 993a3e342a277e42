"""Where events go that the ledger cannot take: their bytes, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from service_runtime.postgres import Postgres, load_queries
from usage_service.metering.ports import QuarantinedEvent

# A well-formed event is at most about 25 KB. Of a larger one the beginning is kept, and its hash is that of the whole.
MAX_PAYLOAD_BYTES = 64 * 1024
_MAX_ID_CHARACTERS = 100
_MAX_TEXT_CHARACTERS = 2_000

_QUERIES = load_queries(Path(__file__).with_name("quarantine.sql"))


class PostgresQuarantine:
    """The table `usage_events_rejected`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def keep(self, events: Sequence[QuarantinedEvent]) -> None:
        """Keep events aside durably; see `metering.ports.Quarantine`."""
        if not events:
            return
        columns = zip(*(_record(event) for event in events), strict=True)
        async with self._postgres.acquire() as connection:
            await connection.execute(_QUERIES["keep"], *columns)


def _record(event: QuarantinedEvent) -> tuple[str, str, str, str, str, bytes, bytes, str, int]:
    reason = event.reason
    if len(event.payload) > MAX_PAYLOAD_BYTES:
        reason = f"{reason} (first {MAX_PAYLOAD_BYTES} of {len(event.payload)} bytes)"
    return (
        event.router_id,
        _storable(event.event_id)[:_MAX_ID_CHARACTERS],
        event.kind,
        _storable(event.field)[:_MAX_TEXT_CHARACTERS],
        _storable(reason)[:_MAX_TEXT_CHARACTERS],
        event.payload[:MAX_PAYLOAD_BYTES],
        sha256(event.payload).digest(),
        event.router_epoch,
        event.sequence,
    )


def _storable(text: str) -> str:
    """Postgres text cannot hold U+0000; here it may well be the very reason."""
    return text.replace("\x00", "\\0")
