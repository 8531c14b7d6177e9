import sys
from typing import Any

import pytest
import torch

from rcnn import build
from rcnn.benchmark import network, torchvision
from rcnn.benchmark.settings import Mode
from rcnn.benchmark.task import count_work
from tests.benchmark.small import settings

VGG = {"backbone": "vgg16", "frozen": ("conv1", "conv2")}
ALIGN = {"roi_op": "align", "offset": 0.0}
STAGE4 = {"head": "stage4", "roi_size": 14}


@pytest.fixture
def installed() -> None:
    """Skips the test where there is no torchvision that works."""
    try:
        torchvision.load_torchvision()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("what", ["infer", "train"])
@pytest.mark.parametrize("model", [VGG, {}, ALIGN, STAGE4], ids=["vgg16", "resnet18", "align", "stage4"])
def test_the_same_work_as_ours(what: Any, model: dict[str, Any]) -> None:
    given = settings(what, model=model)
    ours, theirs = count_work(network.open_network(given)), count_work(torchvision.open_network(given, "default"))
    assert theirs.rois == ours.rois
    assert theirs.flops == pytest.approx(ours.flops, rel=0.01)  # they have one logit an anchor, we have two


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("what", ["infer", "train"])
@pytest.mark.parametrize("mode", ["channels_last", "best"])
def test_the_other_modes_do_the_same_work(what: Any, mode: Mode) -> None:
    given = settings(what, batch=2)
    default, other = (count_work(torchvision.open_network(given, m)) for m in ("default", mode))
    assert other == default


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("model", [VGG, {}, STAGE4], ids=["vgg16", "resnet18", "stage4"])
def test_the_same_weights_are_trained(model: dict[str, Any]) -> None:
    recipe = settings("train", model=model).recipe
    ours = build.build_model(recipe.model, recipe.eval, 20)
    theirs = torchvision.build_detector(recipe, 20, height=64, width=96)
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    logit = len(recipe.model.anchor_scales) * len(recipe.model.anchor_ratios) * (recipe.model.rpn_channels + 1)
    assert counts[0] - counts[1] == logit  # the second logit of every anchor


def test_no_pre_activation_network_there() -> None:
    recipe = settings("infer", model={"backbone": "resnet50_v2"}).recipe
    with pytest.raises(ValueError, match=r"no pre-activation ResNet \(resnet50_v2\); choose a --recipe"):
        torchvision.build_detector(recipe, 20, height=64, width=96)


def test_a_broken_package_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ValueError, match=rf"does not work here .*torch \({torch.__version__[:4]}.*leave --against out"):
        torchvision.load_torchvision()
