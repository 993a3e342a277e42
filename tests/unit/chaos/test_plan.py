"""A seed decides on every fault, and no target is struck before it can have recovered."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import KINDS, Fault, members, storm

SEEDS = st.integers(min_value=0, max_value=2**32)


def of(seed: int, *, length_s: float = 60.0) -> tuple[Fault, ...]:
    return storm(random.Random(seed), length_s=length_s, mean_gap_s=1.0)


@given(SEEDS)
def test_a_seed_gives_the_same_storm_again(seed: int) -> None:
    assert of(seed) == of(seed)


@given(SEEDS)
def test_faults_come_in_order_and_within_the_storm(seed: int) -> None:
    times = [fault.at_s for fault in of(seed)]

    assert times == sorted(times)
    assert all(0 <= at_s <= 60 for at_s in times)


@given(SEEDS)
def test_no_target_is_struck_before_it_can_have_recovered(seed: int) -> None:
    by_target: dict[str, list[Fault]] = {}
    for fault in of(seed):
        for member in members(fault.target):
            by_target.setdefault(member, []).append(fault)

    for faults in by_target.values():
        for before, after in pairwise(faults):
            # Times are rounded to hundredths.
            assert after.at_s >= before.at_s + before.hold_s + KINDS[before.kind].recovery_s - 0.02


def test_in_the_long_run_every_kind_comes_and_every_target_is_struck() -> None:
    struck = {(fault.kind, fault.target) for fault in of(1, length_s=20_000)}

    assert struck == {(name, target) for name, kind in KINDS.items() for target in kind.targets}
