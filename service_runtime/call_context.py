"""What the code below a handler may know about the call that it serves: its id and how long it may still take.

The error boundary sets it; anything awaited by the handler, and any task it starts, reads it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import NamedTuple

REQUEST_ID_KEY = "x-request-id"


class Call(NamedTuple):
    """One RPC in progress. `method` is the full name, `/turnpike.router.v1.RouterService/Complete`."""

    method: str
    request_id: str
    deadline_monotonic_s: float  # of time.monotonic(); the caller's deadline or the server's cap, whichever is sooner

    def remaining_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline_monotonic_s - time.monotonic()


_current: ContextVar[Call | None] = ContextVar("turnpike_call", default=None)


def current_call() -> Call | None:
    """The call being served, None outside of one."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Make `call` the current one for this task and those that it starts."""
    _current.set(call)


def current_request_id() -> str:
    """The id of the call being served, '' outside of one."""
    call = _current.get()
    return call.request_id if call is not None else ""


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call to another service of ours, so that one id is in the logs of both."""
    call = _current.get()
    return ((REQUEST_ID_KEY, call.request_id),) if call is not None else ()
