"""The recipes that reproduce mx-rcnn have its numbers. Source: shared/spec/mx-rcnn.md 1.3, 1.5 and 1.11."""

import pytest

from rcnn.recipes.find import find_recipe, recipe_names

# network, training set, test set, method, epochs, drops
TABLE = {
    "vgg16_voc07_fast": ("vgg16", "2007_trainval", "2007_test", "fast_rcnn", 8, (6,)),
    "vgg16_voc07_alternate": ("vgg16", "2007_trainval", "2007_test", "alternate", 8, (6,)),
    "vgg16_voc07": ("vgg16", "2007_trainval", "2007_test", "joint", 10, (7,)),
    "vgg16_voc0712": ("vgg16", "2007_trainval+2012_trainval", "2007_test", "joint", 10, (7,)),
    "r101_voc07": ("resnet101_v2", "2007_trainval", "2007_test", "joint", 10, (7,)),
    "r101_voc07_alternate": ("resnet101_v2", "2007_trainval", "2007_test", "alternate", 8, (6,)),
    "r101_voc0712": ("resnet101_v2", "2007_trainval+2012_trainval", "2007_test", "joint", 10, (7,)),
    "vgg16_coco": ("vgg16", "train2014", "val2014", "joint", 10, (7,)),
    "r101_coco": ("resnet101_v2", "train2014", "val2014", "joint", 10, (7,)),
}


@pytest.mark.parametrize("name", TABLE)
def test_numbers_of_mx_rcnn(name: str) -> None:
    recipe = find_recipe(name)
    data, model, train, rules = recipe.data, recipe.model, recipe.train, recipe.eval
    found = (model.backbone, data.train, data.test, train.method, train.epochs, train.lr_steps)
    assert found == TABLE[name]
    assert (train.lr, train.lr_factor, train.momentum, train.weight_decay, train.clip) == (0.001, 0.1, 0.9, 0.0005, 5)
    assert (train.schedule, train.warmup, train.scale_lr) == ("steps", 0, False)
    assert train.epoch_of_flips and data.flip and (data.short_side, data.long_side) == (600, 1000)
    assert (train.rpn_rois, train.rpn_positive_share, train.rpn_border, train.rpn_sigma) == (256, 0.5, 0, 3)
    assert (train.rpn_positive_iou, train.rpn_negative_iou) == (0.7, 0.3)
    assert (train.rpn_pre_nms, train.rpn_post_nms, train.rpn_nms, train.rpn_min_size) == (12000, 2000, 0.7, 16)
    assert (train.roi_positive_share, train.roi_positive_iou, train.head_sigma) == (0.25, 0.5, 1)
    assert train.roi_background_iou == ((0.1, 0.5) if train.method == "fast_rcnn" else (0.0, 0.5))
    assert (rules.rpn_pre_nms, rules.rpn_post_nms, rules.rpn_nms, rules.rpn_min_size) == (6000, 300, 0.7, 16)
    assert (rules.dump_pre_nms, rules.dump_post_nms, rules.nms, rules.score) == (20000, 2000, 0.3, 0.001)


@pytest.mark.parametrize("name", TABLE)
def test_networks_of_mx_rcnn(name: str) -> None:
    model = find_recipe(name).model
    vgg = model.backbone == "vgg16"
    assert (model.offset, model.roi_op, model.box_std) == (1, "pool", (0.1, 0.1, 0.2, 0.2))
    assert (model.anchor_scales, model.anchor_ratios) == ((8, 16, 32), (0.5, 1, 2))
    assert model.pixel_mean == ((123.68, 116.779, 103.939) if vgg else (0, 0, 0)) and model.pixel_std == (1, 1, 1)
    assert model.frozen == (("conv1", "conv2") if vgg else ("conv0", "stage1"))
    assert (model.head, model.roi_size) == (("fc", 7) if vgg else ("stage4", 14))


@pytest.mark.parametrize("name", [n for n, row in TABLE.items() if row[3] != "joint"])
def test_fast_rcnn_takes_two_images_of_64_rois(name: str) -> None:
    train = find_recipe(name).train
    alternate = train.method == "alternate"
    assert (train.fast_batch, train.fast_rois) == ((2, 64) if alternate else (0, 0))
    assert (train.batch, train.rois) == ((1, 128) if alternate else (2, 64))


def test_every_recipe_says_how_it_is_run_and_what_to_expect() -> None:
    from importlib import import_module

    for name in recipe_names():
        text = import_module(f"rcnn.recipes.{name}").__doc__ or ""
        commands = (f"rcnn train {name}", f"--recipe {name}", "rcnn quickstart")
        assert "Expected:" in text and any(command in text for command in commands), name
