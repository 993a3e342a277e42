"""The statements of the reports, put together from reports.sql: with the tiles and filters that are asked for.

A statement is prepared once per connection for each shape of question, which is its query, the grains of its tiles, the
columns it filters by and what it tells apart. Only names of ours are put into its text; all values are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

from service_runtime.postgres import load_queries
from usage_service.domain.report import Grouping, UsageFilter
from usage_service.domain.usage_event import Funding
from usage_service.domain.window import Grain, Tile

_QUERIES = load_queries(Path(__file__).with_name("reports.sql"))
# A branch for each tile is the fastest: nothing but an index scan with its bounds. Hardly any report has more tiles
# than the five of a window; hundreds would take longer to plan than to read.
_MOST_BRANCHES = 8


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement and the values of its parameters, $1 first."""

    text: str
    arguments: Sequence[object]


class _Shape(NamedTuple):
    """What a statement's text depends on."""

    query: str
    own: int  # parameters that the query has by itself
    columns: tuple[str, ...]  # that are filtered by
    grains: tuple[Grain, ...]  # of each branch
    is_tile: bool  # whether a branch is one tile, or all of its grain
    grouping: Grouping


def plain(query: str, *arguments: object) -> Statement:
    """A query that is as it stands in reports.sql."""
    return Statement(_QUERIES[query], arguments)


def on_tiles(
    query: str, *own: object, tiles: Sequence[Tile], only: UsageFilter, grouping: Grouping = Grouping.MODEL
) -> Statement:
    """A query on the buckets of `tiles`, of which there is at least one; `own` are its own parameters, $1 first."""
    conditions = _conditions(only)
    is_tile = len(tiles) <= _MOST_BRANCHES
    grains, bounds = _tile_branches(tiles) if is_tile else _grain_branches(tiles)
    text = _text(_Shape(query, len(own), tuple(conditions), grains, is_tile, grouping))
    return Statement(text, (*own, *conditions.values(), *bounds))


def _conditions(only: UsageFilter) -> dict[str, object]:
    """The value of each column that is filtered by."""
    found: dict[str, object] = {}
    if only.provider:
        found["provider"] = only.provider
    if only.model:
        found["model_name"] = only.model
    if only.absorbed is not None:
        found["absorbed"] = only.absorbed
    if only.funding is not Funding.NO_KEY:
        found["funding"] = only.funding
    return found


def _tile_branches(tiles: Sequence[Tile]) -> tuple[tuple[Grain, ...], Sequence[object]]:
    """The grain of each tile, and start and end of one after the other."""
    return tuple(tile.grain for tile in tiles), [edge for tile in tiles for edge in (tile.start, tile.end)]


def _grain_branches(tiles: Sequence[Tile]) -> tuple[tuple[Grain, ...], Sequence[object]]:
    """The grains, and all starts and all ends of one after the other."""
    by_grain = {grain: [tile for tile in tiles if tile.grain is grain] for grain in Grain}
    grains = tuple(grain for grain, some in by_grain.items() if some)
    return grains, [
        edges
        for grain in grains
        for edges in ([tile.start for tile in by_grain[grain]], [tile.end for tile in by_grain[grain]])
    ]


@lru_cache(maxsize=256)
def _text(shape: _Shape) -> str:
    first_filter = shape.own + 1
    first_bound = first_filter + len(shape.columns)
    filters = "".join(f" AND {column} = ${number}" for number, column in enumerate(shape.columns, first_filter))
    branch = _QUERIES["buckets_of_tile" if shape.is_tile else "buckets_of_tiles"]
    buckets = "\nUNION ALL\n".join(
        branch.replace("{grain}", grain.label).replace("{start}", f"${bound}").replace("{end}", f"${bound + 1}")
        for bound, grain in zip(count(first_bound, 2), shape.grains, strict=False)
    )
    return (
        _QUERIES[shape.query]
        .replace("{sums}", _QUERIES["sums"])
        .replace("{buckets}", buckets)
        .replace("{filters}", filters)
        .replace("{provider}", "provider" if shape.grouping.by_provider else "''")
        .replace("{model_name}", "model_name" if shape.grouping.by_model else "''")
    )
