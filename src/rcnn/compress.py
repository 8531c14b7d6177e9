"""A trained model to a smaller one."""

from dataclasses import replace
from pathlib import Path

from rcnn.build import build_model, load_model, model_path, read_model_header, save_model
from rcnn.models.layers import truncate
from rcnn.weights.transfer import load_into

LAYERS = ("fc6", "fc7")


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


def _check(path: Path, ranks: tuple[int, ...], most: list[int]) -> None:
    given = " ".join(map(str, ranks))
    if len(ranks) != len(LAYERS) or not all(1 <= rank <= limit for rank, limit in zip(ranks, most, strict=True)):
        raise ValueError(
            f"--svd {given}: give two ranks, of fc6 and fc7, from 1 to {most[0]} and 1 to {most[1]} for {path}"
        )
