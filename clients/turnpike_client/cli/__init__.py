"""The command `turnpike`: parses, calls the client, prints. It decides nothing of its own.

Exit codes: 0 done, 1 a service refused or failed, 2 wrong usage, 3 no server, 130 interrupted.
"""

from __future__ import annotations

import os
import sys

# gRPC's own log lines would stand between ours. It reads this when it first starts, so it must be set this early.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from turnpike_client.cli.program import program

__all__ = ["main", "program"]


def main() -> None:
    """Entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets a question mark, not a crash in the middle of an answer.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    program(prog_name="turnpike")
