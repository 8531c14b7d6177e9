"""Settings of a measurement that takes milliseconds."""

from dataclasses import replace
from typing import Any

from rcnn.benchmark.settings import Settings, What
from rcnn.config import Data, Eval, Model, Recipe, Train

RULES: dict[str, Any] = {"rpn_pre_nms": 60, "rpn_post_nms": 10, "rpn_min_size": 4}
RECIPE = Recipe(
    data=Data(short_side=60, long_side=90, workers=0),
    model=Model(
        backbone="resnet18", frozen=("conv1", "bn1", "layer1"), head_hidden=16, rpn_channels=8, anchor_scales=(1, 2)
    ),
    train=Train(**RULES, rois=8, rpn_rois=16),
    eval=Eval(**RULES),
)


def settings(what: What, *, model: dict[str, Any] | None = None, **changes: Any) -> Settings:
    """`changes` are fields of Settings; `model` holds those of the recipe's Model."""
    recipe = replace(RECIPE, model=replace(RECIPE.model, **(model or {})))
    return Settings(what, **{"recipe": recipe, "height": 64, "width": 96, "device": "cpu", **changes})
