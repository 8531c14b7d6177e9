"""The composition root: turns a recipe into models, sets, loaders and steps. The sole reader of the configuration."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rcnn import processes
from rcnn.config import Data, Eval, Model, Recipe, Train, recipe_from_dict, recipe_to_dict
from rcnn.data.canvases import measure_limits
from rcnn.data.loader import Loader
from rcnn.data.open import open_dataset
from rcnn.data.proposals import ProposalTable, open_proposals
from rcnn.data.records import Dataset, RecordTable
from rcnn.data.voc import VOC_CLASSES
from rcnn.inference.device import choose_device, use_bf16
from rcnn.inference.predictor import Predictor
from rcnn.inference.step import DetectStep, ProposeStep, place
from rcnn.models.faster_rcnn import DetectionRules, FasterRCNN, ProposalRules
from rcnn.models.heads import FCHead, Layer4Head, RoiHead, Stage4HeadV2
from rcnn.models.initial import Undrawn
from rcnn.models.quantised import check_steps, quantise_layers
from rcnn.models.resnet import ResNetC4
from rcnn.models.resnet_v2 import ResNetV2C4
from rcnn.models.rpn import RPN
from rcnn.models.vgg import VGG16
from rcnn.training.distributed import own_share
from rcnn.training.losses import LossRules, fast_rcnn_loss, joint_loss, rpn_loss
from rcnn.training.methods import UNTRAINED
from rcnn.training.schedule import Schedule
from rcnn.training.step import TrainStep, sgd
from rcnn.training.targets import AnchorRules, RoiRules
from rcnn.weights import safetensors
from rcnn.weights.classes import COCO_CLASSES, name_classes
from rcnn.weights.open import Pixels, read_weights
from rcnn.weights.pixels import PixelRange, match_pixels
from rcnn.weights.transfer import TransferReport, load_into

logger = logging.getLogger("rcnn.data")
FORMAT = "rcnn-1"  # of the header of model.safetensors
ONLY_RPN = (
    "holds a region proposal network and no detector; use it with rcnn proposals, or join it with a Fast R-CNN that "
    "shares its backbone: rcnn combine"
)


def check_values(recipe: Recipe) -> None:
    """Refuse values that no training can use.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    train = recipe.train
    ones = ("batch", "keep", "log_every", "rois", "rpn_rois", "rpn_pre_nms", "rpn_post_nms")
    for name, least in {"total_batch": 0, **dict.fromkeys(ones, 1)}.items():
        if getattr(train, name) < least:
            raise ValueError(f"--train.{name} {getattr(train, name)}: must be at least {least}")
    for name in ("epochs", "lr", "save_every"):
        if not getattr(train, name) > 0:
            raise ValueError(f"--train.{name} {getattr(train, name)}: must be above 0")
    if recipe.model.int8:
        raise ValueError("--model.int8: int8 is for inference; train without it, then rcnn convert RUN --int8")
    if train.method == "fast_rcnn" and not recipe.data.train_proposals:
        raise ValueError(
            "--train.method fast_rcnn: wants the proposals of the training set, --data.train_proposals FILE; "
            "rcnn proposals makes one"
        )
    if train.compile and recipe.data.canvas == "exact":
        raise ValueError(
            "--data.canvas exact with --train.compile: a program for every size; use --data.canvas grouped"
        )


def build_model(model: Model, rules: Eval, num_classes: int) -> FasterRCNN:
    """The detector with random weights."""
    backbone = _build_backbone(model.backbone)
    rpn = RPN(
        backbone.channels, hidden=model.rpn_channels, scales=model.anchor_scales, ratios=model.anchor_ratios,
        stride=backbone.stride, offset=model.offset, partial_cells=model.partial_cells,
    )  # fmt: skip
    detector = FasterRCNN(
        backbone,
        rpn,
        _build_head(model, backbone.channels, num_classes),
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        offset=model.offset,
        beyond=model.beyond,
        roi_op=model.roi_op,
        roi_size=model.roi_size,
        box_std=model.box_std,
        proposal_rules=ProposalRules(rules.rpn_pre_nms, rules.rpn_post_nms, rules.rpn_nms, rules.rpn_min_size),
        detection_rules=DetectionRules(rules.score, rules.nms, rules.max_detections),
    )
    _freeze(backbone, model.frozen)
    if model.int8:
        quantise_layers(detector)
    return detector


def _build_backbone(name: str) -> VGG16 | ResNetC4 | ResNetV2C4:
    if name == "vgg16":
        return VGG16()
    depth = int(name.removeprefix("resnet").removesuffix("_v2"))
    return ResNetV2C4(depth) if name.endswith("_v2") else ResNetC4(depth)


