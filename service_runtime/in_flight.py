"""The handlers in progress, so that a shutdown can wait for the last line of each."""

from __future__ import annotations

import asyncio
from typing import Any


class InFlight:
    """Tasks of handlers: requests, and calls for health and reflection, apart."""

    def __init__(self) -> None:
        self.requests: set[asyncio.Task[Any] | None] = set()
        self.infrastructure: set[asyncio.Task[Any] | None] = set()

    async def wait_until_idle(self, timeout_s: float) -> int:
        """Wait for all handlers to end, their `finally` blocks included; the number that had not after `timeout_s`."""
        tasks = {task for task in self.requests | self.infrastructure if task is not None}
        if not tasks:
            return 0
        _done, pending = await asyncio.wait(tasks, timeout=timeout_s)
        return len(pending)
