"""VGG16 on VOC 2007 with the conventions of simple-faster-rcnn-pytorch (chenyuntc), to use its checkpoints.

    rcnn convert fasterrcnn_12222105_0.712.pth --recipe vgg16_voc07_simple --out model.safetensors
    rcnn test model.safetensors --data.root data/VOCdevkit

Expected: mAP 71.2 (11 points) on VOC 2007 test from Caffe's weights, 70.1 from torchvision's: its README. Not measured
here. Continuous boxes, anchors that are not rounded, no dropout, detections from a score of 0.05 on. A converted model
has the input range of its checkpoint; training takes torchvision's.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_voc07

_BASE = vgg16_voc07.RECIPE
RECIPE = replace(
    _BASE,
    model=replace(
        _BASE.model,
        offset=0.0,
        dropout=0.0,
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
    ),
    train=replace(_BASE.train, epochs=14.0, lr_steps=(10.0,), clip=0.0, epoch_of_flips=False),
    eval=replace(_BASE.eval, score=0.05),
)
