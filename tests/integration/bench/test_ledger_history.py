"""The history that the ledger's bench fills ledgers with is booked by the ingest statement itself."""

from __future__ import annotations

from tests.bench.ledger_history import History


async def test_a_grown_history_has_rows_and_rollups_that_agree(ledger_database: str) -> None:
    history = await History.on(ledger_database)
    try:
        await history.grow_to(300)
        await history.grow_to(1_000)

        await history.finish()  # recounts rows and rollups
    finally:
        await history.close()
