"""A trained model to a smaller one."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rcnn.build import build_model, load, load_model, model_path, read_model_header, save_model
from rcnn.config import Model
from rcnn.models.calibration import quantise, watch
from rcnn.models.layers import truncate
from rcnn.training.methods import UNTRAINED
from rcnn.weights.transfer import load_into

LAYERS = ("fc6", "fc7")
MOST_PICTURES = 64  # of calibration; those of a longer list at equal distances


def compress(source: Path, out: Path, ranks: tuple[int, ...]) -> str:
    """Write the model with fc6 and fc7 as two layers each, of the ranks given.

    Source: Girshick 2015 (Fast R-CNN), 3.1.

    Args:
        source: a model.safetensors or a run directory.

    Returns:
        How much smaller the layers are and how much of them is left.

    Raises:
        ValueError: the model has no such layers, or the ranks do not fit them.
    """
    path = model_path(source)
    recipe, classes = read_model_header(path)
    _refuse_int8(path, recipe.model, "--svd", "; --svd first, then --int8")
    if recipe.model.head != "fc" or recipe.model.svd:
        what = "is compressed already" if recipe.model.svd else f"its head is {recipe.model.head}, not fc"
        raise ValueError(f"{path}: --svd wants a model with whole layers fc6 and fc7; {what}")
    tensors = load_model(path, recipe, len(classes)).state_dict()
    _check(path, ranks, [min(tensors[f"head.{name}.weight"].shape) for name in LAYERS])
    lines = []
    for name, rank in zip(LAYERS, ranks, strict=True):
        whole = tensors.pop(f"head.{name}.weight")
        first, second = truncate(whole, rank)
        kept = 1 - float((second @ first - whole).square().sum() / whole.square().sum())
        size = first.numel() + second.numel()
        lines.append(
            f"{name}: rank {rank}, {whole.numel()} to {size} weights ({size / whole.numel():.0%}), "
            f"{kept:.2%} of their squares"
        )
        tensors |= {f"head.{name}.first.weight": first, f"head.{name}.second.weight": second}
        tensors[f"head.{name}.second.bias"] = tensors.pop(f"head.{name}.bias")
    recipe = replace(recipe, model=replace(recipe.model, svd=ranks))
    model = build_model(recipe.model, recipe.eval, len(classes))
    report = load_into(model, tensors, source=str(path))
    assert not report.initialised and not report.skipped, report.format()
    save_model(out, model, recipe, classes)
    return "\n".join(lines)


def to_int8(source: Path, out: Path, pictures: Sequence[Path]) -> str:
    """Write the model with weights in int8 and the steps of its maps, from what it computes on the pictures.

    Source: Jacob et al. 2018 (Quantization and Training of Neural Networks), 2 and 3.

    Args:
        source: a model.safetensors or a run directory.
        pictures: like those that it was trained on; not those that it is tested on.

    Returns:
        How much smaller the file is and on how many pictures it was calibrated.

    Raises:
        ValueError: the model is in int8 already, no picture was given or one cannot be read.
    """
    path = model_path(source)
    recipe, classes = read_model_header(path)
    _refuse_int8(path, recipe.model, "--int8", "")
    if not pictures:
        raise ValueError("--int8: wants pictures to calibrate on, --calibrate PICTURES_OR_FOLDERS of the training set")
    detector = load(path, "cpu")
    watch(detector.step.model, UNTRAINED.get(recipe.train.method, ()))
    chosen = pictures[:: -(-len(pictures) // MOST_PICTURES)]
    for picture in chosen:
        detector(picture)
    model = load_model(path, recipe, len(classes))
    quantise(model, detector.step.model)
    save_model(out, model, replace(recipe, model=replace(recipe.model, int8=True)), classes)
    sizes = [os.path.getsize(file) / 1e6 for file in (path, out)]
    return f"int8: {sizes[0]:.1f} to {sizes[1]:.1f} MB, calibrated on {len(chosen)} of {len(pictures)} pictures"


def _refuse_int8(path: Path, model: Model, option: str, way_out: str) -> None:
    if model.int8:
        raise ValueError(f"{path}: its weights are in int8 already; {option} wants the model it was made from{way_out}")


def _check(path: Path, ranks: tuple[int, ...], most: list[int]) -> None:
    given = " ".join(map(str, ranks))
    if len(ranks) != len(LAYERS) or not all(1 <= rank <= limit for rank, limit in zip(ranks, most, strict=True)):
        raise ValueError(
            f"--svd {given}: give two ranks, of fc6 and fc7, from 1 to {most[0]} and 1 to {most[1]} for {path}"
        )
