import pytest

from rcnn.benchmark import settings as module
from rcnn.benchmark.settings import KEEP_FREED_MEMORY, Side, choose_sides, decode, encode
from tests.benchmark.small import settings


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


def test_nothing_to_compare_the_data_path_with() -> None:
    with pytest.raises(ValueError, match="leave --against out"):
        choose_sides("data", "torchvision", ("default",))


def test_evaluation_is_compared_with_pycocotools_and_nothing_else_is() -> None:
    (_, peer) = choose_sides("eval", "pycocotools", ("default", "best"))
    assert (peer.label, peer.package, peer.slow) == ("pycocotools", "pycocotools", True)
    with pytest.raises(ValueError, match="--against torchvision: it does nothing like eval; use --against pycocotools"):
        choose_sides("eval", "torchvision", ("default",))
    with pytest.raises(
        ValueError, match="--against pycocotools: it does nothing like infer; use --against torchvision"
    ):
        choose_sides("infer", "pycocotools", ("default",))


def test_a_missing_peer_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed here; pip install torchvision .* or leave --against out"):
        choose_sides("infer", "torchvision", ("default",))


def test_winograds_method_is_of_inference() -> None:
    assert settings("infer", winograd=True).winograd
    with pytest.raises(ValueError, match="--winograd: is of inference only, not of train"):
        settings("train", winograd=True)


@pytest.mark.parametrize(
    ("name", "value"), [("height", 31), ("width", 0), ("batch", 0), ("threads", -1), ("images", 0)]
)
def test_impossible_sizes_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{name} {value}: must be at least"):
        settings("infer", **{name: value})
