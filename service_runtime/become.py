"""Turns the process that runs it into another program: under another user, and dying with its parent.

    python -I -S become.py [--parent-dies SIGNAL PARENT_PID] [--namespace UID | --user UID GID] -- COMMAND...

A program of its own rather than code between fork and exec: that is not safe once a process has threads, and gRPC has.
It imports almost nothing, so that it takes some milliseconds only.
"""

from __future__ import annotations

import ctypes  # here and not where it is used: another user may not be able to read our Python
import os
import signal
import sys
from collections.abc import Sequence

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_EXIT_REFUSED = 125


def command_line(
    command: Sequence[str], *, identity: Sequence[str] = (), parent_dies: signal.Signals | None = None
) -> list[str]:
    """The command that runs `command` under `identity`, an option of this program.

    With `parent_dies` the kernel sends that signal to it when the *thread* that started it ends, however it ends.
    Linux only; elsewhere an orphan is stopped by whoever starts next.
    """
    bound = ["--parent-dies", str(int(parent_dies)), str(os.getpid())] if parent_dies is not None else []
    return [sys.executable, "-I", "-S", __file__, *bound, *identity, "--", *command]


def main(arguments: list[str]) -> None:
    """Become what the arguments say. Returns only by raising."""
    split = arguments.index("--")
    options, command = arguments[:split], arguments[split + 1 :]
    if "--namespace" in options:
        _enter_namespace(options[options.index("--namespace") + 1])
    if "--user" in options:
        at = options.index("--user")
        os.setgroups([])
        os.setgid(int(options[at + 2]))
        os.setuid(int(options[at + 1]))
    if "--parent-dies" in options:
        # After the change of identity, which clears it.
        at = options.index("--parent-dies")
        _signal_when_parent_dies(int(options[at + 1]), int(options[at + 2]))
    os.execv(command[0], command)  # noqa: S606 - that is its job


def _enter_namespace(uid: str) -> None:
    """Let this process's user be `uid` inside a user namespace of its own."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespace")
    maps = (("setgroups", "deny"), ("uid_map", f"{uid} {outer_uid} 1"), ("gid_map", f"{uid} {outer_gid} 1"))
    for name, content in maps:
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, content.encode())
        os.close(descriptor)


def _signal_when_parent_dies(number: int, parent_pid: int) -> None:
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the kernel knew whom to tell
        sys.exit(_EXIT_REFUSED)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        print(f"become: {error}", file=sys.stderr)  # noqa: T201 - read by whoever started it
        sys.exit(_EXIT_REFUSED)
