import sys

import pytest

from rcnn.benchmark import settings as module
from rcnn.benchmark.settings import KEEP_FREED_MEMORY, Side, choose_sides, decode, encode, with_rois
from tests.benchmark.small import RECIPE, settings


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object())


@pytest.mark.parametrize("what", ["infer", "train", "ops", "data", "eval"])
def test_json_there_and_back(what: module.What) -> None:
    side = Side("x", "torchvision", "best_malloc", {"A": "1"})
    given = settings(what, precision="bf16", threads=3, batch=2)
    line = encode(side, given)
    assert "\n" not in line
    assert decode(line) == (side, given)


def test_alone_there_is_one_side() -> None:
    assert choose_sides("infer", "nothing", ("default", "best")) == [Side("rcnn")]


def test_the_peer_has_a_side_for_each_mode() -> None:
    sides = choose_sides("train", "torchvision", ("default", "best_malloc"))
    assert [side.label for side in sides] == ["rcnn", "torchvision default", "torchvision best_malloc"]
    assert [side.environment for side in sides] == [{}, {}, KEEP_FREED_MEMORY]


def test_operators_are_compared_with_the_reference_and_once_for_each_allocator() -> None:
    sides = choose_sides("ops", "torchvision", ("default", "best", "best_malloc"))
    assert sides[1].environment == {"RCNN_KERNELS": "reference"}
    assert [side.mode for side in sides[2:]] == ["default", "default_malloc"]


def test_a_training_step_is_compared_with_that_of_several_processes() -> None:
    assert choose_sides("train", "nothing", (), 2) == [Side("rcnn"), Side("rcnn, 2 processes", processes=2)]
    for what, devices in (("infer", 2), ("ops", 3), ("train", 0), ("train", -1)):
        with pytest.raises(ValueError, match=f"--devices {devices}: is for train, with 2 processes or more"):
            choose_sides(what, "nothing", (), devices)


def test_nothing_to_compare_the_data_path_with() -> None:
    with pytest.raises(ValueError, match="leave --against out"):
        choose_sides("data", "torchvision", ("default",))


def test_evaluation_is_compared_with_pycocotools_and_nothing_else_is() -> None:
    (_, peer) = choose_sides("eval", "pycocotools", ("default", "best"))
    assert (peer.label, peer.package, peer.slow) == ("pycocotools", "pycocotools", True)
    with pytest.raises(ValueError, match="--against torchvision: it does nothing like eval; use --against pycocotools"):
        choose_sides("eval", "torchvision", ("default",))
    with pytest.raises(
        ValueError, match="--against pycocotools: it does nothing like infer; use --against torchvision or mxnet"
    ):
        choose_sides("infer", "pycocotools", ("default",))


def test_mxnet_has_a_python_of_its_own_and_a_side_for_each_allocator() -> None:
    sides = choose_sides("infer", "mxnet", ("default", "best", "best_malloc"), python=sys.executable)
    assert [side.label for side in sides[1:]] == ["mxnet default", "mxnet default_malloc"]
    assert [side.environment for side in sides[1:]] == [{}, KEEP_FREED_MEMORY]
    assert {side.python for side in sides[1:]} == {sys.executable}


def test_mxnet_without_a_python_is_said_before_anything_runs() -> None:
    for python in ("", "nowhere/python"):
        with pytest.raises(ValueError, match=rf"--peer-python '{python}': no such program; .*leave --against out"):
            choose_sides("train", "mxnet", ("default",), python=python)


def test_so_many_rois_are_asked_for_in_training_and_testing() -> None:
    changed = with_rois(RECIPE, 5)
    assert (changed.train.rois, changed.eval.rpn_post_nms, changed.model) == (5, 5, RECIPE.model)
    assert with_rois(RECIPE, 0) == RECIPE
    with pytest.raises(ValueError, match="--rois -1: must be at least 1"):
        with_rois(RECIPE, -1)


def test_a_missing_peer_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed here; pip install torchvision .* or leave --against out"):
        choose_sides("infer", "torchvision", ("default",))


@pytest.mark.parametrize("how", ["winograd", "int8"])
def test_winograds_method_and_int8_are_of_inference(how: str) -> None:
    assert getattr(settings("infer", **{how: True}), how)
    with pytest.raises(ValueError, match=f"--{how}: is of inference only, not of train"):
        settings("train", **{how: True})


@pytest.mark.parametrize(
    ("name", "value"), [("height", 31), ("width", 0), ("batch", 0), ("threads", -1), ("images", 0)]
)
def test_impossible_sizes_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{name} {value}: must be at least"):
        settings("infer", **{name: value})
