"""VGG16 on VOC 2007, as mx-rcnn trained it end to end.

    rcnn train vgg16_voc07 --data.root data/VOCdevkit --model.pretrained weights/vgg16.pth
    rcnn test runs/vgg16_voc07 --data.root data/VOCdevkit

Expected: mAP 70.2 (11 points) on VOC 2007 test: mx-rcnn's README has 70.23, the paper 69.9. Not measured here: neither
the data nor ImageNet weights of VGG16 could be had where this was written. The pixel mean is that of the Caffe and MXNet
weights; torchvision's VGG16 wants --model.pixel_mean 123.675 116.28 103.53 --model.pixel_std 58.395 57.12 57.375.
"""

from rcnn.config import Data, Recipe

RECIPE = Recipe(data=Data(format="voc", root="data/VOCdevkit", train="2007_trainval", test="2007_test"))
