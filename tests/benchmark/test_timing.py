import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.benchmark.timing import WARM_UP, ratios, spread, time_alone, time_pairs

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20)


def test_spread_by_hand() -> None:
    assert spread([3.0, 1.0, 5.0, 2.0, 4.0]) == (3.0, 1.0, 5.0, (2.0, 4.0))
    assert spread([7.0]) == (7.0, 7.0, 7.0, (7.0, 7.0))


@given(TIMES)
def test_spread_is_ordered(times: list[float]) -> None:
    result = spread(times)
    low, high = result.quartiles
    assert result.low <= low * (1 + 1e-9) and low <= result.median * (1 + 1e-9)
    assert result.median <= high * (1 + 1e-9) and high <= result.high * (1 + 1e-9)


@given(TIMES)
def test_spread_does_not_ask_for_the_order(times: list[float]) -> None:
    assert spread(times) == spread(sorted(times))


def test_the_warm_up_is_not_counted() -> None:
    numbers = iter(range(100))
    assert time_alone(lambda: float(next(numbers)), runs=3) == [WARM_UP, WARM_UP + 1, WARM_UP + 2]


def test_pairs_alternate_and_so_does_who_is_first() -> None:
    order = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, theirs = time_pairs(lambda: side("a"), lambda: side("b"), runs=4)
    assert "".join(order[2 * WARM_UP :]) == "abbaabba"
    assert ours == [5.0, 8.0, 9.0, 12.0]
    assert theirs == [6.0, 7.0, 10.0, 11.0]


def test_ratios_are_theirs_over_ours() -> None:
    assert ratios([1.0, 2.0], [3.0, 3.0]) == [3.0, 1.5]
    with pytest.raises(ValueError):
        ratios([1.0], [])
