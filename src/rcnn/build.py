"""The composition root: turns a recipe into models, sets, loaders and steps. The sole reader of the configuration."""

import json
import math
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcnn.config import Data, Eval, Model, Recipe, Train, recipe_from_dict, recipe_to_dict
from rcnn.data.canvases import measure_limits
from rcnn.data.loader import Loader
from rcnn.data.open import open_dataset
from rcnn.data.records import Dataset, RecordTable
from rcnn.data.voc import VOC_CLASSES
from rcnn.inference.predictor import Predictor
from rcnn.inference.step import DetectStep, place
from rcnn.models.faster_rcnn import DetectionRules, FasterRCNN, ProposalRules
from rcnn.models.heads import FCHead, Layer4Head, RoiHead, Stage4HeadV2
from rcnn.models.resnet import ResNetC4
from rcnn.models.resnet_v2 import ResNetV2C4
from rcnn.models.rpn import RPN
from rcnn.models.vgg import VGG16
from rcnn.training.losses import JointRules, joint_loss
from rcnn.training.schedule import Schedule
from rcnn.training.step import TrainStep, sgd
from rcnn.training.targets import AnchorRules, RoiRules
from rcnn.weights import safetensors
from rcnn.weights.open import read_weights
from rcnn.weights.pixels import PixelRange, match_pixels
from rcnn.weights.transfer import TransferReport, load_into

FORMAT = "rcnn-1"  # of the header of model.safetensors


def choose_device(name: str) -> torch.device:
    """The device by name; auto is CUDA where there is one, else the CPU.

    Raises:
        ValueError: the name means nothing here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: {device.type} is not supported; use auto, cpu, cuda or cuda:1")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions run in bfloat16: `auto` asks whether the processor computes in it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_values(recipe: Recipe) -> None:
    """Refuse values that no training can use.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    train = recipe.train
    smallest = {"batch": 1, "keep": 1, "log_every": 1, "rois": 1, "rpn_rois": 1, "rpn_pre_nms": 1, "rpn_post_nms": 1}
    for name, least in smallest.items():
        if getattr(train, name) < least:
            raise ValueError(f"--train.{name} {getattr(train, name)}: must be at least {least}")
    for name in ("epochs", "lr", "save_every"):
        if not getattr(train, name) > 0:
            raise ValueError(f"--train.{name} {getattr(train, name)}: must be above 0")
    if train.compile and recipe.data.canvas == "exact":
        raise ValueError(
            "--data.canvas exact with --train.compile: a program for every size; use --data.canvas grouped"
        )


def build_model(model: Model, rules: Eval, num_classes: int) -> FasterRCNN:
    """The detector with random weights."""
    backbone = _build_backbone(model.backbone)
    rpn = RPN(
        backbone.channels,
        hidden=model.rpn_channels,
        scales=model.anchor_scales,
        ratios=model.anchor_ratios,
        stride=backbone.stride,
        offset=model.offset,
        partial_cells=model.partial_cells,
    )
    detector = FasterRCNN(
        backbone,
        rpn,
        _build_head(model, backbone.channels, num_classes),
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        offset=model.offset,
        roi_op=model.roi_op,
        roi_size=model.roi_size,
        box_std=model.box_std,
        proposal_rules=ProposalRules(rules.rpn_pre_nms, rules.rpn_post_nms, rules.rpn_nms, rules.rpn_min_size),
        detection_rules=DetectionRules(rules.score, rules.nms, rules.max_detections),
    )
    _freeze(backbone, model.frozen)
    return detector


def _build_backbone(name: str) -> VGG16 | ResNetC4 | ResNetV2C4:
    if name == "vgg16":
        return VGG16()
    depth = int(name.removeprefix("resnet").removesuffix("_v2"))
    return ResNetV2C4(depth) if name.endswith("_v2") else ResNetC4(depth)


def _build_head(model: Model, channels: int, num_classes: int) -> RoiHead:
    if model.head == "fc":
        size, hidden = model.roi_size, model.head_hidden
        return FCHead(channels, size, hidden=hidden, dropout=model.dropout, num_classes=num_classes)
    if model.backbone == "vgg16":
        raise ValueError("--model.head stage4: VGG16 has no fourth stage; use --model.head fc")
    depth = int(model.backbone.removeprefix("resnet").removesuffix("_v2"))
    return Stage4HeadV2(depth, num_classes) if model.backbone.endswith("_v2") else Layer4Head(depth, num_classes)


def _freeze(backbone: nn.Module, prefixes: tuple[str, ...]) -> None:
    names = [name for name, _ in backbone.named_parameters()]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            stages = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
            raise ValueError(f"--model.frozen {prefix}: no such stage in this backbone; it has {stages}")
    for name, parameter in backbone.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)


def load_pretrained(detector: FasterRCNN, model: Model, classes: tuple[str, ...]) -> TransferReport:
    """Copy what fits of the recipe's weights file into the detector, its input range matched to the recipe's."""
    tensors, source = read_weights(model.pretrained, model.backbone)
    tensors = match_pixels(tensors, source.pixels, PixelRange(model.pixel_mean, model.pixel_std))
    return load_into(detector, tensors, source=str(source), classes=classes, source_classes=source.classes)


def open_set(
    data: Data, image_set: str, *, classes: tuple[str, ...], offset: float, pictures: bool = True
) -> RecordTable:
    """The records of one set; with `pictures` off the image files need not be there."""
    chosen = classes or data.classes
    return open_dataset(data.format, data.root, image_set, chosen, offset, data.strict, pictures)


