"""Faults on purpose: places where a process kills itself, and promises that it breaks.

They prove that nothing is lost at any of the places, and that the tests would notice if something were.

Off, and unable to be switched on, on the production profile. Elsewhere `TURNPIKE_FAULTS` arms them, by commas:

    TURNPIKE_FAULTS=journal_after_opened_sync:3        SIGKILL to itself at the third passing of that point
    TURNPIKE_FAULTS=skip_sync,no_dedupe                two promises broken for as long as the process lives

A crash point that is not armed costs a call of an empty function.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import threading
from enum import StrEnum

import structlog

from service_runtime.startup import StartupError

VARIABLE = "TURNPIKE_FAULTS"

_log = structlog.get_logger(__name__)


class CrashPoint(StrEnum):
    """Where a process can be made to die. `tests/e2e/test_crash_points.py` has a scenario for each."""

    # The router's journal.
    JOURNAL_BEFORE_OPENED_SYNC = "journal_before_opened_sync"  # written, not yet committed
    JOURNAL_AFTER_OPENED_SYNC = "journal_after_opened_sync"  # durable, nobody told
    JOURNAL_BEFORE_SETTLED_SYNC = "journal_before_settled_sync"
    JOURNAL_AFTER_SETTLED_SYNC = "journal_after_settled_sync"
    JOURNAL_BEFORE_REMOVAL_SYNC = "journal_before_removal_sync"  # acknowledged, and still in the journal
    JOURNAL_AFTER_REMOVAL_SYNC = "journal_after_removal_sync"
    JOURNAL_BEFORE_BURIAL_SYNC = "journal_before_burial_sync"  # refused for good, not yet a dead letter
    JOURNAL_AFTER_BURIAL_SYNC = "journal_after_burial_sync"
    JOURNAL_BEFORE_HELD_SYNC = "journal_before_held_sync"  # settled with an estimate, until its provider has counted
    JOURNAL_AFTER_HELD_SYNC = "journal_after_held_sync"
    JOURNAL_BEFORE_RELEASE_SYNC = "journal_before_release_sync"  # moved to the outbox, not yet committed
    JOURNAL_AFTER_RELEASE_SYNC = "journal_after_release_sync"
    JOURNAL_BEFORE_ROTATION = "journal_before_rotation"  # of SQLite's log: its pages go to the main file
    JOURNAL_AFTER_ROTATION = "journal_after_rotation"
    RECOVERY_BEFORE_SYNC = "recovery_before_sync"  # at start: running attempts become events
    RECOVERY_AFTER_SYNC = "recovery_after_sync"
    TAKE_OVER_BEFORE_SET_ASIDE = "take_over_before_set_aside"  # what was saved of a damaged file is in a fresh one
    TAKE_OVER_AFTER_SET_ASIDE = "take_over_after_set_aside"  # the damaged file is away, the fresh one not yet named
    TAKE_OVER_AFTER_RENAME = "take_over_after_rename"
    # An attempt on its way.
    ATTEMPT_BEFORE_CONNECT = "attempt_before_connect"
    ATTEMPT_AFTER_CONNECT = "attempt_after_connect"  # the provider has accepted the request
    ATTEMPT_BEFORE_FIRST_TOKEN = "attempt_before_first_token"  # noqa: S105 - it arrived, and goes no further
    CALLER_AFTER_FIRST_TOKEN = "caller_after_first_token"  # noqa: S105 - written to the caller
    CALLER_BEFORE_FINAL_WRITE = "caller_before_final_write"
    CALLER_AFTER_FINAL_WRITE = "caller_after_final_write"
    # The sender.
    SENDER_BEFORE_SEND = "sender_before_send"
    SENDER_AFTER_SEND = "sender_after_send"  # the batch is out, its answer was not awaited
    SENDER_AFTER_ACKNOWLEDGEMENT = "sender_after_acknowledgement"  # nothing done with it yet
    # usage_service.
    INGEST_BEFORE_INSERT = "ingest_before_insert"
    INGEST_BEFORE_COMMIT = "ingest_before_commit"
    INGEST_AFTER_COMMIT = "ingest_after_commit"
    INGEST_BEFORE_ACKNOWLEDGEMENT = "ingest_before_acknowledgement"


class Sabotage(StrEnum):
    """A promise to break, so that a run which should go red can be seen to."""

    # The journal says "durable" when the record is only in memory, and writes when it is closed. A power cut would
    # show a skipped sync; a kill does not, because the kernel keeps written pages, so nothing is written either.
    SKIP_SYNC = "skip_sync"
    ACKNOWLEDGE_BEFORE_COMMIT = "acknowledge_before_commit"  # usage_service answers, and stores half a second later
    NO_DEDUPE = "no_dedupe"  # usage_service stores a resent event under a new id
    REMOVE_BEFORE_ACKNOWLEDGEMENT = "remove_before_acknowledgement"  # the router forgets events, then sends them


SABOTAGE_DELAY_S = 0.5

_CRASH_POINTS = frozenset(point.value for point in CrashPoint)
_SABOTAGE = frozenset(promise.value for promise in Sabotage)
_PASSING = re.compile(r"([1-9][0-9]{0,8})?")

_counts: dict[CrashPoint, int] = {}
_sabotage: frozenset[Sabotage] = frozenset()
_lock = threading.Lock()


def arm(text: str) -> None:
    """Arm what `text` names, and nothing else; an empty text disarms all.

    Raises StartupError for a name that is none, with the nearest that is one.
    """
    global _counts, _sabotage
    counts: dict[CrashPoint, int] = {}
    sabotage: set[Sabotage] = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = entry.partition(":")
        if name in _SABOTAGE and not number:
            sabotage.add(Sabotage(name))
        elif name in _CRASH_POINTS and _PASSING.fullmatch(number):
            counts[CrashPoint(name)] = int(number or 1)
        else:
            raise StartupError(f"{VARIABLE}: {entry[:100]!r} is no fault; {_remedy(name)}")
    _counts, _sabotage = counts, frozenset(sabotage)
    if counts or sabotage:
        _log.error("faults.armed", crash_points=sorted(counts), sabotage=sorted(sabotage))


def crash_point(point: CrashPoint) -> None:
    """Die here by SIGKILL, as if the machine had lost power, if this passing of `point` is the one that was armed."""
    if _counts:
        _pass(point)


def is_armed(point: CrashPoint) -> bool:
    """Whether the process will die at `point`: for a place that must prepare for it."""
    return point in _counts


def is_sabotaged(promise: Sabotage) -> bool:
    """Whether `promise` is to be broken."""
    return promise in _sabotage


def _pass(point: CrashPoint) -> None:
    with _lock:
        left = _counts.get(point, 0)
        if left != 1:
            _counts[point] = left - 1
            return
    os.write(2, f"faults: killing this process at {point}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _remedy(name: str) -> str:
    known = [*(point.value for point in CrashPoint), *(promise.value for promise in Sabotage)]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
