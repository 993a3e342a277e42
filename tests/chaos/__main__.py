"""`python -m tests.chaos --seed N --minutes M [--sabotage NAME]`: one run, its score card, its verdict as exit code."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos import report, supervisor
from tests.chaos.processes import ChaosFailed
from tests.chaos.sabotage import PROMISES, shape_of
from tests.chaos.supervisor import Shape

_STORM_AND_CALM_S = 30.0
_SETUP_S = 15.0


def main() -> int:
    """Run once. 0: right; 1: something was lost, duplicated, wrong or did not recover; 3: killed by others."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="faults by a seed on real processes")
    parser.add_argument("--seed", type=int, default=1, help="decides on every fault (default 1)")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long (default 2)")
    parser.add_argument("--sabotage", choices=PROMISES, help="break a promise on purpose; the run must go red")
    parser.add_argument("--keep", action="store_true", help="keep histories, logs and data, and say where")
    arguments = parser.parse_args()
    storms = max(1, round((arguments.minutes * 60 - _SETUP_S) / _STORM_AND_CALM_S))
    shape = Shape(arguments.seed, storms)
    if arguments.sabotage:
        shape = shape_of(arguments.sabotage, arguments.seed, storms=storms)
    print(f"seed {shape.seed}, {storms} storms", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    directory = Path(tempfile.mkdtemp(prefix="turnpike-chaos-"))
    directory.chmod(0o755)  # the embedded Postgres may run as another user
    code = report.EXIT_WRONG
    try:
        outcome = asyncio.run(supervisor.run(shape, directory))
    except ChaosFailed as error:
        print(f"seed {shape.seed}: {error}", file=sys.stderr)
    else:
        print("\n".join(report.lines(outcome)))
        code = report.exit_code(outcome)
    finally:
        if arguments.keep or (code != report.EXIT_RIGHT and not arguments.sabotage):
            print(f"everything that was written is in {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
