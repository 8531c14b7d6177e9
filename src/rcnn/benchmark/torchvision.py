"""The network of a recipe built from torchvision's parts, with the same sizes, rules and frozen layers.

Where the two differ, it is in torchvision's favour: pictures arrive as floats and are not resized, the head has no
dropout, and gradients are not clipped.
"""

from collections import OrderedDict
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rcnn import build
from rcnn.benchmark.network import (
    LEARNING_RATE,
    SEED,
    favour_one_class,
    made_up_batch,
    num_classes,
    spread_outputs,
)
from rcnn.benchmark.settings import Mode, Settings
from rcnn.benchmark.task import Task
from rcnn.config import Model, Recipe
from rcnn.models.initial import initialise
from rcnn.models.vgg import VGG16

STRIDE = 16


def load_torchvision() -> ModuleType:
    """The package, once it is certain that its operators run.

    Raises:
        ValueError: it is not installed, or does not fit the installed torch.
    """
    try:
        torchvision = import_module("torchvision")
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"--against torchvision: it does not work here ({first}); install the torchvision of this torch "
            f"({torch.__version__}) from the same index as torch, or leave --against out"
        ) from error
    return torchvision


def open_network(settings: Settings, mode: Mode) -> Task:
    """torchvision's network ready to run, with random weights like ours."""
    tuned, bf16 = not mode.startswith("default"), mode.startswith("best")
    recipe, device = settings.recipe, build.choose_device(settings.device)
    bf16 = bf16 and build.use_bf16("auto", device)
    torch.manual_seed(SEED)
    model = build_detector(recipe, num_classes(recipe), height=settings.height, width=settings.width)
    images, targets = _inputs(settings, device)
    layout = {"memory_format": torch.channels_last} if tuned else {}
    model = model.to(device, **layout)
    _like_trained(model, images)
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    about = ("bf16" if bf16 else "fp32", device, settings.batch, model.roi_heads.box_head)
    if settings.what == "infer":
        return Task(_Inference(model.eval(), images, autocast), *about)
    trained = [p for p in model.parameters() if p.requires_grad]
    momentum, decay = recipe.train.momentum, recipe.train.weight_decay
    optimiser = torch.optim.SGD(trained, LEARNING_RATE, momentum, weight_decay=decay, fused=tuned or None)
    return Task(_Update(model.train(), images, targets, autocast, optimiser), *about)


class _Inference:
    def __init__(self, model: nn.Module, images: list[Tensor], autocast: Any) -> None:
        self.model, self.images, self.autocast = model, images, autocast

    @torch.no_grad()
    def __call__(self) -> list[dict[str, Tensor]]:
        with self.autocast:
            found = self.model(self.images)
        return [{name: value.cpu() for name, value in image.items()} for image in found]


