from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from service_runtime import embedded_postgres, postgres_identity
from service_runtime.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from service_runtime.errors import ServiceError
from service_runtime.postgres import Postgres
from service_runtime.postgres_binaries import PostgresBinaries, find_binaries
from service_runtime.postgres_identity import ServerIdentity, choose_identity
from tests.support.postgres import FAST_SETTINGS, run_apart

# An owner in a process of its own, which says when its server is ready and then does nothing.
OWNER = """
import sys, time
from pathlib import Path
from service_runtime.embedded_postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"}, database="postgres")
server.start()
print("owner" if server.is_owner else "attached", server.process_id, flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a server that was stopped cleanly, to be copied: making them takes the longest."""
    directory = tmp_path_factory.mktemp("cluster") / "pg"
    with EmbeddedPostgres(directory, settings=FAST_SETTINGS):
        pass
    return directory


@pytest.fixture
def data_dir(cluster: Path, tmp_path: Path) -> Path:
    """A data directory with a cluster in it and nobody running."""
    return Path(shutil.copytree(cluster, tmp_path / "pg"))


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir, settings=FAST_SETTINGS, database="postgres")
    yield server
    server.stop()


@pytest.fixture
def owner(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the data directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(data_dir)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def say(process: subprocess.Popen[str]) -> tuple[str, int]:
    """What the owner says when its server is ready: its part, and the server's pid."""
    assert process.stdout is not None
    part, pid = process.stdout.readline().split()
    return part, int(pid)


def ask(dsn: str, query: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return run_apart(fetch())


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fresh_directory_becomes_a_server_that_only_its_owner_can_reach(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", settings=FAST_SETTINGS, database="postgres") as server:
        version = ask(server.dsn, "SHOW server_version")
        address = ask(server.dsn, "SELECT inet_server_addr()")
        order = ask(server.dsn, "SELECT datlocprovider::text FROM pg_database WHERE datname = 'postgres'")
        mode = stat.S_IMODE((tmp_path / "pg" / "run").stat().st_mode)

    assert str(version).split(".")[0].isdigit()
    assert address is None  # no TCP
    assert order == "b"  # builtin: does not depend on the host's C library
    assert mode == 0o700
    assert not server.is_alive()


def test_what_was_written_is_there_after_a_stop_and_a_start(server: EmbeddedPostgres) -> None:
    server.start()
    ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    server.stop()
    server.start()

    assert ask(server.dsn, "SELECT number FROM kept") == 7


def test_a_killed_server_is_noticed_and_started_again_with_what_it_had_committed(server: EmbeddedPostgres) -> None:
    server.start()
    ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")
    ask(server.dsn, "CHECKPOINT")
    first_pid = server.process_id
    assert first_pid is not None

    os.kill(first_pid, signal.SIGKILL)
    wait_until(lambda: not server.is_alive())
    server.start()

    assert server.process_id != first_pid
    assert ask(server.dsn, "SELECT number FROM kept") == 7


def test_a_second_starter_attaches_and_leaves_the_server_to_its_owner(
    server: EmbeddedPostgres, owner: subprocess.Popen[str]
) -> None:
    part, pid = say(owner)

    server.start()
    attached = (server.is_owner, server.process_id)
    server.stop()

    assert part == "owner"
    assert attached == (False, pid)
    assert is_running(pid)


def test_the_server_does_not_outlive_an_owner_that_is_killed(owner: subprocess.Popen[str]) -> None:
    _, pid = say(owner)

    owner.kill()

    wait_until(lambda: not is_running(pid))


def test_whoever_was_attached_takes_over_when_the_owner_is_killed(
    server: EmbeddedPostgres, owner: subprocess.Popen[str]
) -> None:
    _, pid = say(owner)
    server.start()
    ask(server.dsn, "CREATE TABLE kept AS SELECT 7 AS number")

    owner.kill()
    wait_until(lambda: not server.is_alive())
    server.start()

    assert server.is_owner
    assert server.process_id != pid
    assert ask(server.dsn, "SELECT number FROM kept") == 7


def test_a_successor_waits_for_a_server_that_is_still_shutting_down(
    server: EmbeddedPostgres, owner: subprocess.Popen[str]
) -> None:
    say(owner)
    owner.kill()
    owner.wait()

    server.start()  # at once: the orphan has just been told

    assert server.is_owner
    assert ask(server.dsn, "SELECT 1") == 1


def test_of_several_that_start_at_once_one_owns_and_the_others_attach(data_dir: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(data_dir)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(3)
    ]
    try:
        said = [say(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    assert sorted(part for part, _ in said) == ["attached", "attached", "owner"]
    assert len({pid for _, pid in said}) == 1


@pytest.mark.parametrize("pid", ["1", "4194300", str(os.getpid())])
def test_a_stale_pid_file_is_not_believed(server: EmbeddedPostgres, data_dir: Path, pid: str) -> None:
    """The number in it may be free, or that of a process that has nothing to do with us."""
    (data_dir / "cluster" / "postmaster.pid").write_text(f"{pid}\n{data_dir / 'cluster'}\n0\n5432\n\n\n\nready\n")
    (data_dir / "run" / ".s.PGSQL.5432.lock").write_text(f"{pid}\n")

    assert not server.is_alive()
    server.start()

    assert ask(server.dsn, "SELECT 1") == 1


def test_a_cluster_that_was_half_made_is_made_again(tmp_path: Path) -> None:
    half = tmp_path / "pg" / "cluster.new-crashed"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")

    with EmbeddedPostgres(tmp_path / "pg", settings=FAST_SETTINGS, database="postgres") as server:
        assert ask(server.dsn, "SELECT 1") == 1

    assert not half.exists()


def test_a_path_too_long_for_a_socket_is_no_obstacle(cluster: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    shutil.copytree(cluster, deep / "pg")

    with EmbeddedPostgres(deep / "pg", settings=FAST_SETTINGS, database="postgres") as server:
        assert ask(server.dsn, "SELECT 1") == 1
        socket_dir = Path(server.dsn.partition("host=")[2].partition("&")[0])

    assert len(str(socket_dir)) < 60
    shutil.rmtree(socket_dir)


def test_a_server_that_does_not_start_says_why_and_frees_the_directory(data_dir: Path) -> None:
    broken = EmbeddedPostgres(data_dir, settings={**FAST_SETTINGS, "shared_buffers": "nonsense"}, database="postgres")

    with pytest.raises(EmbeddedPostgresError, match=r"does not start: .*shared_buffers.*postgres\.log"):
        broken.start()

    with EmbeddedPostgres(data_dir, settings=FAST_SETTINGS, database="postgres") as server:
        assert ask(server.dsn, "SELECT 1") == 1


def test_a_directory_that_cannot_be_made_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedPostgresError, match="set TURNPIKE_DATA_DIR"):
        EmbeddedPostgres(tmp_path / "file" / "pg").start()


def test_the_server_sees_none_of_our_secrets(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_CANARY")
    server.start()

    assert b"CANARY" not in Path(f"/proc/{server.process_id}/environ").read_bytes()


def test_it_starts_beside_other_threads(server: EmbeddedPostgres) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        server.start()
        assert ask(server.dsn, "SELECT 1") == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


async def test_a_pool_sees_a_crash_as_unavailable_and_works_again_after_the_restart(server: EmbeddedPostgres) -> None:
    server.start()
    postgres = await Postgres.connect(server.dsn, min_size=2, max_size=2)
    assert server.process_id is not None

    os.kill(server.process_id, signal.SIGKILL)
    with pytest.raises(ServiceError, match="the database does not answer"):
        await sleep_for_long(postgres)
    server.start()
    async with postgres.acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1

    await postgres.close()


async def sleep_for_long(postgres: Postgres) -> None:
    """Until the crash is noticed: the backends outlive the postmaster by a moment."""
    while True:
        async with postgres.acquire() as connection:
            await connection.fetchval("SELECT pg_sleep(0.05)")


@pytest.fixture
def without_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that forbids user namespaces."""

    def choose(binaries: PostgresBinaries, data_dir: Path, socket_dir: Path) -> tuple[ServerIdentity, PostgresBinaries]:
        return choose_identity(binaries, data_dir, socket_dir, may_use_namespace=False)

    monkeypatch.setattr(embedded_postgres, "choose_identity", choose)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that any user may reach, which pytest's own is not."""
    directory = Path(f"/tmp/turnpike-test-{os.getpid()}-{threading.get_ident()}")
    directory.mkdir(mode=0o755)
    yield directory
    shutil.rmtree(directory)


if os.geteuid() == 0:

    def test_root_without_namespaces_runs_the_server_as_another_user_also_the_second_time(
        without_namespaces: None, public_dir: Path
    ) -> None:
        data_dir = public_dir / "pg"
        for _ in range(2):
            with EmbeddedPostgres(data_dir, settings=FAST_SETTINGS, database="postgres") as server:
                assert ask(server.dsn, "SELECT 1") == 1
                assert Path(f"/proc/{server.process_id}").stat().st_uid != 0

    def test_binaries_that_the_other_user_cannot_reach_are_copied_once(
        without_namespaces: None, public_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binaries = find_binaries()
        assert binaries is not None
        package = binaries.directory.parents[1]
        closed, copies = public_dir / "closed", public_dir / "copies"
        closed.mkdir(mode=0o700)
        shutil.copytree(package / "pginstall", closed / package.name / "pginstall", symlinks=True)
        shutil.copytree(f"{package}.libs", closed / f"{package.name}.libs", symlinks=True)
        monkeypatch.setenv("PG_BINDIR", str(closed / package.name / "pginstall" / "bin"))
        monkeypatch.setattr(postgres_identity, "_COPIES", copies)

        for _ in range(2):
            with EmbeddedPostgres(public_dir / "pg", settings=FAST_SETTINGS, database="postgres") as server:
                assert ask(server.dsn, "SELECT 1") == 1
                program = Path(f"/proc/{server.process_id}/exe").readlink()

        assert program.is_relative_to(copies)
        assert len(list(copies.iterdir())) == 1

    def test_root_without_namespaces_and_with_a_closed_directory_is_told_what_to_do(
        without_namespaces: None, public_dir: Path
    ) -> None:
        closed = public_dir / "closed"
        closed.mkdir(mode=0o700)

        with pytest.raises(Exception, match="run as an ordinary user"):
            EmbeddedPostgres(closed / "pg", settings=FAST_SETTINGS).start()


def test_the_binaries_are_found_without_importing_the_package_that_carries_them() -> None:
    assert find_binaries() is not None
    assert "embedded_postgres" not in sys.modules


def test_an_installation_named_by_the_operator_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("initdb", "postgres"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 16.9'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PG_BINDIR", str(tmp_path))

    found = find_binaries()

    assert found is not None
    assert (found.directory, found.major) == (tmp_path, 16)
