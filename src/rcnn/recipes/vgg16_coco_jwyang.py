"""VGG16 on COCO with the conventions of jwyang's faster-rcnn.pytorch, to use its checkpoints.

    rcnn convert faster_rcnn_1_6_14657.pth --recipe vgg16_coco_jwyang --out model.safetensors
    rcnn test model.safetensors --data.root data/coco

Expected: not measured here. Twelve anchors: a fourth size of 64 px.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_coco, vgg16_voc07_jwyang

_BASE = vgg16_voc07_jwyang.RECIPE
RECIPE = replace(_BASE, data=vgg16_coco.RECIPE.data, model=replace(_BASE.model, anchor_scales=(4.0, 8.0, 16.0, 32.0)))
