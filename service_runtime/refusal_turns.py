"""When somebody is told no who asks for it faster than makes sense: the decision, with times as arguments.

A refusal costs a process as much as a small answer. Who is refused for a reason that lasts, and goes on asking, takes
time from everybody, and gains nothing by it. So while time is short his refusals leave by turns, at a steady pace, and
whoever would have to wait too long for his is told at once. The pace binds because a connection takes no further calls
while it has as many open as it may: it is the asker who waits.

All that is remembered of one is the time of the last turn that he was given. Who asks for less than the pace has his
turn at once; nobody else's turn depends on his.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

LONG_SINCE: Final = float("-inf")
OUT_OF_REACH: Final = float("inf")
MOST_CONNECTIONS: Final = 20_000  # whose users are remembered
_FEW_USERS: Final = 1_000
CONNECTION_LASTS_S: Final = 2500.0  # longer than the server lets one live; then its port may be somebody else's


@dataclass(frozen=True, slots=True)
class TurnRules:
    """`longest_wait_s` of 0 holds nobody. `most_waiting` of one asker share it: they set the pace together.

    With 500 and 5 s, 100 leave in a second, and of the 250 calls that one connection may have open each waits half
    of the longest.
    `at_once` of a quiet asker's refusals go before the pace binds. `busy_ratio` is how much of the time the event loop
    must be busy before anybody waits.
    """

    longest_wait_s: float = 5.0
    busy_ratio: float = 0.7
    most_waiting: int = 500
    at_once: int = 20

    @property
    def spacing_s(self) -> float:
        """From one turn to the next."""
        return self.longest_wait_s / self.most_waiting


def turn_after(last_s: float, now_s: float, rules: TurnRules, *, is_pressed: bool) -> float:
    """The next turn of who had his last at `last_s`. One that is not after `now_s` is due.

    LONG_SINCE when there is no need for turns, and OUT_OF_REACH when it would be too late: both are told at once, and
    take no turn. While others of his wait he has to as well, pressed or not: else a flood that was slowed down would
    come back whenever it had helped.
    """
    if rules.longest_wait_s <= 0 or not (is_pressed or last_s > now_s):
        return LONG_SINCE
    turn_s = max(last_s, now_s - rules.at_once * rules.spacing_s) + rules.spacing_s
    return turn_s if turn_s - now_s <= rules.longest_wait_s else OUT_OF_REACH


class Connections:
    """Who uses which connection. To fill one up must hurt nobody else, so only a connection of one user may be."""

    def __init__(self, *, most: int = MOST_CONNECTIONS, lasts_s: float = CONNECTION_LASTS_S) -> None:
        self._most = most
        self._lasts_s = lasts_s
        self._users: dict[str, tuple[Hashable, float]] = {}  # and since when; the oldest first

    def used(self, peer: str, user: Hashable, now_s: float) -> None:
        """A call for `user` has come over the connection from `peer`, an address with a port. None is several."""
        known = self._users.get(peer)
        if known is None or now_s - known[1] > self._lasts_s:
            self._users.pop(peer, None)
            self._users[peer] = (user, now_s)
            if len(self._users) > self._most:
                del self._users[next(iter(self._users))]
        elif known[0] is not None and known[0] != user:
            self._users[peer] = (None, known[1])

    def only_user(self, peer: str) -> Hashable | None:
        """The one for whom all calls of a connection were; None when there are several, or none is known."""
        known = self._users.get(peer)
        return known[0] if known is not None else None


class Turns:
    """The last turn of everybody who waits or has waited just now."""

    def __init__(self, rules: TurnRules) -> None:
        self._rules = rules
        self._last_s: dict[Hashable, float] = {}
        self._look_at = _FEW_USERS

    @property
    def remembered(self) -> int:
        """Of how many users a turn is remembered."""
        return len(self._last_s)

    def next_for(self, user: Hashable, now_s: float, *, is_pressed: bool) -> float:
        """`turn_after`, remembered."""
        turn_s = turn_after(self._last_s.get(user, LONG_SINCE), now_s, self._rules, is_pressed=is_pressed)
        if LONG_SINCE < turn_s < OUT_OF_REACH:
            self._last_s[user] = turn_s
            if len(self._last_s) > self._look_at:
                self._forget_the_quiet(now_s)
        return turn_s

    def _forget_the_quiet(self, now_s: float) -> None:
        """Drop those for whom it is as if they had never had a turn."""
        quiet_s = now_s - self._rules.at_once * self._rules.spacing_s
        self._last_s = {user: last_s for user, last_s in self._last_s.items() if last_s > quiet_s}
        self._look_at = _FEW_USERS + 2 * len(self._last_s)
