"""A full disk takes nothing until it is healed, and is not left behind: both ways, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from tests.chaos.disk import FileSizeLimit, small_disk

directory = Path(sys.argv[1])
disk = {"best": small_disk, "limit": FileSizeLimit}[sys.argv[2]](directory)
file = (directory / "journal").open("ab", buffering=0)


def grow():
    try:
        return file.write(b"x" * 8192) == 8192
    except OSError:
        return False


print(grow())
disk.fill(os.getpid())
print(grow())
disk.heal(os.getpid())
print(grow())
file.close()
disk.close()
disk.close()
print(os.path.ismount(directory), os.path.getsize(directory / "journal") >= 16384)
"""


@pytest.mark.parametrize("which", ["best", "limit"])
def test_a_full_disk_takes_nothing_until_it_is_healed_and_leaves_a_plain_directory(which: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), which], capture_output=True, text=True, check=True, timeout=60
    )

    assert run.stdout.split() == ["True", "False", "True", "False", "True"]
