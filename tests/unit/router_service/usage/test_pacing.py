"""The pace of a backlog beside requests, as values: what they feel, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_service.usage.pacing import Pace, PaceSettings, Waits, batch_size, first_pace, strain_of

SETTINGS = PaceSettings(floor_per_s=1_000.0, ceiling_per_s=20_000.0, first_per_s=2_000.0)

waits_s = st.floats(0.0, 10.0)
NOBODY = Waits()


def felt(*, calm_s: float, busy_s: float, share: float = 0.5, samples: int = 200) -> Waits:
    """Waits of two lengths: between batches, and during batches, which take that share of the time."""
    waits = Waits()
    for number in range(samples):
        is_busy = number % 100 < 100 * share
        waits = waits.plus(busy_s if is_busy else calm_s, is_calm=not is_busy)
    return waits


def test_waits_that_are_the_same_with_and_without_batches_are_no_strain() -> None:
    assert felt(calm_s=0.004, busy_s=0.004).strain == pytest.approx(1.0)


def test_a_slow_machine_is_not_the_backlogs_fault() -> None:
    assert felt(calm_s=0.03, busy_s=0.03).strain == pytest.approx(felt(calm_s=0.0003, busy_s=0.0003).strain)


def test_waits_that_triple_during_half_of_the_time_are_twice_as_long_in_the_mean() -> None:
    assert felt(calm_s=0.005, busy_s=0.017).strain == pytest.approx(2.0)


def test_the_same_batches_are_less_of_a_strain_the_smaller_their_share_of_the_time() -> None:
    often = felt(calm_s=0.005, busy_s=0.015, share=0.7).strain
    seldom = felt(calm_s=0.005, busy_s=0.015, share=0.2).strain

    assert often is not None
    assert seldom is not None
    assert seldom < often


def test_parts_of_a_millisecond_are_not_felt() -> None:
    strain = felt(calm_s=0.0001, busy_s=0.0005).strain

    assert strain is not None
    assert strain < SETTINGS.tolerated_strain


def test_one_stall_of_the_machine_does_not_outweigh_all_other_waits() -> None:
    waits = felt(calm_s=0.004, busy_s=0.004).plus(30.0, is_calm=False)

    assert waits.strain == pytest.approx(1.05, abs=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_waits_of_both_kinds_nothing_is_known(share: float) -> None:
    assert felt(calm_s=0.001, busy_s=0.1, share=share).strain is None


def test_what_was_felt_fades_until_nothing_is_known() -> None:
    waits = felt(calm_s=0.004, busy_s=0.02)

    assert waits.faded(1.0).strain == pytest.approx(waits.strain)
    assert waits.faded(60.0).strain is None


def test_of_several_strains_the_largest_counts_and_unknown_ones_do_not() -> None:
    mild, hard = felt(calm_s=0.004, busy_s=0.005), felt(calm_s=0.004, busy_s=0.02)

    assert strain_of(mild, Waits(), hard) == hard.strain
    assert strain_of(Waits(), Waits()) is None


def test_a_pace_that_is_felt_too_much_is_cut_and_one_that_is_not_is_raised() -> None:
    pace = Pace(4_000.0)
    hard, mild = felt(calm_s=0.004, busy_s=0.012), felt(calm_s=0.004, busy_s=0.005)

    assert pace.judged(SETTINGS, hard, mild, sent_per_s=4_000.0).per_s == pytest.approx(2_800.0)
    assert pace.judged(SETTINGS, mild, hard, sent_per_s=4_000.0).per_s == pytest.approx(2_800.0)
    assert pace.judged(SETTINGS, mild, mild, sent_per_s=4_000.0).per_s == pytest.approx(4_800.0)


def test_on_a_crowded_event_loop_there_is_no_room_for_a_backlog_though_batches_make_no_difference() -> None:
    crowded = felt(calm_s=0.03, busy_s=0.03)

    assert Pace(4_000.0).judged(SETTINGS, crowded, NOBODY, sent_per_s=4_000.0).per_s == pytest.approx(2_800.0)


def test_a_slow_disk_alone_does_not_make_a_loop_crowded() -> None:
    quick, slow = felt(calm_s=0.001, busy_s=0.001), felt(calm_s=0.04, busy_s=0.04)

    assert Pace(4_000.0).judged(SETTINGS, quick, slow, sent_per_s=4_000.0).per_s == pytest.approx(4_800.0)


def test_a_pace_that_is_not_used_is_not_raised() -> None:
    unfelt = felt(calm_s=0.004, busy_s=0.004)

    assert Pace(4_000.0).judged(SETTINGS, unfelt, unfelt, sent_per_s=1_500.0).per_s == 4_000.0


def test_a_pace_of_which_nothing_is_known_stays() -> None:
    assert Pace(4_000.0).judged(SETTINGS, NOBODY, NOBODY, sent_per_s=4_000.0).per_s == 4_000.0


@given(st.lists(st.tuples(waits_s, waits_s, st.floats(0.0, 1e6))))
def test_whatever_is_felt_the_pace_stays_between_floor_and_ceiling(looks: list[tuple[float, float, float]]) -> None:
    pace = first_pace(SETTINGS)
    for calm_s, busy_s, sent_per_s in looks:
        loop = felt(calm_s=calm_s, busy_s=busy_s, samples=100)
        pace = pace.judged(SETTINGS, loop, NOBODY, sent_per_s=sent_per_s)

        assert SETTINGS.floor_per_s <= pace.per_s <= SETTINGS.ceiling_per_s


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_the_first_pace_is_between_floor_and_ceiling_too(floor: float, ceiling: float, first: float) -> None:
    low, high = sorted((floor, ceiling))

    assert low <= first_pace(PaceSettings(floor_per_s=low, ceiling_per_s=high, first_per_s=first)).per_s <= high


@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, 10.0), (-1.0, 10.0), (11.0, 10.0)])
def test_a_floor_that_would_starve_the_backlog_is_refused_by_name(floor: float, ceiling: float) -> None:
    with pytest.raises(ValueError, match=f"floor of {floor:g} events/s"):
        PaceSettings(floor_per_s=floor, ceiling_per_s=ceiling)


def test_the_next_batch_goes_when_the_rate_and_what_comes_in_allow_it() -> None:
    pace = Pace(1_000.0)

    alone = pace.next_batch_s(SETTINGS, sent=100, arriving_per_s=0.0, began_s=10.0, ended_s=10.01)
    with_requests = pace.next_batch_s(SETTINGS, sent=100, arriving_per_s=1_000.0, began_s=10.0, ended_s=10.01)

    assert alone == pytest.approx(10.1)
    assert with_requests == pytest.approx(10.05)


def test_after_a_slow_batch_there_is_a_pause_all_the_same() -> None:
    next_s = Pace(20_000.0).next_batch_s(SETTINGS, sent=100, arriving_per_s=0.0, began_s=10.0, ended_s=10.03)

    assert next_s == pytest.approx(10.04)


def test_but_no_pause_that_would_leave_less_than_the_floor() -> None:
    slow = partial(Pace(20_000.0).next_batch_s, SETTINGS, sent=100, arriving_per_s=0.0, began_s=10.0)

    assert slow(ended_s=10.09) == pytest.approx(10.1)
    assert slow(ended_s=13.0) <= 13.0


@pytest.mark.parametrize(("last_took_s", "size"), [(0.0, 128), (0.1, 128), (0.2, 200), (0.4, 400), (9.0, 500)])
def test_batches_are_small_unless_they_take_so_long_that_the_floor_needs_larger_ones(
    last_took_s: float, size: int
) -> None:
    assert batch_size(SETTINGS, smallest=128, largest=500, arriving_per_s=0.0, last_took_s=last_took_s) == size


def test_a_sender_of_small_batches_sends_none_larger_than_its_largest() -> None:
    assert batch_size(SETTINGS, smallest=128, largest=10, arriving_per_s=0.0, last_took_s=0.0) == 10


@dataclass
class Machine:
    """Requests and a drain on one machine: batches of 128 that take `batch_s`, and how long requests wait meanwhile."""

    batch_s: float
    calm_s: float
    busy_s: float

    def drained(self, looks: int) -> list[tuple[float, float | None]]:
        """What goes each second, and the strain, look by look."""
        pace, now_s, seen = first_pace(SETTINGS), 0.0, []
        waits = Waits()
        for _ in range(looks):
            sent, began_s = 0, now_s
            while now_s < began_s + SETTINGS.looks_every_s:
                ended_s = now_s + self.batch_s
                next_s = pace.next_batch_s(SETTINGS, sent=128, arriving_per_s=0.0, began_s=now_s, ended_s=ended_s)
                waits = self._steadily(waits, ended_s - now_s, is_calm=False)
                waits = self._steadily(waits, next_s - ended_s, is_calm=True)
                sent, now_s = sent + 128, next_s
            per_s = sent / (now_s - began_s)
            pace = pace.judged(SETTINGS, waits, NOBODY, sent_per_s=per_s)
            seen.append((per_s, waits.strain))
            waits = waits.faded(now_s - began_s)
        return seen

    def _steadily(self, waits: Waits, length_s: float, *, is_calm: bool) -> Waits:
        for _ in range(round(length_s / 0.003)):
            waits = waits.plus(self.calm_s if is_calm else self.busy_s, is_calm=is_calm)
        return waits


def test_where_batches_are_not_felt_the_pace_rises_to_what_the_ledger_takes() -> None:
    last = Machine(batch_s=0.012, calm_s=0.002, busy_s=0.002).drained(40)[-10:]

    assert min(per_s for per_s, _ in last) > 0.9 * 128 / 0.016  # a quarter of the time is pauses


def test_where_they_are_felt_the_pace_settles_where_requests_bear_it() -> None:
    last = Machine(batch_s=0.015, calm_s=0.004, busy_s=0.009).drained(60)[-30:]
    rates, felt_strains = [per_s for per_s, _ in last], [strain or 0.0 for _, strain in last]

    assert sum(felt_strains) / len(felt_strains) < 1.3
    assert sum(rates) / len(rates) > 1.5 * SETTINGS.floor_per_s
    assert max(rates) < 0.7 * 128 / 0.02  # what it would be if nobody felt anything


def test_however_much_they_are_felt_the_floor_is_kept() -> None:
    last = Machine(batch_s=0.03, calm_s=0.001, busy_s=0.05).drained(40)[-10:]

    assert all(per_s == pytest.approx(SETTINGS.floor_per_s, rel=0.2) for per_s, _ in last)