def _build_head(model: Model, channels: int, num_classes: int) -> RoiHead:
    if model.head == "fc":
        size, hidden, dropout, svd = model.roi_size, model.head_hidden, model.dropout, model.svd
        return FCHead(channels, size, hidden=hidden, dropout=dropout, num_classes=num_classes, svd=svd)
    if model.backbone == "vgg16":
        raise ValueError("--model.head stage4: VGG16 has no fourth stage; use --model.head fc")
    depth = int(model.backbone.removeprefix("resnet").removesuffix("_v2"))
    return Stage4HeadV2(depth, num_classes) if model.backbone.endswith("_v2") else Layer4Head(depth, num_classes)


def _freeze(backbone: nn.Module, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in backbone.named_parameters()]
    if "all" in prefixes:
        prefixes = ("",)
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            stages = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"--model.frozen {prefix}: no such stage in this backbone; it has {stages}; or all")
    for name, parameter in backbone.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)


def load_pretrained(detector: FasterRCNN, model: Model, classes: tuple[str, ...]) -> TransferReport:
    """Copy what fits of the recipe's weights file into the detector, its input range matched to the recipe's."""
    tensors, source = read_weights(model.pretrained, model.backbone)
    tensors = match_pixels(tensors, source.pixels, PixelRange(model.pixel_mean, model.pixel_std), source=source)
    return load_into(detector, tensors, source=str(source), classes=classes, source_classes=source.classes)


def open_set(
    data: Data, image_set: str, *, classes: tuple[str, ...], offset: float, pictures: bool = True
) -> RecordTable:
    """The records of one set; with `pictures` off the image files need not be there."""
    chosen = classes or data.classes
    return open_dataset(data.format, data.root, image_set, chosen, offset, data.strict, pictures)


def open_given_proposals(recipe: Recipe, dataset: Dataset, files: str) -> ProposalTable:
    """The best proposals of every image of the set from the user's files, in the recipe's convention of boxes."""
    table = open_proposals(files, dataset, offset=recipe.model.offset).limit(recipe.data.max_proposals)
    if table.num_dropped:
        logger.warning(
            "%s: left out %d proposals after the best %d of an image; --data.max_proposals takes more",
            files, table.num_dropped, recipe.data.max_proposals,
        )  # fmt: skip
    return table


def test_proposals(path: Path, recipe: Recipe, dataset: Dataset) -> ProposalTable | None:
    """The proposals in which the model of `path` is to be tested; None: its own RPN makes them.

    Raises:
        ValueError: it has no RPN and no file is named, or it has nothing but the RPN.
    """
    if recipe.train.method == "rpn":
        raise ValueError(f"{path}: {ONLY_RPN}")
    if recipe.data.test_proposals:
        return open_given_proposals(recipe, dataset, recipe.data.test_proposals)
    if recipe.train.method == "fast_rcnn":
        raise ValueError(
            f"{path}: is a Fast R-CNN, which has no RPN; give proposals of {recipe.data.test}, "
            f"--data.test_proposals FILE (rcnn proposals makes one)"
        )
    return None


def build_train_loader(recipe: Recipe, dataset: Dataset, proposals: ProposalTable | None = None) -> Loader:
    """Shuffled, flipped batches of the training set."""
    data, train = recipe.data, recipe.train
    flip = "none" if not data.flip else "both" if train.epoch_of_flips else "random"
    share = own_share(train.batch, train.total_batch)
    return _build_loader(recipe, dataset, proposals, batch=share.images, places=share.places, flip=flip, shuffle=True)


def build_test_loader(recipe: Recipe, dataset: Dataset, proposals: ProposalTable | None = None) -> Loader:
    """Every image once, in order of canvas."""
    return _build_loader(recipe, dataset, proposals, batch=recipe.eval.batch, places=0, flip="none", shuffle=False)


def _build_loader(
    recipe: Recipe, dataset: Dataset, proposals: ProposalTable | None, *, batch: int, places: int, flip: Any,
    shuffle: bool,
) -> Loader:  # fmt: skip
    data, sides = recipe.data, recipe.data.train_sides if shuffle else ()
    limits = measure_limits(
        dataset, short=data.short_side, long=data.long_side, multiple=data.canvas_multiple, max_boxes=data.max_boxes,
        canvas=data.canvas, sides=sides,
    )  # fmt: skip
    if proposals is not None:
        limits = limits._replace(proposals=max(1, int(proposals.num_boxes.max(initial=0))))
    return Loader(
        dataset, limits, sides=sides, proposals=proposals, batch=batch, short=data.short_side, long=data.long_side,
        offset=recipe.model.offset, flip=flip, shuffle=shuffle, seed=recipe.train.seed, workers=data.workers,
        rank=processes.rank(), world=processes.world(), places=places,
    )  # fmt: skip


