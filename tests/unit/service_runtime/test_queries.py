from __future__ import annotations

from pathlib import Path

import pytest

from service_runtime.postgres import load_queries

GOOD = """-- Statements on books.

-- name: get_book
-- One book by its id.
SELECT * FROM books
WHERE id = $1;

-- name: count_books
-- How many there are.
SELECT count(*) FROM books;
"""


def test_each_statement_is_found_by_its_name_and_carries_it(tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text(GOOD)

    queries = load_queries(tmp_path / "queries.sql")

    assert set(queries) == {"get_book", "count_books"}
    assert queries["get_book"].startswith("/* get_book */")
    assert "WHERE id = $1;" in queries["get_book"]
    assert "count(*)" not in queries["get_book"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("SELECT 1;\n", "without a '-- name:' line"),
        ("-- name: a\nSELECT 1;\n", "lacks the comment line"),
        ("-- name: a\n-- Nothing.\n", "'a' is empty"),
        ("-- name: a\n-- A.\nSELECT 1;\n-- name: a\n-- B.\nSELECT 2;\n", "'a' is there already"),
    ],
)
def test_a_malformed_file_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "queries.sql").write_text(text)

    with pytest.raises(ValueError, match=complaint):
        load_queries(tmp_path / "queries.sql")
