"""The database of a run: `python -m tests.chaos.postgres DIRECTORY` keeps an embedded Postgres until SIGTERM.

A process of its own, so that the postmaster can be stopped, frozen and killed: its keeper then ends, and the next one
starts on the same data. It says READY=1 to NOTIFY_SOCKET.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from service_runtime.embedded_postgres import EmbeddedPostgres

_POLL_S = 0.02


def main(directory: Path) -> int:
    """Keep the server until it dies or SIGTERM comes."""
    stop = False

    def on_stop(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, on_stop)
    with EmbeddedPostgres(directory) as postgres:
        (directory / "dsn").write_text(postgres.dsn)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
            supervisor.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
        while not stop:
            if not postgres.is_alive():
                return 3
            time.sleep(_POLL_S)
    return 0


def socket_of(directory: Path) -> str:
    """The path of the server's socket, as its address names it."""
    dsn = (directory / "dsn").read_text()
    host = dsn.partition("host=")[2].partition("&")[0]
    port = dsn.partition("port=")[2]
    return f"{host.replace('%2F', '/')}/.s.PGSQL.{port}"


def postmaster_of(directory: Path) -> int:
    """The process id of the server."""
    return int((directory / "cluster" / "postmaster.pid").read_text().splitlines()[0])


def backends_of(postmaster: int) -> list[int]:
    """The server's children that serve a client; its other children do its housework."""
    found = []
    for tasks in Path(f"/proc/{postmaster}/task").glob("*/children"):
        for child in tasks.read_text().split():
            try:
                title = Path(f"/proc/{child}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
            except OSError:
                continue
            if title.startswith("postgres: postgres turnpike"):
                found.append(int(child))
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
