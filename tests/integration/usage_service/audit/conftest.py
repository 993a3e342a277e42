"""Books to damage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.integration.usage_service.audit.books import NOW, Books, varied
from tests.support.ledger import ledger_on


@pytest.fixture
async def books(ledger_database: str) -> AsyncIterator[Books]:
    async with ledger_on(ledger_database, now=lambda: NOW) as ledger:
        await ledger.partitions.cover(NOW - timedelta(days=36), NOW)
        yield Books(ledger)


@pytest.fixture
async def kept(books: Books) -> Books:
    """A sound ledger of 40 attempts."""
    await books.send(*varied(40))
    return books
