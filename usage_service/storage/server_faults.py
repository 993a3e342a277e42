"""Failures of the server that are nobody's mistake and pass: what could not be written now can be sent again."""

from __future__ import annotations

import asyncpg

from service_runtime.errors import Category, ServiceError

# The server cannot write now: full disk, no memory, shutting down, a standby, or too slow for the statement's time.
SERVER_FAULTS: tuple[type[Exception], ...] = (
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
)


def cannot_write(error: Exception) -> ServiceError:
    """What to tell the caller of one of `SERVER_FAULTS`."""
    return ServiceError(
        Category.UNAVAILABLE,
        "DATABASE_UNAVAILABLE",
        f"the database cannot write now ({type(error).__name__}); resend later with the same ids",
        retry_after_s=1.0,
    )
