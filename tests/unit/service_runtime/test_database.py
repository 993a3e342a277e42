from pathlib import Path

import pytest

from service_runtime.database import ServiceDatabase
from service_runtime.startup import StartupError


def database(dsn: str) -> ServiceDatabase:
    return ServiceDatabase(dsn, service="any", migrations=Path(), role="any", setting="TURNPIKE_DATABASE_URL")


@pytest.mark.parametrize(
    "dsn",
    ["mysql://u:sk-canary@h/x", "postgresql://u:sk-canary@h:port/x", "postgresql://u:sk-canary@h:99999/x", "sk-canary"],
)
def test_an_address_that_cannot_be_one_is_refused_at_once_and_not_quoted(dsn: str) -> None:
    with pytest.raises(StartupError, match="write TURNPIKE_DATABASE_URL like postgresql://") as refused:
        database(dsn)

    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgres://u@h/x",
        "postgresql://u:p@h:5432/x",
        "postgresql://u@h1:5432,h2:5433/x",
        "postgresql://postgres@/x?host=/run/postgres&port=5432",
        "postgresql://[::1]:5432/x",
    ],
)
def test_every_kind_of_address_that_postgres_knows_is_taken(dsn: str) -> None:
    assert not database(dsn).is_open
