"""NMS and the RoI operators of a recipe's sizes, ours and torchvision's."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rcnn import build
from rcnn.benchmark.ceiling import DTYPES
from rcnn.benchmark.network import SEED, made_up_boxes, num_classes, precision_name, with_precision
from rcnn.benchmark.settings import Settings
from rcnn.benchmark.task import Task
from rcnn.benchmark.torchvision import STRIDE, load_torchvision
from rcnn.ops.nms import nms
from rcnn.ops.roi import roi_align, roi_pool

Pool = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """The inputs of the RoI operators."""

    features: Tensor
    boxes: Tensor  # (batch, RoIs, 4), canvas px
    size: int


def open_ours(settings: Settings) -> dict[str, Task]:
    """Our operators, compiled or reference as RCNN_KERNELS and the machine have it."""
    device = build.choose_device(settings.device)
    precision = precision_name(with_precision(settings).eval.precision, device)
    case = _case(settings, device, DTYPES[precision], torch.channels_last)
    options = {"output_size": case.size, "spatial_scale": 1 / STRIDE}
    align = {**options, "sampling_ratio": 2, "aligned": True}
    pools: dict[str, Pool] = {
        "roi_pool": lambda x: roi_pool(x, case.boxes, **options),
        "roi_align": lambda x: roi_align(x, case.boxes, **align),
    }
    return {
        **{name: _our_nms(settings, device, *rule) for name, rule in _nms_rules(settings).items()},
        **_pool_tasks(pools, case, precision),
    }


def open_torchvision(settings: Settings) -> dict[str, Task]:
    """torchvision's operators, in float32 and its own layout."""
    ops = load_torchvision().ops
    device = build.choose_device(settings.device)
    case = _case(settings, device, torch.float32, torch.contiguous_format)
    rois = list(case.boxes)
    pools: dict[str, Pool] = {
        "roi_pool": lambda x: ops.roi_pool(x, rois, case.size, 1 / STRIDE),
        "roi_align": lambda x: ops.roi_align(x, rois, case.size, 1 / STRIDE, sampling_ratio=2, aligned=True),
    }
    return {
        **{name: _their_nms(ops, settings, device, *rule) for name, rule in _nms_rules(settings).items()},
        **_pool_tasks(pools, case, "fp32"),
    }


def _nms_rules(settings: Settings) -> dict[str, tuple[int, int, float]]:
    parts = (settings.recipe.eval, settings.recipe.train)
    rules = ((part.rpn_pre_nms, part.rpn_post_nms, part.rpn_nms) for part in parts)
    return {f"nms {rule[0]} to {rule[1]}": rule for rule in rules}


def _our_nms(settings: Settings, device: torch.device, count: int, k: int, threshold: float) -> Task:
    boxes, scores = _candidates(settings, device, count)
    valid = torch.ones_like(scores, dtype=torch.bool)
    offset = settings.recipe.model.offset
    return Task(
        lambda: nms(boxes, scores, valid, iou_threshold=threshold, k=k, offset=offset), "fp32", device, operator=True
    )


def _their_nms(ops, settings: Settings, device: torch.device, count: int, k: int, threshold: float) -> Task:
    boxes, scores = _candidates(settings, device, count)
    pairs = list(zip(boxes, scores, strict=True))
    return Task(lambda: [ops.nms(*pair, threshold)[:k] for pair in pairs], "fp32", device, operator=True)


def _candidates(settings: Settings, device: torch.device, count: int) -> tuple[Tensor, Tensor]:
    """Boxes like the RPN's: the sizes of the recipe's anchors, anywhere on the canvas."""
    generator = torch.Generator().manual_seed(SEED)
    shape, model = (settings.batch, count), settings.recipe.model
    scale = torch.tensor(model.anchor_scales)[torch.randint(len(model.anchor_scales), shape, generator=generator)]
    ratio = torch.tensor(model.anchor_ratios)[torch.randint(len(model.anchor_ratios), shape, generator=generator)]
    sides = torch.stack([scale / ratio.sqrt(), scale * ratio.sqrt()], -1) * STRIDE
    sides = sides * (0.1 * torch.randn((*shape, 2), generator=generator)).exp()
    limit = torch.tensor([settings.width, settings.height]) - 1
    centre = torch.rand((*shape, 2), generator=generator) * limit
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], -1).clamp(min=0).minimum(limit.repeat(2))
    return boxes.to(device), torch.rand(shape, generator=generator).to(device)


def _case(settings: Settings, device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    generator = torch.Generator().manual_seed(SEED)
    recipe, batch = settings.recipe, settings.batch
    with torch.device("meta"):
        channels = build.build_model(recipe.model, recipe.eval, num_classes(recipe)).rpn.conv.in_channels
    cells = [math.ceil(side / STRIDE) for side in (settings.height, settings.width)]
    features = torch.randn((batch, channels, *cells), generator=generator)
    boxes = made_up_boxes(batch * recipe.eval.rpn_post_nms, settings.height, settings.width, generator)
    features = features.to(device, dtype, memory_format=layout)
    return Case(features, boxes.view(batch, -1, 4).to(device), recipe.model.roi_size)


def _pool_tasks(pools: dict[str, Pool], case: Case, precision: str) -> dict[str, Task]:
    rois, shape = case.boxes.shape[1], "x".join(map(str, case.features.shape[1:]))
    tasks = {}
    for name, pool in pools.items():
        runs = {"forward": _forward(pool, case.features), "backward": _backward(pool, case.features)}
        for way, run in runs.items():
            tasks[f"{name} {way}, {rois} on {shape}"] = Task(run, precision, case.features.device, operator=True)
    return tasks


def _forward(pool: Pool, features: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: pool(features))


def _backward(pool: Pool, features: Tensor) -> Callable[[], object]:
    leaf = features.detach().requires_grad_()
    pooled = pool(leaf)
    gradient = torch.ones_like(pooled)
    return lambda: torch.autograd.grad(pooled, leaf, gradient, retain_graph=True)
