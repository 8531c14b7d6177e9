"""A small ResNet-18 on the generated shapes of `rcnn quickstart`, from random weights.

    rcnn quickstart

Expected: mAP 0.96 (area) on the generated test set, in 200 s on two cores: measured, see docs/results.md.
"""

from dataclasses import replace

from rcnn.recipes import r18_custom

_BASE = r18_custom.RECIPE
RECIPE = replace(
    _BASE,
    data=replace(
        _BASE.data,
        format="voc",
        root="runs/quickstart/data",
        train="trainval",
        test="test",
        short_side=160,
        long_side=240,
    ),
    model=replace(_BASE.model, frozen=(), anchor_scales=(1.0, 2.0, 4.0, 8.0), head_hidden=256),
    train=replace(
        _BASE.train,
        epochs=9.0,
        batch=4,
        lr=0.03,
        lr_batch=4,
        clip=1.0,  # random weights at this rate
        rois=64,
        rpn_pre_nms=1000,
        rpn_post_nms=300,
        log_every=50,
    ),
    eval=replace(_BASE.eval, rpn_pre_nms=1000, rpn_post_nms=100, max_detections=50),
)
