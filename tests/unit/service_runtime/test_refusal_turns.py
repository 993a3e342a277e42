"""Whose refusal has to wait, for how long, and that it is nobody's but his who asks too fast."""

from __future__ import annotations

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service_runtime.refusal_turns import LONG_SINCE, OUT_OF_REACH, Connections, TurnRules, Turns, turn_after

PACE_PER_S = 64  # a power of two, so that sums of the spacing are exact
RULES = TurnRules(longest_wait_s=2.0, most_waiting=2 * PACE_PER_S, at_once=10)
# All times are multiples of a power of two, so that no sum is rounded and every assertion is exact.
moments = st.integers(0, 1 << 20).map(lambda count: count / 1024)
rules = st.builds(
    lambda most, places, at_once: TurnRules(longest_wait_s=most / 2**places, most_waiting=most, at_once=at_once),
    st.integers(1, 1000),
    st.integers(3, 9),
    st.integers(1, 100),
)
# From one refusal to the next, and whether time is short then.
asked = st.lists(st.tuples(st.integers(0, 1024).map(lambda count: count / 1024), st.booleans()), max_size=300)


def turns_at(times_s: list[float], rules: TurnRules = RULES, *, is_pressed: bool = True) -> list[float]:
    """The turn of each of one user's refusals."""
    turns = Turns(rules)
    return [turns.next_for("a", at_s, is_pressed=is_pressed) for at_s in times_s]


def test_the_first_few_refusals_are_told_at_once() -> None:
    assert all(turn_s <= 5.0 for turn_s in turns_at([5.0] * RULES.at_once))


def test_who_asks_for_more_has_his_turns_at_the_pace() -> None:
    waits_s = [turn_s - 5.0 for turn_s in turns_at([5.0] * 14)[RULES.at_once :]]

    assert waits_s == [1 / PACE_PER_S, 2 / PACE_PER_S, 3 / PACE_PER_S, 4 / PACE_PER_S]


def test_who_asks_for_less_than_the_pace_never_waits() -> None:
    times_s = [number * 1.01 / PACE_PER_S for number in range(1000)]

    assert all(turn_s <= at_s for turn_s, at_s in zip(turns_at(times_s), times_s, strict=True))


def test_nobody_takes_turns_while_there_is_time_to_spare() -> None:
    assert set(turns_at([1.0] * 500, is_pressed=False)) == {LONG_SINCE}


def test_a_flood_that_was_slowed_down_stays_so_when_that_has_helped() -> None:
    turns = Turns(RULES)
    for _ in range(50):
        turns.next_for("a", 0.0, is_pressed=True)

    turns_s = [turns.next_for("a", number / PACE_PER_S, is_pressed=False) for number in range(1000)]

    assert all(turn_s > number / PACE_PER_S for number, turn_s in enumerate(turns_s))


def test_a_flood_that_ends_is_forgiven() -> None:
    turns = Turns(RULES)
    for _ in range(1000):
        turns.next_for("a", 0.0, is_pressed=True)

    assert turns.next_for("a", RULES.longest_wait_s, is_pressed=False) == LONG_SINCE


def test_more_than_may_wait_are_told_at_once() -> None:
    turns_s = turns_at([0.0] * 1000)

    assert turns_s[: RULES.at_once + RULES.most_waiting].count(OUT_OF_REACH) == 0
    assert set(turns_s[RULES.at_once + RULES.most_waiting :]) == {OUT_OF_REACH}


def test_a_wait_of_nothing_holds_nobody() -> None:
    assert set(turns_at([0.0] * 100, TurnRules(longest_wait_s=0.0))) == {LONG_SINCE}


@given(asked, rules)
def test_nobody_waits_longer_than_may_be_and_no_more_wait_than_may(
    asked: list[tuple[float, bool]], rules: TurnRules
) -> None:
    turns, now_s = Turns(rules), 0.0
    given_s: list[float] = []
    for after_s, is_pressed in asked:
        now_s += after_s
        turn_s = turns.next_for("a", now_s, is_pressed=is_pressed)
        if turn_s not in (LONG_SINCE, OUT_OF_REACH):
            assert turn_s - now_s <= rules.longest_wait_s
            assert not given_s or turn_s > given_s[-1]
            given_s.append(turn_s)
        assert len(given_s) - bisect_right(given_s, now_s) <= rules.most_waiting


@given(asked, rules)
def test_another_users_turns_are_as_if_there_were_no_flood(asked: list[tuple[float, bool]], rules: TurnRules) -> None:
    beside, alone, now_s = Turns(rules), Turns(rules), 0.0
    for after_s, is_pressed in asked:
        now_s += after_s
        for _ in range(3):
            beside.next_for("a", now_s, is_pressed=True)

        expected_s = alone.next_for("b", now_s, is_pressed=is_pressed)

        assert beside.next_for("b", now_s, is_pressed=is_pressed) == expected_s


@given(moments, moments, st.booleans(), rules)
def test_who_asks_later_never_waits_longer(last_s: float, now_s: float, is_pressed: bool, rules: TurnRules) -> None:
    turn_s = turn_after(last_s, now_s, rules, is_pressed=is_pressed)
    later_s = turn_after(last_s, now_s + 0.125, rules, is_pressed=is_pressed)

    if turn_s != OUT_OF_REACH:
        assert later_s != OUT_OF_REACH
        assert max(0.0, later_s - now_s - 0.125) <= max(0.0, turn_s - now_s)


def test_those_who_are_quiet_are_forgotten_and_those_who_wait_are_not() -> None:
    turns, flood_turns = Turns(RULES), Turns(RULES)
    for number in range(5000):
        now_s = number / 100
        for _ in range(2):  # a hundred a second, which is more than its pace
            expected_s = flood_turns.next_for("flood", now_s, is_pressed=True)
            assert turns.next_for("flood", now_s, is_pressed=True) == expected_s
        turns.next_for(number, now_s, is_pressed=True)

    assert turns.remembered < 1_100


def test_a_connection_is_of_its_only_user() -> None:
    connections = Connections()
    connections.used("one", "a", 0.0)
    connections.used("one", "a", 1.0)
    connections.used("other", "b", 1.0)

    assert (connections.only_user("one"), connections.only_user("other")) == ("a", "b")
    assert connections.only_user("unseen") is None


@pytest.mark.parametrize(
    "second", [pytest.param("b", id="another user"), pytest.param(None, id="nobody in particular")]
)
def test_a_connection_that_has_carried_anything_else_is_nobodys_from_then_on(second: str | None) -> None:
    connections = Connections()
    connections.used("one", "a", 0.0)
    connections.used("one", second, 1.0)
    for _ in range(3):
        connections.used("one", "a", 2.0)

    assert connections.only_user("one") is None


def test_an_address_is_looked_at_anew_when_its_connection_must_have_ended() -> None:
    connections = Connections(lasts_s=60.0)
    connections.used("one", "a", 0.0)
    connections.used("one", "b", 1.0)
    connections.used("one", "c", 61.5)

    assert connections.only_user("one") == "c"


def test_of_very_many_connections_the_oldest_are_forgotten() -> None:
    connections = Connections(most=3)
    for number in range(5):
        connections.used(f"peer {number}", "a", float(number))

    assert [connections.only_user(f"peer {number}") for number in range(5)] == [None, None, "a", "a", "a"]
