"""Fuzz what reads a provider's bytes, for a bounded time, and print the executions.

    python -m tests.fuzz [--seconds 60] [--target sse|chat|error]

Needs atheris; `make fuzz` has it in an environment of its own. Each target runs in a process of its own, because the
fuzzer never returns. The exit code is 1 when any input broke a promise; that input is kept and its path printed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET_NAMES = ("sse", "chat", "error")
FINDINGS = Path("fuzz-findings")


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the decoders.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target; default: %(default)s")
    parser.add_argument("--target", choices=TARGET_NAMES, help="only this one")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _fuzz(options.target, options.seconds)
    results = [_run(name, options.seconds) for name in ([options.target] if options.target else TARGET_NAMES)]
    return 0 if all(results) else 1


def _run(name: str, seconds: int) -> bool:
    """Run one target; whether it held."""
    FINDINGS.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz", "--inside", "--target", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    executions = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    coverage = re.findall(r"\bcov: (\d+)", done.stderr)
    if executions is None:
        print(f"{name}: the fuzzer did not run\n{done.stderr[-4000:]}")
        return False
    state = "held" if done.returncode == 0 else "BROKEN"
    print(f"{name}: {state}; {int(executions[1]):,} executions, {coverage[-1] if coverage else '?'} edges, {seconds} s")
    if done.returncode != 0:
        print(done.stderr[-4000:])
    return done.returncode == 0


def _fuzz(name: str, seconds: int) -> None:
    import atheris  # only here: the process above needs none

    from tests.fuzz.targets import TARGETS, seeds

    with tempfile.TemporaryDirectory() as directory:
        for number, seed in enumerate(seeds(name)):
            (Path(directory) / f"seed-{number}").write_bytes(seed)
        arguments = [
            f"-max_total_time={seconds}",
            "-print_final_stats=1",
            "-max_len=4096",
            "-timeout=10",
            "-rss_limit_mb=1024",
            f"-artifact_prefix={FINDINGS}/{name}-",
            directory,
        ]
        atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
