"""VGG16 on COCO, as mx-rcnn trained it end to end.

    rcnn train vgg16_coco --data.root data/coco --model.pretrained weights/VGG_ILSVRC_16_layers.caffemodel
    rcnn test runs/vgg16_coco --data.root data/coco

Expected: AP 22.8 on val: mx-rcnn's README (train2014 -> val2014), py-faster-rcnn 21.2. Not measured here. The sets of
2017: --data.train train2017 --data.test val2017.
"""

from dataclasses import replace

from rcnn.config import Data, Eval
from rcnn.recipes import vgg16_voc07

RECIPE = replace(
    vgg16_voc07.RECIPE,
    data=Data(format="coco", root="data/coco", train="train2014", test="val2014"),
    eval=Eval(max_detections=100),
)
