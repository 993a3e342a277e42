"""Proves that a run notices: `python -m tests.chaos.sabotage [PROMISE ...]` breaks promises; each must be found out.

Ends with 0 only when every run found in the books the damage that belongs to the promise. A run that fails in another
way proves nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import plan, report, supervisor
from tests.chaos.checker import Kind
from tests.chaos.processes import ChaosFailed
from tests.chaos.supervisor import Shape


@dataclass(frozen=True, slots=True)
class Promise:
    """What breaking it does to the books, and the faults that bring it to light."""

    damage: frozenset[Kind]
    kinds: Mapping[str, plan.Kind]


PROMISES: Mapping[str, Promise] = {
    # A sequence that was given away unsynced is given away again.
    "skip_sync": Promise(frozenset({Kind.LOST, Kind.DUPLICATED}), plan.DYING_ROUTERS),
    "acknowledge_before_commit": Promise(frozenset({Kind.LOST}), plan.DYING_LEDGER),
    "no_dedupe": Promise(frozenset({Kind.DUPLICATED}), plan.LATE_ANSWERS),
    "remove_before_acknowledgement": Promise(frozenset({Kind.LOST}), plan.DYING_LEDGER),
}
_SEED = 1
# A storm may miss the moment, on a loaded machine above all; the next one hardly does too.
_TRIES = 3


def main(promises: Sequence[str]) -> int:
    """Break each promise in a run of its own."""
    if unknown := set(promises) - PROMISES.keys():
        print(f"no such promise: {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}", file=sys.stderr)
        return 64
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    missed = [promise for promise in promises or PROMISES if not _is_found_out(promise)]
    print(f"found out: {len(promises or PROMISES) - len(missed)} of {len(promises or PROMISES)}")
    return 1 if missed else 0


def shape_of(promise: str, seed: int, *, storms: int = 1) -> Shape:
    """A run with one promise broken, under faults that bring it to light."""
    return Shape(
        seed,
        storms,
        storm_s=7.0,
        mean_gap_s=0.5,
        kinds=PROMISES[promise].kinds,
        sabotage=promise,
        think_s=0.1,  # the more there is to lose, the sooner something is
    )


def _is_found_out(promise: str) -> bool:
    for seed in range(_SEED, _SEED + _TRIES):
        directory = Path(tempfile.mkdtemp(prefix="turnpike-chaos-"))
        directory.chmod(0o755)  # the embedded Postgres may run as another user
        shape = shape_of(promise, seed)
        try:
            outcome = asyncio.run(supervisor.run(shape, directory))
        except ChaosFailed as error:
            print(f"{promise}, seed {seed}: {error}", file=sys.stderr)
            continue
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        lost, duplicated, wrong = report.numbers(outcome)
        is_found_out = any(finding.kind in PROMISES[promise].damage for finding in outcome.findings)
        verdict = "RED, as it must be" if is_found_out else "not noticed"
        print(
            f"{promise}, seed {seed}: {len(outcome.calls)} requests in {outcome.took_s:.0f} s, "
            f"lost {lost}, duplicated {duplicated}, wrong {wrong}: {verdict}",
            flush=True,
        )
        if is_found_out:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