class _Update:
    def __init__(
        self, model: nn.Module, images: list[Tensor], targets: list[dict], autocast: Any, optimiser: Any
    ) -> None:
        self.model, self.images, self.targets = model, images, targets
        self.autocast, self.optimiser = autocast, optimiser

    def __call__(self) -> None:
        with self.autocast:
            losses = self.model(self.images, self.targets)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def _inputs(settings: Settings, device: torch.device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    count = num_classes(settings.recipe)
    batch = made_up_batch(settings.batch, settings.height, settings.width, count)
    images = [image.permute(2, 0, 1).float().contiguous().to(device) for image in batch.images]
    targets = [
        {"boxes": boxes[valid].to(device), "labels": labels[valid].to(device)}
        for boxes, labels, valid in zip(batch.boxes, batch.labels, batch.boxes_valid, strict=True)
    ]
    return images, targets


def build_detector(recipe: Recipe, classes: int, *, height: int, width: int) -> Any:
    """torchvision's FasterRCNN of the recipe; pictures must come in the size of the canvas.

    Raises:
        ValueError: it has no such network, or does not work here.
    """
    model, rules, train = recipe.model, recipe.eval, recipe.train
    if model.backbone.endswith("_v2"):
        raise ValueError(
            f"--against torchvision: it has no pre-activation ResNet ({model.backbone}); "
            f"choose a --recipe with vgg16 or a ResNet without _v2"
        )
    torchvision = load_torchvision()
    backbone, head, channels = _trunk_and_head(torchvision, model)
    rpn, faster_rcnn = (import_module(f"torchvision.models.detection.{name}") for name in ("rpn", "faster_rcnn"))
    sizes = tuple(scale * STRIDE for scale in model.anchor_scales)
    detector = torchvision.models.detection.FasterRCNN(
        backbone,
        min_size=min(height, width),
        max_size=max(height, width),
        size_divisible=1,
        image_mean=model.pixel_mean,
        image_std=model.pixel_std,
        rpn_anchor_generator=rpn.AnchorGenerator((sizes,), (model.anchor_ratios,)),
        rpn_head=_rpn_head(rpn, backbone.out_channels, model),
        rpn_pre_nms_top_n_train=train.rpn_pre_nms,
        rpn_pre_nms_top_n_test=rules.rpn_pre_nms,
        rpn_post_nms_top_n_train=train.rpn_post_nms,
        rpn_post_nms_top_n_test=rules.rpn_post_nms,
        rpn_nms_thresh=rules.rpn_nms,
        rpn_fg_iou_thresh=train.rpn_positive_iou,
        rpn_bg_iou_thresh=train.rpn_negative_iou,
        rpn_batch_size_per_image=train.rpn_rois,
        rpn_positive_fraction=train.rpn_positive_share,
        box_head=head,
        box_predictor=faster_rcnn.FastRCNNPredictor(channels, classes + 1),
        box_score_thresh=rules.score,
        box_nms_thresh=rules.nms,
        box_detections_per_img=rules.max_detections,
        box_fg_iou_thresh=train.roi_positive_iou,
        box_bg_iou_thresh=train.roi_positive_iou,
        box_batch_size_per_image=train.rois,
        box_positive_fraction=train.roi_positive_share,
        bbox_reg_weights=tuple(1 / std for std in model.box_std),
    )
    detector.roi_heads.box_roi_pool = _Pool(torchvision, model)
    detector.rpn.min_size = rules.rpn_min_size
    detector.transform.resize = _keep_size
    return detector


def _keep_size(image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
    return image, target


class _Pool(nn.Module):
    """The recipe's RoI operator in the place of torchvision's pyramid of them."""

    def __init__(self, torchvision: ModuleType, model: Model) -> None:
        super().__init__()
        self.ops, self.size, self.align = torchvision.ops, model.roi_size, model.roi_op == "align"

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Any) -> Tensor:
        x = features["0"]
        if self.align:
            return self.ops.roi_align(x, proposals, self.size, 1 / STRIDE, sampling_ratio=2, aligned=True)
        rois = [boxes.float() for boxes in proposals]  # roi_pool is in no list of autocast and knows no bf16
        return self.ops.roi_pool(x.float(), rois, self.size, 1 / STRIDE)


def _rpn_head(rpn: ModuleType, channels: int, model: Model) -> Any:
    anchors = len(model.anchor_scales) * len(model.anchor_ratios)
    head = rpn.RPNHead(model.rpn_channels, anchors)
    if channels != model.rpn_channels:
        head.conv = nn.Sequential(nn.Conv2d(channels, model.rpn_channels, 3, padding=1), nn.ReLU(inplace=True))
    return head


def _trunk_and_head(torchvision: ModuleType, model: Model) -> tuple[Any, nn.Module, int]:
    """Backbone with `out_channels`, second stage, and the channels that it gives."""
    trunk, head, channels = _vgg(model) if model.backbone == "vgg16" else _resnet(torchvision, model)
    if model.head == "stage4":
        return trunk, head, channels
    mlp = import_module("torchvision.models.detection.faster_rcnn").TwoMLPHead
    return trunk, mlp(trunk.out_channels * model.roi_size**2, model.head_hidden), model.head_hidden


def _vgg(model: Model) -> tuple[Any, nn.Module, int]:
    vgg = import_module("torchvision.models.vgg")
    trunk: Any = vgg.make_layers(vgg.cfgs["D"])[:-1]  # without the last pooling
    initialise(trunk)
    with torch.device("meta"):
        names = [name for name, _ in VGG16().named_children()]
    convolutions = [layer for layer in trunk if isinstance(layer, nn.Conv2d)]
    for name, layer in zip(names, convolutions, strict=True):
        layer.requires_grad_(not name.startswith(model.frozen))
    trunk.out_channels = 512
    return trunk, nn.Identity(), 0


def _resnet(torchvision: ModuleType, model: Model) -> tuple[Any, nn.Module, int]:
    body = getattr(torchvision.models, model.backbone)(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    initialise(body, last_of_block=("conv2",) if model.backbone == "resnet18" else ("conv3",))
    channels = body.fc.in_features
    stages = list(body.named_children())
    end = [name for name, _ in stages].index("layer4")
    trunk: Any = nn.Sequential(OrderedDict(stages[:end]))
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(not name.startswith(model.frozen))
    trunk.out_channels = channels // 2
    return trunk, nn.Sequential(body.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


@torch.no_grad()
def _like_trained(model: Any, images: list[Tensor]) -> None:
    prepared, _ = model.transform(images)
    hidden = model.rpn.head.conv(model.backbone(prepared.tensors))
    spread_outputs(hidden, logits=model.rpn.head.cls_logits, deltas=model.rpn.head.bbox_pred)
    favour_one_class(model.roi_heads.box_predictor.cls_score)
