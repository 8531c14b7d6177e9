"""VGG16 on VOC 2007 as Fast R-CNN on selective search, as mx-rcnn's vgg_fast_rcnn.sh.

    rcnn download voc07 selective_search vgg16_caffemodel
    rcnn train vgg16_voc07_fast --model.pretrained weights/VGG_ILSVRC_16_layers.caffemodel
    rcnn test runs/vgg16_voc07_fast

Expected: mAP 66.5 (11 points) on VOC 2007 test: mx-rcnn's README has 66.50, the paper 66.9. Not measured here.
Two images a step, 64 RoIs each; background overlaps an object by 0.1 to 0.5 (Fast R-CNN 2.3; mx-rcnn meant to, and took
0 to 0.5); 8 epochs, a drop after 6, which mx-rcnn's slip never reached.
"""

from dataclasses import replace

from rcnn.recipes import vgg16_voc07

FOLDER = "data/selective_search_data"
RECIPE = replace(
    vgg16_voc07.RECIPE,
    data=replace(
        vgg16_voc07.RECIPE.data,
        train_proposals=f"{FOLDER}/voc_2007_trainval.mat",
        test_proposals=f"{FOLDER}/voc_2007_test.mat",
    ),
    train=replace(
        vgg16_voc07.RECIPE.train,
        method="fast_rcnn",
        epochs=8.0,
        lr_steps=(6.0,),
        batch=2,
        rois=64,
        roi_background_iou=(0.1, 0.5),
    ),
)