def build_train_loader(recipe: Recipe, dataset: Dataset) -> Loader:
    """Shuffled, flipped batches of the training set."""
    data, train = recipe.data, recipe.train
    flip = "none" if not data.flip else "both" if train.epoch_of_flips else "random"
    return _build_loader(recipe, dataset, batch=train.batch, flip=flip, shuffle=True)


def build_test_loader(recipe: Recipe, dataset: Dataset) -> Loader:
    """Every image once, in order of canvas."""
    return _build_loader(recipe, dataset, batch=recipe.eval.batch, flip="none", shuffle=False)


def _build_loader(recipe: Recipe, dataset: Dataset, *, batch: int, flip: Any, shuffle: bool) -> Loader:
    data = recipe.data
    limits = measure_limits(
        dataset,
        short=data.short_side,
        long=data.long_side,
        multiple=data.canvas_multiple,
        max_boxes=data.max_boxes,
        canvas=data.canvas,
    )
    return Loader(
        dataset,
        limits,
        batch=batch,
        short=data.short_side,
        long=data.long_side,
        offset=recipe.model.offset,
        flip=flip,
        shuffle=shuffle,
        seed=recipe.train.seed,
        workers=data.workers,
    )


def build_rules(train: Train) -> JointRules:
    """The values of the joint loss."""
    return JointRules(
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
    """The model on its device in training, with loss and optimiser."""
    model = place(model, device).train()
    return TrainStep(
        model,
        partial(joint_loss, rules=build_rules(train)),
        sgd(model, momentum=train.momentum, weight_decay=train.weight_decay),
        clip=train.clip,
        bf16=use_bf16(train.precision, device),
        backend="inductor" if train.compile else None,
    )


def build_schedule(train: Train, steps_per_epoch: int) -> Schedule:
    """The learning rate of every step of the run."""
    return Schedule(
        lr=train.lr * (train.batch / train.lr_batch if train.scale_lr else 1),
        total=max(1, math.ceil(train.epochs * steps_per_epoch)),
        warmup=train.warmup,
        drops=tuple(round(epoch * steps_per_epoch) for epoch in train.lr_steps),
        factor=train.lr_factor,
        final=train.lr_final if train.schedule == "cosine" else None,
    )


def build_detect_step(rules: Eval, model: FasterRCNN, device: torch.device) -> DetectStep:
    """The model on its device, ready to detect on batches."""
    return DetectStep(model, device=device, bf16=use_bf16(rules.precision, device))


def save_model(path: Path, model: FasterRCNN, recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Write weights with all that is needed to use them: recipe, class names, conventions."""
    header = {
        "format": FORMAT,
        "recipe": json.dumps(recipe_to_dict(recipe)),
        "classes": json.dumps(classes),
        "conventions": f"boxes x1 y1 x2 y2, offset {recipe.model.offset:g}; label 0 background, 1..{len(classes)}; RGB",
    }
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.save(path, tensors, header)


def convert(source: Path, out: Path, recipe: Recipe, classes: tuple[str, ...]) -> str:
    """Write weights of another program as ours: a model if the file holds a detector, else a backbone's weights.

    Returns:
        The table of what was kept, initialised and skipped.

    Raises:
        ValueError: the file is not the recipe's network, or the class names do not fit it.
    """
    tensors, origin = read_weights(source, recipe.model.backbone)
    pixels = PixelRange(recipe.model.pixel_mean, recipe.model.pixel_std)
    tensors = match_pixels(tensors, origin.pixels, pixels)
    rows = tensors.get("head.cls_score.weight")
    names = _names_of(len(rows) - 1, classes or origin.classes, source) if rows is not None else ("object",)
    model = build_model(recipe.model, recipe.eval, len(names))
    report = load_into(model, tensors, source=str(origin))
    if rows is None:
        kept = {line.name for line in report.kept}
        header = {"format": "rcnn-backbone-1", "recipe": json.dumps(recipe_to_dict(recipe))}
        safetensors.save(out, {name: x.contiguous() for name, x in model.state_dict().items() if name in kept}, header)
    elif report.initialised:
        raise ValueError(f"{source}: is no whole detector of this recipe\n{report.format()}")
    else:
        data = replace(recipe.data, classes=names, canvas="exact")  # old programs test without padding
        save_model(out, model, replace(recipe, data=data), names)
    return report.format()


def _names_of(count: int, names: tuple[str, ...], source: Path) -> tuple[str, ...]:
    if not names and count == len(VOC_CLASSES):
        return VOC_CLASSES
    if len(names) != count:
        raise ValueError(f"{source}: knows {count} classes, {len(names)} names are given; name each with --classes")
    return names


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
    recipe = recipe_from_dict(json.loads(header["recipe"]), where=f"{path}, recipe in the header")
    return recipe, tuple(json.loads(header["classes"]))


def load_model(path: Path, recipe: Recipe, num_classes: int) -> FasterRCNN:
    """The detector with the weights of one of our own files, all of them and nothing else."""
    tensors, _ = safetensors.load(path)
    model = build_model(recipe.model, recipe.eval, num_classes)
    report = load_into(model, tensors, source=str(path))
    if report.initialised or report.skipped:
        raise ValueError(f"{path}: does not fit the recipe in its own header\n{report.format()}")
    return model


def load(path: str | PathLike[str], device: str = "auto", *, threshold: float = 0.0) -> Predictor:
    """A detector for pictures from a `model.safetensors` or a run directory."""
    file = model_path(path)
    recipe, classes = read_model_header(file)
    model = load_model(file, recipe, len(classes))
    data = recipe.data
    return Predictor(
        build_detect_step(recipe.eval, model, choose_device(device)),
        classes,
        short=data.short_side,
        long=data.long_side,
        multiple=1 if data.canvas == "exact" else data.canvas_multiple,
        threshold=threshold,
    )
