"""`rcnn train`: a recipe and its overrides to a run directory."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rcnn.commands.options import parse
from rcnn.config import Data, Eval, Model, Recipe, Train, recipe_from_dict, recipe_to_dict

MAY_CHANGE = ("--data.root", "--data.workers", "--data.test")  # when a run is resumed; and all of train and eval
DESCRIPTION = """Train a detector by a recipe (rcnn train --list shows them) and your own options.
Usage: rcnn train RECIPE [options]. The model is written to RUN/model.safetensors."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    data: Data
    model: Model
    train: Train
    eval: Eval
    run: str = ""
    """directory to write to; empty: runs/RECIPE"""
    resume: bool = False
    """go on from the newest checkpoint of the run directory"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    from rcnn.recipes.find import find_recipe, recipe_names, recipe_summary

    if "--list" in argv:
        print("\n".join(f"{name:<16} {recipe_summary(name)}" for name in recipe_names()))
        return 0
    named = bool(argv) and not argv[0].startswith("-")
    if not named and not {"-h", "--help"} & set(argv):
        raise ValueError(f"which recipe? rcnn train RECIPE ...; known: {', '.join(recipe_names())}, or a file")
    recipe = find_recipe(argv[0]) if named else Recipe()
    default = Options(recipe.data, recipe.model, recipe.train, recipe.eval)
    options = parse(Options, argv[1:] if named else argv, verb="train RECIPE", description=DESCRIPTION, default=default)
    run = Path(options.run or f"runs/{Path(argv[0]).stem}")
    from rcnn.training.loop import StoppedError

    try:
        train_run(Recipe(options.data, options.model, options.train, options.eval), run, options.resume, options.device)
    except StoppedError as stop:
        print(f"rcnn: {stop}", file=sys.stderr)
        return 1
    return 0


def train_run(recipe: Recipe, run: Path, resume: bool, device_name: str) -> None:
    """Train and write the run directory."""
    import torch

    from rcnn import build
    from rcnn.allocator import keep_freed_memory
    from rcnn.evaluation.plots import plot_training
    from rcnn.training.log import Log
    from rcnn.training.loop import train

    keep_freed_memory()
    build.check_values(recipe)
    device = build.choose_device(device_name)
    dataset = build.open_set(recipe.data, recipe.data.train, classes=(), offset=recipe.model.offset)
    recipe = replace(recipe, data=replace(recipe.data, classes=dataset.classes))
    _open_run(run, recipe, resume)
    torch.manual_seed(recipe.train.seed)
    model = build.build_model(recipe.model, recipe.eval, len(dataset.classes))
    if recipe.model.pretrained:
        print(build.load_pretrained(model, recipe.model, dataset.classes).format(), file=sys.stderr)
    loader = build.build_train_loader(recipe, dataset)
    schedule = build.build_schedule(recipe.train, len(loader))
    print(_summary(recipe, dataset.classes, len(dataset), schedule.total, device), file=sys.stderr)
    train(
        build.build_train_step(recipe.train, model, device),
        loader,
        schedule,
        Log(
            run / "metrics.jsonl",
            every=recipe.train.log_every,
            total=schedule.total,
            name_image=lambda index: dataset[index].path,
        ),
        folder=run / "checkpoints",
        save_every=max(1, round(recipe.train.save_every * len(loader))),
        keep=recipe.train.keep,
        resume=resume,
    )
    build.save_model(run / "model.safetensors", model, recipe, dataset.classes)
    plot_training(run / "metrics.jsonl", run / "curves.png")
    print(f"wrote {run / 'model.safetensors'}; next: rcnn test {run}", file=sys.stderr)


def _open_run(run: Path, recipe: Recipe, resume: bool) -> None:
    path = run / "recipe.json"
    if resume and path.is_file():
        _compare_with_begun(path, recipe)
    elif resume:
        raise ValueError(f"{run}: nothing to resume there; leave --resume out to begin")
    elif path.exists():
        raise ValueError(f"{run}: holds a run already; go on with --resume, or choose another --run")
    run.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe_to_dict(recipe), indent=2) + "\n")


def _compare_with_begun(path: Path, recipe: Recipe) -> None:
    """Refuse another network or other data; say what else is not as the run was begun."""
    before = recipe_from_dict(json.loads(path.read_text()), where=str(path))
    old, new = recipe_to_dict(before), recipe_to_dict(recipe)
    changed = {
        f"--{group}.{name}": f"{old[group][name]} before, {new[group][name]} now"
        for group in old
        for name in old[group]
        if old[group][name] != new[group][name]
    }
    fixed = [key for key in changed if key.startswith(("--model.", "--data.")) and key not in MAY_CHANGE]
    if fixed:
        told = "; ".join(f"{key} {changed[key]}" for key in fixed[:5])
        raise ValueError(f"{path}: the run was begun with other options ({told}); give the same, or another --run")
    for key, values in changed.items():
        print(f"resuming with another {key}: {values}", file=sys.stderr)


def _summary(recipe: Recipe, classes: tuple[str, ...], images: int, steps: int, device: object) -> str:
    return (
        f"{recipe.model.backbone} on {images} images of {recipe.data.train}, {len(classes)} classes "
        f"({', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''}); {steps} steps of {recipe.train.batch} "
        f"images on {device}"
    )
