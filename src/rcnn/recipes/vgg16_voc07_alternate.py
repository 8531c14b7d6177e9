"""VGG16 on VOC 2007 by 4-step alternate training, as mx-rcnn's train_alternate.py.

    rcnn train vgg16_voc07_alternate --model.pretrained weights/VGG_ILSVRC_16_layers.caffemodel
    rcnn test runs/vgg16_voc07_alternate

Expected: mAP 69.6 (11 points) on VOC 2007 test: mx-rcnn's README has 69.62, the paper 69.9. Not measured here. The run
directory holds the phases rpn1, rcnn1, rpn2 and rcnn2, each a run of its own with its model, and the detector joined of
the last two. RPN phases take one image a step, Fast R-CNN phases two with 64 RoIs each; 8 epochs, a drop after 6.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_voc07

RECIPE = replace(
    vgg16_voc07.RECIPE,
    train=replace(
        vgg16_voc07.RECIPE.train, method="alternate", epochs=8.0, lr_steps=(6.0,), fast_batch=2, fast_rois=64
    ),
)
