import json
import os
import sys
from typing import Any

import pytest

from rcnn.benchmark import mxnet, network
from rcnn.benchmark.process import Worker
from rcnn.benchmark.settings import Side, encode
from rcnn.benchmark.task import count_work
from tests.benchmark.small import settings

VGG = {"backbone": "vgg16", "frozen": ("conv1", "conv2")}
RESNET = {"backbone": "resnet50_v2", "head": "stage4", "roi_size": 14, "frozen": ("conv0", "stage1")}


@pytest.fixture
def python() -> str:
    """The interpreter of a venv with MXNet; skips the test where none is named."""
    path = os.environ.get("RCNN_MXNET_PYTHON", "")
    if not path:
        pytest.skip("no MXNet: set RCNN_MXNET_PYTHON to the python of a venv with mxnet==1.9.1 and numpy==1.23.5")
    return path


@pytest.mark.parametrize("what", ["infer", "train"])
@pytest.mark.parametrize("model", [VGG, RESNET], ids=["vgg16", "resnet50_v2"])
def test_the_same_work_as_ours(what: Any, model: dict[str, Any], python: str) -> None:
    given = settings(what, model=model)
    with Worker(Side("mxnet", "mxnet", python=python), given) as theirs:
        assert theirs.tasks == {what: {"precision": "fp32", "images": 1}}
        ours, work = count_work(network.open_network(given)), theirs.ask("count", task=what)
        assert work["rois"] == ours.rois
        assert work["flops"] == pytest.approx(ours.flops, rel=0.01)  # our normalisations are counted as convolutions
        assert theirs.time(what) > 0 and theirs.ask("memory")["bytes"] > 10 * 2**20


def test_a_python_without_mxnet_is_the_users_to_mend() -> None:
    with pytest.raises(ValueError, match=r"--peer-python .*no mxnet works there .*pip install mxnet==1\.9\.1"):
        Worker(Side("mxnet", "mxnet", python=sys.executable), settings("infer", model=VGG))


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({}, {}, "mx-rcnn has no resnet18; choose a --recipe"),
        ({**VGG, "roi_op": "align"}, {}, "RoIPool and joint training"),
        (VGG, {"batch": 2}, "not --batch 2"),
    ],
)
def test_what_mx_rcnn_cannot_do_is_refused(model: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    _, given = json.loads(encode(Side("mxnet", "mxnet"), settings("infer", model=model, **changes)))
    with pytest.raises(ValueError, match=words):
        mxnet.Network(None, given)


def node(op: str, name: str, *inputs: int) -> dict[str, Any]:
    return {"op": op, "name": name, "inputs": [[place, 0, 0] for place in inputs]}


def test_gradients_are_counted_where_something_below_is_trained() -> None:
    nodes = [node("null", "data"), node("null", "frozen_weight"), node("Convolution", "frozen", 0, 1)]
    nodes += [node("null", "first_weight"), node("Convolution", "first", 2, 3)]
    nodes += [node("null", "next_weight"), node("FullyConnected", "next", 4, 5)]
    nodes += [node("BlockGrad", "stop", 6), node("null", "last_weight"), node("FullyConnected", "last", 7, 8)]
    shapes = {"frozen_output": (1, 2, 3, 3), "frozen_weight": (2, 5, 1, 1)}  # 2 * 18 * 5 = 180
    shapes |= {"first_output": (1, 4, 3, 3), "first_weight": (4, 2, 1, 1)}  # 2 * 36 * 2 = 144
    shapes |= {"next_output": (1, 7), "next_weight": (7, 36)}  # 2 * 7 * 36 = 504
    shapes |= {"last_output": (1, 3), "last_weight": (3, 7)}  # 2 * 3 * 7 = 42
    assert mxnet.count_flops({"nodes": nodes}, shapes, set()) == 180 + 144 + 504 + 42
    trained = {"first_weight", "next_weight", "last_weight"}
    assert mxnet.count_flops({"nodes": nodes}, shapes, trained) == 180 + 2 * 144 + 3 * 504 + 2 * 42
