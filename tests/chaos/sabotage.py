"""Proves that a run notices: `python -m tests.chaos.sabotage [PROMISE ...]` breaks promises, and each must be found out.

Ends with 0 only when every run found something lost, duplicated or wrong in the books. A run that fails in another way
proves nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import plan, report, supervisor
from tests.chaos.processes import ChaosFailed
from tests.chaos.supervisor import Shape

PROMISES = ("skip_sync", "acknowledge_before_commit", "no_dedupe", "remove_before_acknowledgement")
_SEED = 1
# A storm may miss the moment, on a loaded machine above all; the next one hardly does too.
_TRIES = 3


def main(promises: Sequence[str]) -> int:
    """Break each promise in a run of its own."""
    if unknown := set(promises) - set(PROMISES):
        print(f"no such promise: {', '.join(sorted(unknown))}; there are {', '.join(PROMISES)}", file=sys.stderr)
        return 64
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    missed = [promise for promise in promises or PROMISES if not _is_found_out(promise)]
    print(f"found out: {len(promises or PROMISES) - len(missed)} of {len(promises or PROMISES)}")
    return 1 if missed else 0


def _is_found_out(promise: str) -> bool:
    for seed in range(_SEED, _SEED + _TRIES):
        directory = Path(tempfile.mkdtemp(prefix="turnpike-chaos-"))
        directory.chmod(0o755)  # the embedded Postgres may run as another user
        shape = Shape(seed, storms=1, storm_s=9.0, mean_gap_s=0.6, kinds=plan.REVEALING_KINDS, sabotage=promise)
        try:
            outcome = asyncio.run(supervisor.run(shape, directory))
        except ChaosFailed as error:
            print(f"{promise}, seed {seed}: {error}", file=sys.stderr)
            continue
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        lost, duplicated, wrong = report.numbers(outcome)
        verdict = "RED, as it must be" if outcome.findings else "not noticed"
        print(
            f"{promise}, seed {seed}: {len(outcome.calls)} requests in {outcome.took_s:.0f} s, "
            f"lost {lost}, duplicated {duplicated}, wrong {wrong}: {verdict}",
            flush=True,
        )
        if outcome.findings:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
