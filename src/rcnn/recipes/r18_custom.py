"""ResNet-18 on your own small pictures: trains on a laptop's CPU.

    rcnn train r18_custom --data.root DIR --model.pretrained weights/resnet18.pth
    rcnn test runs/r18_custom --data.root DIR

Expected: mAP 0.90 (area) on the 72 test pictures of BCCD after 286 s on two cores: measured, docs/results.md has the
command, machine and commit. Continuous boxes, RoIAlign, five anchor sizes from 16 to 256 px, bf16 where the processor
has it, warm-up and a cosine.
"""

from rcnn.config import Data, Eval, Model, Recipe, Train

RECIPE = Recipe(
    data=Data(root="data", train="trainval", test="test", short_side=320, long_side=533),
    model=Model(
        backbone="resnet18",
        head_hidden=1024,
        dropout=0.0,
        offset=0.0,
        roi_op="align",
        rpn_channels=256,
        anchor_scales=(1.0, 2.0, 4.0, 8.0, 16.0),
        partial_cells=True,
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        frozen=("conv1", "bn1", "layer1"),
    ),
    train=Train(
        epochs=12.0,
        batch=2,
        lr=0.01,
        lr_batch=2,
        scale_lr=True,
        schedule="cosine",
        warmup=100,
        clip=0.0,
        epoch_of_flips=False,
        precision="auto",
        rpn_border=-1.0,
        rpn_min_size=0.0,
        rpn_pre_nms=2000,
        rpn_post_nms=1000,
        rpn_sigma=3.0,
    ),
    eval=Eval(rpn_pre_nms=2000, rpn_post_nms=300, rpn_min_size=0.0, precision="auto", max_detections=300),
)
