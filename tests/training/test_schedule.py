import itertools

import pytest

from rcnn.training.schedule import Schedule


def test_definition_of_steps() -> None:
    schedule = Schedule(lr=0.1, total=10, warmup=0, drops=(4, 7), factor=0.5)
    assert [schedule(step) for step in range(10)] == [0.1] * 4 + [0.05] * 3 + [0.025] * 3


def test_definition_of_warm_up() -> None:
    schedule = Schedule(lr=1.0, total=10, warmup=4)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2575, 0.505, 0.7525, 1.0, 1.0, 1.0])


def test_definition_of_a_cosine() -> None:
    schedule = Schedule(lr=2.0, total=9, warmup=1, final=0.1)
    # half a period over the eight steps after warm-up: 2, then at a quarter, the half, three quarters and the end
    found = [schedule(step) for step in (1, 3, 5, 7, 9)]
    root = 2**-0.5
    assert found == pytest.approx([2.0, 0.2 + 0.9 * (1 + root), 1.1, 0.2 + 0.9 * (1 - root), 0.2])


@pytest.mark.parametrize("final", [None, 0.01])
def test_it_rises_in_warm_up_and_then_never_rises(final: float | None) -> None:
    schedule = Schedule(lr=0.02, total=100, warmup=20, drops=(50, 80), final=final)
    rates = [schedule(step) for step in range(100)]
    assert all(a < b for a, b in itertools.pairwise(rates[:20]))
    assert all(a >= b for a, b in itertools.pairwise(rates[19:]))
    assert max(rates) == pytest.approx(0.02) and min(rates) > 0


def test_a_run_of_nothing_but_warm_up_has_a_rate() -> None:
    assert Schedule(lr=1.0, total=5, warmup=5, final=0.0)(4) == 1.0
    assert Schedule(lr=1.0, total=5, warmup=5, final=0.0)(5) == 1.0
