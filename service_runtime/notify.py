"""Word to whoever started this process, by systemd's protocol. Knows no event loop and no gRPC."""

from __future__ import annotations

import os
import socket

HINT_FIELD = "X_TURNPIKE_HINT"
WAITING_FIELD = "X_TURNPIKE_WAITING"


def notify_supervisor(message: str) -> OSError | None:
    """Send `message` to the socket that the supervisor named; nothing when there is none.

    Returns what went wrong: a supervisor that has gone away is no reason to stop serving.
    """
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return None
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        try:
            client.sendto(message.encode(), address)
        except OSError as error:
            return error
    return None