def build_rules(train: Train) -> LossRules:
    """The values of the losses."""
    return LossRules(
        anchors=AnchorRules(
            train.rpn_rois,
            train.rpn_positive_share,
            train.rpn_positive_iou,
            train.rpn_negative_iou,
            train.rpn_border,
            train.ignore_overlap,
            train.rpn_low_best,
        ),
        proposals=ProposalRules(train.rpn_pre_nms, train.rpn_post_nms, train.rpn_nms, train.rpn_min_size),
        rois=RoiRules(
            train.rois, train.roi_positive_share, train.roi_positive_iou, train.roi_background_iou, train.ignore_overlap
        ),
        rpn_sigma=train.rpn_sigma,
        head_sigma=train.head_sigma,
    )


def build_train_step(train: Train, model: FasterRCNN, device: torch.device) -> TrainStep:
    """The model on its device in training, with loss and optimiser; what the method leaves out is frozen."""
    model = place(model, device).train()
    assert train.method in UNTRAINED, "alternate training is made of phases"
    for name, parameter in model.named_parameters():
        if name.startswith(UNTRAINED[train.method]):
            parameter.requires_grad_(False)
    losses = {"joint": joint_loss, "rpn": rpn_loss, "fast_rcnn": fast_rcnn_loss}
    return TrainStep(
        model,
        partial(losses[train.method], rules=build_rules(train)),
        sgd(model, momentum=train.momentum, weight_decay=train.weight_decay),
        clip=train.clip,
        bf16=use_bf16(train.precision, device),
        backend="inductor" if train.compile else None,
        share=own_share(train.batch, train.total_batch),
    )


def build_schedule(train: Train, steps_per_epoch: int) -> Schedule:
    """The learning rate of every step of the run."""
    images = own_share(train.batch, train.total_batch).images
    return Schedule(
        lr=train.lr * (images / train.lr_batch if train.scale_lr else 1),
        total=max(1, math.ceil(train.epochs * steps_per_epoch)),
        warmup=train.warmup,
        drops=tuple(round(epoch * steps_per_epoch) for epoch in train.lr_steps),
        factor=train.lr_factor,
        final=train.lr_final if train.schedule == "cosine" else None,
    )


def build_detect_step(rules: Eval, model: FasterRCNN, device: torch.device) -> DetectStep:
    """The model on its device, ready to detect on batches."""
    return DetectStep(model, device=device, bf16=use_bf16(rules.precision, device), winograd=rules.winograd)


def build_propose_step(rules: Eval, model: FasterRCNN, device: torch.device) -> ProposeStep:
    """Backbone and RPN on their device, ready to write proposals of batches to a file."""
    dump = ProposalRules(rules.dump_pre_nms, rules.dump_post_nms, rules.rpn_nms, rules.rpn_min_size)
    bf16 = use_bf16(rules.precision, device)
    return ProposeStep(model, dump, device=device, bf16=bf16, winograd=rules.winograd)


