"""Pre-activation ResNet-101 on VOC 2007 by 4-step alternate training (mx-rcnn had none with a ResNet).

    rcnn train r101_voc07_alternate --data.root data/VOCdevkit --model.pretrained resnet-101-0000.params
    rcnn test runs/r101_voc07_alternate --data.root data/VOCdevkit

Expected: not measured here. Phases as in vgg16_voc07_alternate; the head is the network's last stage.
"""

from dataclasses import replace

from rcnn.recipes import r101_voc07, vgg16_voc07_alternate

RECIPE = replace(vgg16_voc07_alternate.RECIPE, model=r101_voc07.RECIPE.model)
