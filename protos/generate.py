"""Generate the Python stubs from the contract, or prove that the committed ones are fresh.

The path of a proto file is its package and its Python import path, so that no import needs rewriting.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).parent
GENERATED = PROTOS / "gen"


def generate(target: Path) -> None:
    """Write `*_pb2.py`, `*_pb2_grpc.py` and their type stubs below `target`."""
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "turnpike").rglob("*.proto"))
    plugins = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            f"-I{_google_protos()}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ],
        cwd=PROTOS,
        check=True,
    )
    for package in sorted({path.parent for path in (target / "turnpike").rglob("*_pb2.py")}):
        (package / "py.typed").touch()


def describe(target: Path) -> None:
    """Write the contract with its comments and imports as one descriptor set, the form in which buf reads it.

    buf would resolve google/rpc from its own registry; this way it needs no network.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "turnpike").rglob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            f"-I{_google_protos()}",
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={target.resolve()}",
            *sources,
        ],
        cwd=PROTOS,
        check=True,
    )


def _google_protos() -> Path:
    """Folder that holds google/rpc/*.proto, from googleapis-common-protos."""
    import google.rpc

    return Path(next(iter(google.rpc.__path__))).parent.parent


def differences(fresh: Path, committed: Path) -> list[str]:
    """Name every file that differs between the two trees, or is in one of them only."""

    def files(root: Path) -> set[str]:
        paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(root)) for path in paths}

    names = files(fresh) | files(committed)
    return sorted(
        name
        for name in names
        if not (fresh / name).is_file()
        or not (committed / name).is_file()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


def main() -> int:
    """Generate, or with --check compare; 1 when the committed stubs are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--describe", type=Path, metavar="FILE", help="write a descriptor set instead")
    arguments = parser.parse_args()
    if arguments.describe:
        describe(arguments.describe)
        return 0
    if not arguments.check:
        generate(GENERATED)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = differences(Path(scratch), GENERATED)
    if stale:
        print("these stubs are not what the protos give; run `make protos`:", *stale, sep="\n  ", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
