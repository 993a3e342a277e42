"""A disk that can be full: a small file system of its own where that may be mounted, else a limit on the file size."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
from pathlib import Path
from typing import Protocol

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_MNT_DETACH = 2
_SIZE_MIB = 48


class Disk(Protocol):
    """Where one router keeps its journal."""

    how: str

    def fill(self, pid: int) -> None:
        """Leave the router `pid` no room."""

    def heal(self, pid: int) -> None:
        """Give the room back."""

    def close(self) -> None:
        """Leave the directory as any other, with the journal in it, once no router runs."""


class SmallFileSystem:
    """A tmpfs, filled by a file. It lives in a mount namespace of this process and its children, and ends with them;
    until then nobody here could remove the directory that it is mounted on.
    """

    how = f"a tmpfs of {_SIZE_MIB} MiB, filled to its last byte"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        _mount("tmpfs", directory, "tmpfs", 0, f"size={_SIZE_MIB}m,mode=0700")
        self._directory = directory
        self._is_mounted = True
        self._ballast = directory / "ballast"

    def fill(self, pid: int) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            for piece in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * piece)
                except OSError:
                    continue

    def heal(self, pid: int) -> None:
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        if not self._is_mounted:
            return
        self._is_mounted = False
        kept = self._directory.with_name(f"{self._directory.name}.kept")
        try:
            self._ballast.unlink(missing_ok=True)
            shutil.copytree(self._directory, kept)
        finally:
            _unmount(self._directory)
        self._directory.rmdir()
        kept.rename(self._directory)


class FileSizeLimit:
    """RLIMIT_FSIZE of the running router, set to what its journal has: no file of it may grow (EFBIG, not ENOSPC)."""

    how = "RLIMIT_FSIZE, because no file system may be mounted here"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fill(self, pid: int) -> None:
        largest = max((file.stat().st_size for file in self._directory.rglob("*") if file.is_file()), default=0)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, hard))

    def heal(self, pid: int) -> None:
        try:
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        except ProcessLookupError:
            return  # it was killed meanwhile; the next one has no limit

    def close(self) -> None:
        """Nothing is left of it."""


def small_disk(directory: Path) -> Disk:
    """The best of the two that this machine and user allow. Call it before anything is started."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
            return FileSizeLimit(directory)
        _mount("none", Path("/"), "", _MS_REC_PRIVATE, "")
        return SmallFileSystem(directory)
    except OSError:
        return FileSizeLimit(directory)


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), bytes(target), kind.encode() or None, flags, options.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"cannot mount on {target}")


def _unmount(target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(bytes(target), _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), f"cannot unmount {target}")