def save_model(path: Path, model: FasterRCNN, recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Write what was trained with all that is needed to use it: recipe, class names, conventions."""
    header = {
        "format": FORMAT,
        "recipe": json.dumps(recipe_to_dict(recipe)),
        "classes": json.dumps(classes),
        "conventions": f"boxes x1 y1 x2 y2, offset {recipe.model.offset:g}; label 0 background, 1..{len(classes)}; RGB",
    }
    left_out = UNTRAINED.get(recipe.train.method, ())
    tensors = {name: x.contiguous() for name, x in model.state_dict().items() if not name.startswith(left_out)}
    safetensors.save(path, tensors, header)


def convert(source: Path, out: Path, recipe: Recipe, classes: tuple[str, ...], pixels: Pixels = "auto") -> str:
    """Write weights of another program as ours: a model if the file holds a detector, else a backbone's weights.

    A detector keeps its own input range and conventions; weights of a backbone are matched to the recipe's range.

    Returns:
        The table of what was kept, initialised and skipped, and what the network takes.

    Raises:
        ValueError: the file is not the recipe's network, or the class names do not fit it.
    """
    tensors, origin = read_weights(source, recipe.model.backbone, pixels)
    rows, names = tensors.get("head.cls_score.weight"), ("object",)
    if rows is None:
        wanted = PixelRange(recipe.model.pixel_mean, recipe.model.pixel_std)
        tensors = match_pixels(tensors, origin.pixels, wanted, source=origin)
    else:
        names, known = classes or origin.classes, (VOC_CLASSES, COCO_CLASSES)
        names = name_classes(len(rows) - 1 if rows.dim() else 0, names, known=known, source=source)
        most = {"max_detections": recipe.eval.rpn_post_nms * len(names)} if origin.keeps_all else {}
        recipe = replace(
            recipe,
            data=replace(recipe.data, classes=names, canvas="exact"),  # old programs test without padding
            model=replace(recipe.model, **origin.model_fields()),
            eval=replace(recipe.eval, **most),
        )
    model = build_model(recipe.model, recipe.eval, len(names))
    report = load_into(model, tensors, source=str(origin))
    if rows is None:
        kept = {line.name for line in report.kept}
        header = {"format": "rcnn-backbone-1", "recipe": json.dumps(recipe_to_dict(recipe))}
        safetensors.save(out, {name: x.contiguous() for name, x in model.state_dict().items() if name in kept}, header)
    elif any(not line.name.startswith(UNTRAINED.get(recipe.train.method, ())) for line in report.initialised):
        raise ValueError(f"{source}: is no whole detector of this recipe\n{report.format()}")
    else:
        save_model(out, model, recipe, names)
    pixel_range = PixelRange(recipe.model.pixel_mean, recipe.model.pixel_std)
    return f"{report.format()}\ninput: {pixel_range}{'' if rows is None else origin.told()}"


def model_path(path: str | PathLike[str]) -> Path:
    """The weights file that the user means: the file itself, or the one of a run directory."""
    found = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if not found.is_file():
        hint = " (has the run finished?)" if Path(path).is_dir() else ""
        raise ValueError(f"{found}: no such file{hint}; give a model.safetensors or a run directory")
    return found


def read_model_header(path: Path) -> tuple[Recipe, tuple[str, ...]]:
    """Recipe and class names stored with the weights."""
    _, header = safetensors.load(path, header_only=True)
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path}: weights without a recipe (format {header.get('format')!r}, expected {FORMAT!r}); "
            f"use it to start a training: --model.pretrained {path}"
        )
    values, classes = (safetensors.header_value(path, header, *of) for of in (("recipe", dict), ("classes", list)))
    return recipe_from_dict(values, where=f"{path}, recipe in the header"), tuple(map(str, classes))


def load_model(path: Path, recipe: Recipe, num_classes: int) -> FasterRCNN:
    """The detector with the weights of one of our own files: all that its method trains; zeros elsewhere.

    The weights stay in the file, memory-mapped, until they are used; those that change get memory of their own.
    """
    tensors, _ = safetensors.load(path)
    with Undrawn():
        model = build_model(recipe.model, recipe.eval, num_classes)
    report = load_into(model, tensors, source=str(path), share=True)
    left_out = UNTRAINED.get(recipe.train.method, ())
    if report.skipped or not all(line.name.startswith(left_out) for line in report.initialised):
        raise ValueError(f"{path}: does not fit the recipe in its own header\n{report.format()}")
    for line in report.initialised:
        model.state_dict()[line.name].zero_()
    check_steps(model, path, left_out)
    return model


def load(path: str | PathLike[str], device: str = "auto", *, threshold: float = 0.0) -> Predictor:
    """A detector for pictures from a `model.safetensors` or a run directory."""
    file = model_path(path)
    recipe, classes = read_model_header(file)
    if recipe.train.method == "rpn":
        raise ValueError(f"{file}: {ONLY_RPN}")
    model = load_model(file, recipe, len(classes))
    data = recipe.data
    return Predictor(
        build_detect_step(recipe.eval, model, choose_device(device)),
        classes,
        short=data.short_side,
        long=data.long_side,
        multiple=1 if data.canvas == "exact" else data.canvas_multiple,
        threshold=threshold,
        propose=_selective_search(recipe) if recipe.train.method == "fast_rcnn" else None,
    )


def _selective_search(recipe: Recipe) -> Callable[[np.ndarray], np.ndarray]:
    """How a Fast R-CNN, which has no RPN, finds regions in a picture of the user."""
    from rcnn.data.selective_search import selective_search

    def propose(image: np.ndarray) -> np.ndarray:
        boxes = selective_search(image, mode="fast", most=recipe.data.max_proposals, seed=0)
        boxes[:, 2:] += 1 - recipe.model.offset  # they are inclusive
        return boxes

    return propose
