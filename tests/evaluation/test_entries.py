import math

import pytest

from rcnn.evaluation.entries import are_ids, is_id, is_number


@pytest.mark.parametrize("value", [True, None, "1", [1], {}, math.nan, math.inf, -math.inf, 10**400, -(10**400)])
def test_no_numbers(value: object) -> None:
    assert not is_number(value)


@pytest.mark.parametrize("value", [0, -1, 2**64, 1e308, -0.5])
def test_numbers(value: object) -> None:
    assert is_number(value)


def test_ids() -> None:
    assert is_id("a") and is_id(0) and not is_id(True) and not is_id(0.5) and not is_id([]) and not is_id(None)
    assert are_ids([]) and are_ids([1, "a", {"id": 3}])
    assert not any(are_ids(values) for values in (0.5, {"id": 1}, [{}], [{"id": []}], [None], "ab"))
