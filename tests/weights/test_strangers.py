import pytest
import torch

from rcnn.models.heads import FCHead, Layer4Head
from rcnn.models.resnet import ResNetC4
from rcnn.models.vgg import VGG16
from rcnn.weights.mxnet import RENAME
from rcnn.weights.strangers import refuse_strangers


@pytest.mark.parametrize(
    ("names", "program"),
    [
        (("backbone.body.conv1.weight", "rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"), "torchvision"),
        (("rpn.head.conv.weight", "roi_heads.box_predictor.cls_score.weight"), "torchvision"),
        (("backbone.bottom_up.stem.conv1.weight", "roi_heads.box_predictor.cls_score.weight"), "detectron2"),
        (("backbone.res2.0.conv1.weight", "roi_heads.box_predictor.bbox_pred.weight"), "detectron2"),
        (("rpn.head.conv.weight", "roi_heads.box.predictor.cls_score.weight"), "maskrcnn-benchmark"),
        (("backbone.layer1.0.conv1.weight", "rpn_head.rpn_conv.weight"), "mmdetection"),
        (("bbox_head.fc_cls.weight",), "mmdetection"),
        (("vgg.features.0.weight", "rpn_cls_score_net.weight"), r"pytorch-faster-rcnn \(ruotianluo\)"),
        (("transformer.encoder.layers.0.linear1.weight", "class_embed.weight"), "the DETR family"),
    ],
)
def test_definition_detectors_by_their_names(names: tuple[str, ...], program: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a\.pth: this is a detector of {program} \(.*\), which is not read yet.*are"
    ):
        refuse_strangers(names, source="a.pth")


def test_our_own_names_and_those_that_are_read_pass() -> None:
    with torch.device("meta"):
        ours = {f"backbone.{name}" for model in (VGG16(), ResNetC4(50)) for name in model.state_dict()}
        heads = (FCHead(512, 7, hidden=8, dropout=0.0, num_classes=3), Layer4Head(50, 3))
        ours |= {f"head.{name}" for head in heads for name in head.state_dict()}
    others = {"extractor.0.weight", "RCNN_base.0.weight", "features.0.weight", "layer1.0.conv1.weight", "fc.weight"}
    refuse_strangers(ours | others | {"rpn.conv.weight", "rpn.cls.weight", *RENAME}, source="a.pth")
