"""Our network of a recipe, on pictures made up for it: inference or one training step."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn import build
from rcnn.benchmark.settings import Settings
from rcnn.benchmark.task import Task
from rcnn.config import Recipe
from rcnn.models.calibration import quantise, watch
from rcnn.structures import Batch
from rcnn.training.methods import UNTRAINED

SEED = 0
OBJECTS = 8  # in each picture
SLOTS = 32  # for ground truth
UNLIKELY = 20.0  # logit below background and the first class
LEARNING_RATE = 0.0  # every run does the same work


def open_network(settings: Settings) -> Task:
    """The network ready to run, with random weights; a Fast R-CNN has random proposals."""
    device = build.choose_device(settings.device)
    recipe = with_precision(settings)
    if settings.what == "train" and recipe.train.method == "alternate":
        raise ValueError(
            "--recipe: its training is alternate, in phases, of which each has a step of its own; time a recipe that "
            "is joint (vgg16_voc07) or Fast R-CNN (vgg16_voc07_fast)"
        )
    given = recipe.data.max_proposals if recipe.train.method == "fast_rcnn" else 0
    batch = made_up_batch(settings.batch, settings.height, settings.width, num_classes(recipe), given)
    torch.manual_seed(SEED)
    model = build.build_model(recipe.model, recipe.eval, num_classes(recipe)).to(device)
    if not given:
        with torch.no_grad():
            hidden = F.relu(model.rpn.conv(model.features(batch.images.to(device), batch.image_size.to(device))))
        spread_outputs(hidden, logits=model.rpn.cls, deltas=model.rpn.box)
    favour_one_class(model.head.cls_score)
    precision = recipe.train.precision if settings.what == "train" else recipe.eval.precision
    about = (precision_name(precision, device), device, settings.batch)
    if settings.what == "train":
        train = build.build_train_step(recipe.train, model, device)
        on_device = Batch(*(x.to(device) for x in batch))
        return Task(lambda: train(on_device, LEARNING_RATE), *about, model.head)
    detect = build.build_detect_step(recipe.eval, model, device)
    if settings.int8:
        watch(detect.model, UNTRAINED.get(recipe.train.method, ()))
        detect(batch)
        quantise(model, detect.model)
        detect = build.build_detect_step(recipe.eval, model, device)
    return Task(lambda: detect(batch), *about, detect.model.head)


def with_precision(settings: Settings) -> Recipe:
    """The recipe in the precision and by the method asked for."""
    recipe, precision = settings.recipe, settings.precision
    if settings.winograd:
        recipe = replace(recipe, eval=replace(recipe.eval, winograd=True))
    if precision == "recipe":
        return recipe
    train, rules = replace(recipe.train, precision=precision), replace(recipe.eval, precision=precision)
    return replace(recipe, train=train, eval=rules)


def precision_name(precision: str, device: torch.device) -> str:
    """What the precision is on this device: fp32 or bf16."""
    return "bf16" if build.use_bf16(precision, device) else "fp32"


def num_classes(recipe: Recipe) -> int:
    """As many as the recipe names, else VOC's."""
    return len(recipe.data.classes) or 20


def made_up_batch(count: int, height: int, width: int, classes: int, proposals: int = 0) -> Batch:
    """Pictures of smooth colours and noise that fill their canvas, with random objects and as many random proposals."""
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(count, 3, height // 32 + 2, width // 32 + 2, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    pictures = smooth * 200 + torch.rand(smooth.shape, generator=generator) * 55
    valid = (torch.arange(SLOTS) < OBJECTS).expand(count, -1)
    boxes = made_up_boxes(count * SLOTS, height, width, generator).view(count, SLOTS, 4)
    labels = torch.randint(1, classes + 1, (count, SLOTS), generator=generator)
    return Batch(
        images=pictures.to(torch.uint8).contiguous(),
        image_size=torch.tensor([[height, width]]).repeat(count, 1),
        scale=torch.ones(count),
        boxes=boxes * valid[..., None],
        labels=labels * valid,
        boxes_valid=valid,
        boxes_ignored=torch.zeros_like(valid),
        proposals=made_up_boxes(count * proposals, height, width, generator).view(count, proposals, 4),
        proposals_valid=torch.ones(count, proposals, dtype=torch.bool),
        image_index=torch.arange(count),
        seed=torch.arange(count),
    )


def made_up_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes (count, 4) on a picture, sides from an eighth to a half of its own."""
    size = torch.tensor([width, height])
    sides = size * (torch.rand(count, 2, generator=generator) * 0.375 + 0.125)
    corner = (size - 1 - sides) * torch.rand(count, 2, generator=generator)
    return torch.cat([corner, corner + sides], 1)


@torch.no_grad()
def spread_outputs(hidden: Tensor, *, logits: nn.Conv2d, deltas: nn.Conv2d) -> None:
    """Rescale the RPN's last layers so that every anchor's outputs vary over the picture as after training.

    Random weights say nearly the same of every place; then one anchor shape wins, NMS has little to do, and too few
    proposals are left.
    """
    for layer, std in ((logits, 1.0), (deltas, 0.1)):
        out = layer(hidden)
        factor = std / out.std((0, 2, 3)).clamp(min=1e-6)
        mean = out.mean((0, 2, 3))
        assert layer.bias is not None
        layer.bias.copy_((layer.bias - mean) * factor)
        layer.weight.mul_(factor[:, None, None, None])


@torch.no_grad()
def favour_one_class(logits: nn.Linear) -> None:
    """Let one class of a RoI pass the score threshold, as after training; random weights would let nearly all."""
    logits.bias[2:] -= UNLIKELY
