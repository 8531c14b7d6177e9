import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.boxes_check import CLIPPED, NO_AREA, NOT_FINITE, OUTSIDE, check_boxes

NAN, INF = float("nan"), float("inf")


def check(*boxes: tuple[float, float, float, float], height: int = 40, width: int = 60):
    return check_boxes(
        np.array(boxes, np.float64).reshape(-1, 4), np.tile(np.array([[height, width]]), (len(boxes), 1))
    )


def test_each_kind() -> None:
    checked = check(
        (0, 0, 60, 40), (5, 5, 5, 9), (9, 5, 5, 9), (NAN, 0, 3, 4), (0, 0, INF, 4), (-5, 3, 70, 50), (61, 3, 70, 9),
        (-9, 3, 0, 9), (59.95, 3, 60.05, 9), (0, -3, 9, -1),
    )  # fmt: skip
    assert checked.kept.tolist() == [True, False, False, False, False, True, False, False, True, False]
    assert {kind: list(positions) for kind, positions in checked.problems.items()} == {
        NOT_FINITE: [3, 4],
        NO_AREA: [1, 2],
        OUTSIDE: [6, 7, 9],
        CLIPPED: [5],
    }
    assert checked.edges[5].tolist() == [0, 3, 60, 40] and checked.edges[8].tolist() == [59.95, 3, 60, 9]


def test_no_boxes() -> None:
    checked = check()
    assert len(checked.kept) == 0 and checked.problems == {}


@given(st.lists(st.tuples(*[st.floats(-100, 100) | st.sampled_from([NAN, INF, -INF])] * 4), min_size=1, max_size=20))
def test_what_is_kept_is_sound_and_what_is_not_is_told(boxes: list[tuple[float, float, float, float]]) -> None:
    checked = check(*boxes)
    edges = checked.edges[checked.kept]
    assert np.isfinite(checked.edges).all() and (edges[:, 2:] > edges[:, :2]).all()
    assert (edges >= 0).all() and (edges <= [60, 40, 60, 40]).all()
    told = {int(p) for kind, positions in checked.problems.items() if kind != CLIPPED for p in positions}
    assert told == set(np.flatnonzero(~checked.kept).tolist())
