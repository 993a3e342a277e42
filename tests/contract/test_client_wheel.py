"""The distribution `turnpike-client` stands alone: its code, the stubs, what it declares, nothing of the services."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CLIENTS = REPOSITORY / "clients"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=CLIENTS,
        check=True,
        capture_output=True,
    )
    [built] = target.glob("turnpike_client-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and links to the distributions that it declares, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    [info] = target.glob("*.dist-info")
    for distribution in _closure(_requirements(metadata.PathDistribution(info))):
        for file in distribution.files or []:
            top = file.parts[0]
            source = Path(str(distribution.locate_file(top)))
            if top not in {"..", "__pycache__"} and source.exists():
                _link(source, target / top)
    return target


def _link(source: Path, target: Path) -> None:
    """Link `source`; a folder that two distributions share, such as `google`, is made and its contents are linked."""
    if target.is_symlink() and target.resolve() != source.resolve():
        raise AssertionError(f"two distributions bring {target.name}")
    if source.is_dir() and not (source / "__init__.py").exists() and not source.name.endswith(".dist-info"):
        target.mkdir(exist_ok=True)
        for entry in source.iterdir():
            if not (target / entry.name).exists():
                _link(entry, target / entry.name)
    elif not target.exists():
        target.symlink_to(source)


def _requirements(distribution: metadata.Distribution) -> set[str]:
    """Names of what a distribution needs here, extras left out."""
    wanted = [line for line in distribution.requires or [] if "extra ==" not in line]
    return {re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in wanted}


def _closure(names: set[str]) -> list[metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found[name] = distribution
        waiting |= _requirements(distribution) - found.keys()
    return list(found.values())


def run_alone(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a Python that knows its standard library and `site`, and nothing else."""
    prelude = f"import sys; sys.path.append({str(site)!r}); "
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "COV_"))}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", prelude + code],
        cwd=site,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_the_package_the_stubs_and_their_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    stubs = {str(path.relative_to(REPOSITORY / "protos" / "gen")) for path in _files(REPOSITORY / "protos" / "gen")}
    package = {str(path.relative_to(CLIENTS)) for path in _files(CLIENTS / "turnpike_client")}

    assert {"turnpike_client/py.typed", "turnpike/router/v1/py.typed", "turnpike/usage/v1/py.typed"} <= names
    assert stubs | package == {name for name in names if ".dist-info/" not in name}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_the_command_is_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [entry_points] = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(entry_points).decode())

    assert dict(parser["console_scripts"]) == {"turnpike": "turnpike_client.cli:main"}


def test_the_wheel_works_with_what_it_declares_and_nothing_else(site: Path) -> None:
    result = run_alone(
        site,
        "import turnpike_client, turnpike_client.testing, turnpike_client.cli;"
        "from turnpike.router.v1 import router_service_pb2_grpc;"
        "print(turnpike_client.__file__)",
    )

    assert result.stderr == ""
    assert result.stdout.strip() == str(site / "turnpike_client" / "__init__.py")


@pytest.mark.parametrize("module", ["router_service", "usage_service", "service_runtime", "asyncpg", "httpx"])
def test_nothing_of_the_services_comes_along(site: Path, module: str) -> None:
    result = run_alone(site, f"import {module}")

    assert f"No module named '{module}'" in result.stderr


def test_the_command_runs_alone_and_says_in_one_line_that_there_is_no_server(site: Path) -> None:
    arguments = ["turnpike", "--router", "127.0.0.1:1", "chat", "--tenant", "t", "Hi"]

    result = run_alone(site, f"sys.argv = {arguments!r}; from turnpike_client.cli import main; main()")

    assert result.returncode == 3
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("turnpike: no server at 127.0.0.1:1; ")


def test_an_editable_install_reads_the_stubs_from_the_working_tree(tmp_path: Path) -> None:
    """A copy in site-packages would hide every later change of the contract."""
    code = "from hatchling.build import build_editable; import sys; print(build_editable(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=CLIENTS, check=True, capture_output=True)
    [built] = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(built)

    assert not [name for name in archive.namelist() if name.startswith("turnpike/")]
    assert str(REPOSITORY / "protos" / "gen") in archive.read("_turnpike_client.pth").decode().splitlines()
