"""VGG16 on VOC 2007 with the conventions of jwyang's faster-rcnn.pytorch, to use its checkpoints.

    rcnn convert faster_rcnn_1_6_10021.pth --recipe vgg16_voc07_jwyang --out model.safetensors
    rcnn test model.safetensors --data.root data/VOCdevkit

Expected: mAP 70.1 (11 points) on VOC 2007 test: its README. Not measured here. Proposals of any size, 256 RoIs a
picture in training, at most 100 detections. A converted model has the RoI operator of its checkpoint: RoIPool, or the
first RoIAlign where it was trained with POOLING_MODE align on the branch for PyTorch 1.0.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_voc07

_BASE = vgg16_voc07.RECIPE
RECIPE = replace(
    _BASE,
    model=replace(_BASE.model, pixel_mean=(122.7717, 115.9465, 102.9801)),
    train=replace(_BASE.train, epochs=6.0, lr_steps=(5.0,), clip=0.0, rois=256, rpn_min_size=0.0),
    eval=replace(_BASE.eval, rpn_min_size=0.0, score=0.0, max_detections=100),
)
