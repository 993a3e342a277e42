"""A child process that says when it is ready, for the launcher. Knows no thread, no event loop and no gRPC."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from service_runtime import become

_MAX_MESSAGE_BYTES = 4096


class Child:
    """One service, run as `python -m <module>`."""

    def __init__(self, module: str, environment: Mapping[str, str], socket_dir: Path, *, name: str = "") -> None:
        """Start it. `socket_dir` is a private directory for the socket that it reports to, which is called `name`."""
        self.module = module
        self.is_ready = False
        self.address = ""
        self.hint = ""
        self.waits_for = ""  # why it is not ready yet, where it says so
        self._path = path = socket_dir / f"{name or module}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._process = subprocess.Popen(  # noqa: S603 - a module of ours
            # Killed, not asked: whoever starts next needs the ports at once, and the services are made to be killed.
            become.command_line([sys.executable, "-m", module], parent_dies=signal.SIGKILL),
            env={**environment, "NOTIFY_SOCKET": str(path)},
            stdin=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for the launcher, which stops the children one after the other.
            start_new_session=True,
        )

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the number of the signal that ended it."""
        return self._process.poll()

    def listen(self, timeout_s: float) -> None:
        """Take in one report, waiting at most `timeout_s` for it."""
        self._socket.settimeout(timeout_s)
        try:
            message = self._socket.recv(_MAX_MESSAGE_BYTES).decode(errors="replace")
        except TimeoutError:
            return
        for line in message.splitlines():
            name, _, value = line.partition("=")
            match name:
                case "READY":
                    self.is_ready = value == "1"
                case "STATUS":
                    self.address = value
                case "X_TURNPIKE_HINT":
                    self.hint = value
                case "X_TURNPIKE_WAITING":
                    self.waits_for = value
                case _:
                    pass  # the protocol has more fields, and says to ignore unknown ones

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self.exit_code is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.exit_code is None:
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Forget the socket. The process must have ended."""
        self._socket.close()
        self._path.unlink(missing_ok=True)
