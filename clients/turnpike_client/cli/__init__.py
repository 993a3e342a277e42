"""The command `turnpike`: parses, calls the client, prints. It decides nothing of its own.

Exit codes: 0 done, 1 a service refused or failed, 2 wrong usage, 3 no server, 130 interrupted.
"""

from __future__ import annotations

import faulthandler
import os
import sys

from turnpike_client.cli.program import program

__all__ = ["main", "program"]


def main() -> None:
    """Entry point of the command."""
    _silence_grpc_core()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter gets a question mark, not a crash in the middle of an answer.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    program(prog_name="turnpike")


def _silence_grpc_core() -> None:
    """Keep the log lines of gRPC's core, which go to descriptor 2, from standing between ours.

    Its own switch, GRPC_VERBOSITY, is read when grpc is imported, before any code of this command; who sets it wants
    the lines. Python's stderr, and a crash report if it comes to that, get a descriptor of their own.
    """
    if "GRPC_VERBOSITY" in os.environ:
        return
    ours = os.dup(2)
    sys.stderr = os.fdopen(ours, "w", buffering=1)
    faulthandler.enable(sys.stderr)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
