"""Logs refused calls, so that a flood of them is told in a line a second and not in a line each.

Of refusals that are alike the first few of a second are told one by one; the others are counted, and the count follows
when the second is over. None is left out of it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import structlog

from service_runtime.errors import ServiceError

log: Any = structlog.get_logger(__name__)

WINDOW_S = 1.0
TOLD_ONE_BY_ONE = 10
_MOST_KINDS = 1000  # in one window; beyond, refusals with different messages count as alike


class _Kind(NamedTuple):
    """What makes refusals alike. The message names the tenant or the value that is to blame."""

    method: str
    code: str
    reason: str
    cause: str | None
    message: str


class RefusalLog:
    """The refusals of one server. Needs a running event loop."""

    def __init__(self, *, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: dict[_Kind, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def refused(self, method: str, error: ServiceError) -> None:
        """Tell of a refusal, at once or when the window is over."""
        cause = type(error.__cause__).__name__ if error.__cause__ is not None else None
        message = error.message if len(self._seen) < _MOST_KINDS else ""
        kind = _Kind(method, error.category.name, error.reason, cause, message)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        if seen <= TOLD_ONE_BY_ONE:
            log.info("rpc.refused", method=method, code=kind.code, reason=kind.reason, cause=cause)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._window_s, self.tell)

    def tell(self) -> None:
        """Tell how many were not told one by one, and begin a new window."""
        seen, self._seen = self._seen, {}
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind, count in seen.items():
            more = count - TOLD_ONE_BY_ONE
            if more > 0:
                log.info(
                    "rpc.refused_again",
                    method=kind.method,
                    code=kind.code,
                    reason=kind.reason,
                    cause=kind.cause,
                    message=kind.message,
                    count=more,
                )
