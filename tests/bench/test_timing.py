"""Turns, ratios and bars: which seconds belong to which work, which way round a ratio is, what counts as met."""

import pytest

from ssl_ft.bench.timing import (
    Row,
    at_least,
    at_most,
    compare,
    ratio_with_spread,
    time_in_turns,
    unmeasured,
    wall_seconds,
)


class FakeClock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, *seconds: float, log: list[str], name: str):
        """Work that takes the given seconds, one after the other."""
        left = list(seconds)

        def do() -> None:
            log.append(name)
            self.now += left.pop(0)

        return do


def test_works_take_turns_and_keep_their_own_seconds():
    clock, log = FakeClock(), []
    ours = clock.work(9.0, 1.0, 1.0, 2.0, log=log, name="A")
    peer = clock.work(9.0, 2.0, 3.0, 8.0, log=log, name="B")
    seconds = time_in_turns([ours, peer], rounds=3, stopwatch=lambda work: wall_seconds(work, clock))
    assert seconds == [(1.0, 1.0, 2.0), (2.0, 3.0, 8.0)]  # the warm-up's 9 seconds are not among them
    assert log == ["A", "B"] * 4


def test_the_ratio_is_that_of_pairs():
    # The ratio of the medians would be 5: the second round was slow for both.
    row = compare("loss", [1.0, 10.0, 2.0], [3.0, 40.0, 10.0], unit="ms", is_speed_up=True)
    assert (row.ours, row.peer, row.ratio) == (2.0, 10.0, 4.0)
    assert (row.low, row.high) == (3.0, 5.0)
    share = compare("rate", [1.0, 10.0, 2.0], [4.0, 40.0, 16.0], unit="images/s")
    assert share.ratio == 0.25


def test_spread_holds_the_ratio_and_narrows_with_rounds():
    over, under = [1.0, 1.1, 0.9, 1.05, 0.95], [1.0] * 5
    ratio, low, high = ratio_with_spread(over, under)
    many = ratio_with_spread(over * 20, under * 20)
    assert low <= ratio == 1.0 <= high
    assert many[2] - many[1] < high - low
    assert ratio_with_spread([3.0], [2.0]) == (1.5, None, None)


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [
        (at_least(2.0), True),
        (at_least(2.1), False),
        (at_most(2.0), True),
        (at_most(1.9), False),
        (at_least(5.0, of="ours"), True),
        (at_most(4.0, of="ours"), False),
        (None, None),
    ],
)
def test_bars(bar, is_met):
    assert Row("x", 5.0, 2.5, "ms", 2.0, bar=bar).is_met is is_met


def test_what_was_not_measured_meets_nothing():
    assert Row("x", None, None, "ms", bar=at_most(1.0)).is_met is None
    assert Row("x", 5.0, None, "ms", bar=at_most(1.0)).is_met is None
    assert "no GPU" in unmeasured("x", "no GPU").note
