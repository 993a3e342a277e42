"""Holds refusals back until their turn comes, see `refusal_turns`; docs/decisions/0014 has the reasons and the figures.

Held are errors after which gRPC wants nobody to try again before something was mended, on connections that have
carried one user's calls only. Who is held counts into no bound of others': neither into the calls in progress nor into
how long calls take. A caller who leaves is let go at once; a deadline, and the end of the process, come before turns.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Final

from service_runtime.errors import Category, ServiceError
from service_runtime.metrics import Metrics
from service_runtime.overload import Saturation
from service_runtime.refusal_turns import OUT_OF_REACH, Connections, TurnRules, Turns

LASTING: Final = frozenset(
    {
        Category.FAILED_PRECONDITION,
        Category.INVALID_ARGUMENT,
        Category.NOT_FOUND,
        Category.PERMISSION_DENIED,
        Category.UNAUTHENTICATED,
    }
)
TICK_S: Final = 0.05  # turns of one tick are given together, and their callers ask again together: half the CPU
BEFORE_DEADLINE_S: Final = 3 * TICK_S  # so that the refusal still arrives
MOST_HELD: Final = 2_000  # of everybody together; each takes up to 17 KiB


class HeldRefusals:
    """The refusals of one server that wait. Belongs to the thread of its event loop."""

    def __init__(
        self,
        rules: TurnRules,
        metrics: Metrics,
        *,
        service: str,
        saturation: Saturation | None = None,
        now_s: Callable[[], float] = time.monotonic,
        most_held: int = MOST_HELD,
    ) -> None:
        """`service`, such as `turnpike.router.v1.RouterService`, tells by `used` for whom it works. The calls of any
        other make their connection one that is never held up.
        """
        self._prefix = f"/{service}/"
        self._rules = rules
        self._saturation = saturation or Saturation()
        self._now_s = now_s
        self._most_held = most_held
        self._turns = Turns(rules)
        self._connections = Connections()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap
        self._count = 0
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._held = metrics.counter(
            "grpc_server_refusals_held", "Refusals that waited for their turn, of callers who ask too fast."
        )
        self._not_held = metrics.counter(
            "grpc_server_refusals_not_held", "Refusals that had to wait too long for a turn, and went at once."
        )
        metrics.gauge("grpc_server_refusals_waiting", "Refusals that wait for their turn.").set_function(
            lambda: self._count
        )

    @property
    def waiting(self) -> int:
        """How many are held."""
        return self._count

    def knows_user_of(self, method: str) -> bool:
        """Whether the handler of a method, by its full name, tells for whom it works."""
        return method.startswith(self._prefix)

    def used(self, context: Any, user: Hashable | None) -> None:
        """The call of this `context`, grpc.aio's, is for `user`; None when that is nobody in particular."""
        if self._rules.longest_wait_s > 0:
            self._connections.used(context.peer(), user, self._now_s())

    def for_nobody(self, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """The handler, with its calls told to be for nobody in particular."""

        async def noted(request: Any, context: Any) -> Any:
            self.used(context, None)
            return await behaviour(request, context)

        return noted

    def wait_s(self, context: Any, error: ServiceError, remaining_s: float) -> float:
        """How long the refusal of a call is to wait, with `remaining_s` to its deadline; 0: it is told at once."""
        if error.category not in LASTING or self._is_closed or self._rules.longest_wait_s <= 0:
            return 0.0
        user = self._connections.only_user(context.peer())
        if user is None:
            return 0.0
        now_s = self._now_s()
        self._saturation.look()
        is_pressed = self._saturation.ratio >= self._rules.busy_ratio
        turn_s = self._turns.next_for(user, now_s, is_pressed=is_pressed)
        wait_s = min(turn_s - now_s, remaining_s - BEFORE_DEADLINE_S)
        if wait_s <= 0:
            return 0.0
        if turn_s == OUT_OF_REACH or len(self._waiting) >= self._most_held:
            self._not_held.inc()
            return 0.0
        return wait_s

    async def hold(
        self, context: Any, error: Exception, remaining_s: float, while_waiting: AbstractContextManager[None]
    ) -> None:
        """Return when the caller is to be told; until then be inside of `while_waiting`."""
        wait_s = self.wait_s(context, error, remaining_s) if isinstance(error, ServiceError) else 0.0
        if wait_s <= 0:
            return
        with while_waiting:
            await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._number += 1
        heapq.heappush(self._waiting, (self._now_s() + wait_s, self._number, turn))
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick)
        self._held.inc()
        self._count += 1
        try:
            await turn
        finally:
            self._count -= 1

    def release(self) -> None:
        """Tell everybody now, and let nobody wait from now on: the process is to end."""
        self._is_closed = True
        self._give_turns(OUT_OF_REACH)

    def _tick(self) -> None:
        self._timer = None
        self._give_turns(self._now_s())
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _give_turns(self, until_s: float) -> None:
        while self._waiting and self._waiting[0][0] <= until_s:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():  # else the caller has left
                turn.set_result(None)
