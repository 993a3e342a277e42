"""The tenants on disk: sealed keys only, bounded, and gone when they are too old."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from router_service.domain.candidate import Exclusion
from router_service.domain.catalog import ProviderNames
from router_service.domain.secret import Secret
from router_service.domain.selection import credential_for
from router_service.domain.tenant import Credential, Tenant
from router_service.domain.usage import Funding
from router_service.tenants.metrics import TenantMetrics
from router_service.tenants.rows import RowReader, TenantRow
from router_service.tenants.sealed_keys import KeyRing
from router_service.tenants.snapshot import FILE_NAME, SnapshottedTenants, TenantSnapshot
from service_runtime.errors import Category, ServiceError
from tests.support.catalogs import provider_spec

ACME, GLOBEX, INITECH = UUID(int=1), UUID(int=2), UUID(int=3)
KEY = "sk-canary-0123456789abcdef"
NOW = datetime(2026, 11, 24, tzinfo=UTC)
AWAY = ServiceError(Category.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")
BROKEN = ServiceError(Category.FAILED_PRECONDITION, "TENANT_CONFIG_INVALID", "broken")
RING = KeyRing({"k1": bytes(32)}, active="k1")


class Clock:
    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Stored:
    """Postgres as the tests want it: a tenant, nothing, or an error."""

    def __init__(self) -> None:
        self.answer: Tenant | ServiceError | None = AWAY

    async def tenant(self, tenant_id: UUID) -> Tenant | None:
        if isinstance(self.answer, ServiceError):
            raise self.answer
        return self.answer

    async def versions(self, tenant_ids: list[UUID]) -> dict[UUID, int]:
        return dict.fromkeys(tenant_ids, 3)


@pytest.fixture
def reader() -> RowReader:
    return RowReader(
        ProviderNames({name: provider_spec(name) for name in ("groq", "openrouter", "llm7")}),
        RING,
        accepts_plaintext=True,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


def snapshot(directory: Path, clock: Clock, **options: Any) -> TenantSnapshot:
    return TenantSnapshot(directory / FILE_NAME, **{"max_entries": 10, "max_age_s": 3600.0, "now_s": clock, **options})


def row(tenant_id: UUID = ACME, *, version: int = 3, **tokens: object) -> TenantRow:
    sealed = RING.seal(Secret(KEY), tenant_id=tenant_id, provider="groq").to_json(NOW.isoformat())
    config = {"preferred_provider": "groq", "note_to_self": KEY}
    return TenantRow(tenant_id, "Acme", json.dumps({"groq": sealed, **tokens}), json.dumps(config), version, NOW, NOW)


async def written(directory: Path, clock: Clock, reader: RowReader, *rows: TenantRow, **options: Any) -> TenantSnapshot:
    kept = snapshot(directory, clock, **options)
    for each in rows:
        kept.keep(each, reader.read(each))
    await kept.save()
    loaded = snapshot(directory, clock, **options)
    loaded.load()
    return loaded


async def test_what_was_read_is_there_for_the_next_start(tmp_path: Path, clock: Clock, reader: RowReader) -> None:
    loaded = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX))
    clock.now_s += 60

    found = loaded.find(ACME)

    assert found is not None
    kept, age_s = found
    assert age_s == 60
    tenant = reader.read(kept).tenant
    assert (tenant.version, tenant.config.preferred_provider) == (3, "groq")
    assert tenant.credentials["groq"].secret.reveal() == KEY
    assert loaded.find(INITECH) is None


async def test_a_worker_knows_the_tenants_of_all_and_writes_its_own_file_alone(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    files = [tmp_path / str(number) / FILE_NAME for number in range(3)]
    for file in files:
        file.parent.mkdir()
    await written(tmp_path / "0", clock, reader, row(ACME, version=4), row(GLOBEX, version=2))
    await written(tmp_path / "1", clock, reader, row(ACME, version=3), row(INITECH))
    await written(tmp_path / "2", clock, reader, row(GLOBEX, version=5))
    before = [file.read_bytes() for file in files]

    loaded = snapshot(tmp_path / "1", clock)
    loaded.load(files[0], files[2], tmp_path / "never written")
    loaded.keep(row(ACME, version=6), reader.read(row(ACME, version=6)))
    await loaded.save()

    found = {tenant_id: loaded.find(tenant_id) for tenant_id in (ACME, GLOBEX, INITECH)}
    assert {tenant_id: kept[0].version for tenant_id, kept in found.items() if kept} == {ACME: 6, GLOBEX: 5, INITECH: 3}
    assert [file.read_bytes() == old for file, old in zip(files, before, strict=True)] == [True, False, True]


async def test_a_row_that_was_sealed_with_a_key_that_was_dropped_pays_with_nobody_elses_until_it_is_read_anew(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    names = ProviderNames({"groq": provider_spec("groq")})
    dropped = RowReader(names, KeyRing({"k2": bytes(range(32))}, active="k2"), accepts_plaintext=True)
    kept = await written(tmp_path, clock, reader, row())
    stored = SnapshottedTenants(
        Stored(), kept, dropped, TenantMetrics(CollectorRegistry()), on_secret=lambda _secret: None
    )

    tenant = await stored.tenant(ACME)

    assert tenant is not None
    assert tenant.credentials == {}
    assert "'k1', which is not in TURNPIKE_KEY_ENCRYPTION_KEYS" in tenant.unusable_credentials["groq"]
    out = credential_for(provider_spec("groq"), tenant, {"groq": Credential(Funding.SYSTEM_KEY, "fp", Secret(KEY))})
    assert isinstance(out, Exclusion)


async def test_k1_no_key_in_clear_reaches_the_disk_wherever_somebody_wrote_it(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    mistyped = row(openrouter=f"{KEY}\n{KEY}", llm7={"key": "short", "note": KEY})

    loaded = await written(tmp_path, clock, reader, mistyped)

    assert loaded.find(ACME) is not None
    assert KEY not in (tmp_path / FILE_NAME).read_text()
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [FILE_NAME]  # noqa: PTH208 - nothing else is left there


async def test_a_row_whose_key_could_not_be_sealed_is_not_kept(tmp_path: Path, clock: Clock, reader: RowReader) -> None:
    assert len(await written(tmp_path, clock, reader, row(openrouter=KEY))) == 0


async def test_rows_beyond_the_bounds_are_left_out_the_longest_unread_first(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    by_count = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX), row(INITECH), max_entries=2)
    assert [by_count.find(tenant_id) is not None for tenant_id in (ACME, GLOBEX, INITECH)] == [False, True, True]

    by_size = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX), row(INITECH), max_bytes=900)
    assert by_size.find(INITECH) is not None
    assert by_size.find(ACME) is None
    assert (tmp_path / FILE_NAME).stat().st_size < 1_000


async def test_a_row_that_postgres_has_not_confirmed_for_too_long_is_served_no_more(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    loaded = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX))
    clock.now_s += 3000
    loaded.confirm({ACME: 3}, [ACME])
    clock.now_s += 3000

    assert loaded.find(ACME) is not None
    assert loaded.find(GLOBEX) is None
    await loaded.save()
    again = snapshot(tmp_path, clock)
    again.load()
    assert len(again) == 1


@pytest.mark.parametrize("seen", ["at the start", "while it runs", "by Postgres"])
async def test_a_clock_that_is_put_back_makes_no_row_younger_than_one_of_now(
    tmp_path: Path, clock: Clock, reader: RowReader, seen: str
) -> None:
    kept = await written(tmp_path, clock, reader, row())
    clock.now_s -= 100_000
    if seen == "at the start":
        kept = snapshot(tmp_path, clock)
        kept.load()
    elif seen == "by Postgres":
        kept.confirm({ACME: 3}, [ACME])
    else:
        kept.find(ACME)

    clock.now_s += 3500
    found = kept.find(ACME)
    assert found is not None
    assert found[1] == 3500
    clock.now_s += 200
    assert kept.find(ACME) is None


async def test_a_tenant_that_changed_or_went_is_forgotten(tmp_path: Path, clock: Clock, reader: RowReader) -> None:
    loaded = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX), row(INITECH))

    loaded.confirm({ACME: 4, INITECH: 3}, [ACME, GLOBEX, INITECH])

    assert [loaded.find(tenant_id) is not None for tenant_id in (ACME, GLOBEX, INITECH)] == [False, False, True]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "future", "foreign"])
async def test_a_file_that_cannot_be_trusted_is_left_alone(
    tmp_path: Path, clock: Clock, reader: RowReader, damage: str
) -> None:
    await written(tmp_path, clock, reader, row(ACME))
    file = tmp_path / FILE_NAME
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-20] ^= 1
    file.write_bytes(
        {
            "cut": content[:-5],
            "flipped": bytes(flipped),
            "empty": b"",
            "future": content.replace(b"tenants 1 ", b"tenants 2 ", 1),
            "foreign": b"\x7fELF\n\x00\xff",
        }[damage]
    )

    loaded = snapshot(tmp_path, clock)
    loaded.load()

    assert len(loaded) == 0


async def test_a_directory_that_cannot_be_written_costs_the_snapshot_and_nothing_else(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    kept = snapshot(tmp_path / "missing", clock)
    kept.keep(row(), reader.read(row()))
    await kept.save()
    (tmp_path / "missing").mkdir()
    await kept.save()

    assert (tmp_path / "missing" / FILE_NAME).exists()


async def served(tmp_path: Path, clock: Clock, reader: RowReader, stored: Stored) -> SnapshottedTenants:
    loaded = await written(tmp_path, clock, reader, row(ACME))
    metrics = TenantMetrics(CollectorRegistry())
    return SnapshottedTenants(stored, loaded, reader, metrics, on_secret=lambda _: None)


async def test_s1_while_postgres_is_away_a_known_tenant_is_served_and_an_unknown_one_is_not(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    tenants = await served(tmp_path, clock, reader, Stored())

    tenant = await tenants.tenant(ACME)

    assert tenant is not None
    assert tenant.id == ACME
    with pytest.raises(ServiceError, match="away"):
        await tenants.tenant(GLOBEX)


@pytest.mark.parametrize("answer", [None, BROKEN])
async def test_a_tenant_that_postgres_says_is_gone_or_broken_is_not_served_from_before(
    tmp_path: Path, clock: Clock, reader: RowReader, answer: ServiceError | None
) -> None:
    stored = Stored()
    tenants = await served(tmp_path, clock, reader, stored)
    stored.answer = answer
    if answer is None:
        assert await tenants.tenant(ACME) is None
    else:
        with pytest.raises(ServiceError, match="broken"):
            await tenants.tenant(ACME)

    stored.answer = AWAY
    with pytest.raises(ServiceError, match="away"):
        await tenants.tenant(ACME)


async def test_reading_rows_that_have_not_changed_writes_nothing_but_now_and_then_that_they_were_confirmed(
    tmp_path: Path, clock: Clock, reader: RowReader
) -> None:
    loaded = await written(tmp_path, clock, reader, row(ACME), row(GLOBEX))
    writes, file = [], tmp_path / FILE_NAME
    same = {tenant_id: found[0] for tenant_id in (ACME, GLOBEX) if (found := loaded.find(tenant_id))}

    for minute in range(10):  # the age is an hour here, and a confirmation is worth writing after 150 s
        before = file.stat().st_ino
        clock.now_s += 60
        for again in same.values():
            loaded.keep(again, reader.read(again))
        await loaded.save()
        if file.stat().st_ino != before:
            writes.append(minute)

    assert writes == [2, 5, 8]
    loaded.keep(row(ACME, version=4), reader.read(row(ACME, version=4)))
    before = file.stat().st_ino
    await loaded.save()
    assert file.stat().st_ino != before
