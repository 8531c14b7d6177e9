"""`rcnn train`: a recipe and its overrides to a run directory."""

import sys
from dataclasses import dataclass
from pathlib import Path

from rcnn.commands.options import parse
from rcnn.config import Data, Eval, Model, Recipe, Train

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
    devices: int = 0
    """processes of this machine, a CUDA device each; 0 or 1: this one. Of several machines: torchrun -m rcnn ..."""
    restarts: int = 3
    """with --devices: times in a row that all are started anew when one is killed, without a new checkpoint between"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    from rcnn.recipes.find import find_recipe, recipe_names, recipe_summary

    if "--list" in argv:
        width = max(map(len, recipe_names()))
        print("\n".join(f"{name:<{width}}  {recipe_summary(name)}" for name in recipe_names()))
        return 0
    named = bool(argv) and not argv[0].startswith("-")
    if not named and not {"-h", "--help"} & set(argv):
        raise ValueError(f"which recipe? rcnn train RECIPE ...; known: {', '.join(recipe_names())}, or a file")
    recipe = find_recipe(argv[0]) if named else Recipe()
    default = Options(recipe.data, recipe.model, recipe.train, recipe.eval)
    options = parse(Options, argv[1:] if named else argv, verb="train RECIPE", description=DESCRIPTION, default=default)
    run = Path(options.run or f"runs/{Path(argv[0]).stem}")
    from rcnn.commands.devices import must_start, start

    if must_start(options.devices):
        return start("train", argv, options.devices, restarts=options.restarts, saved=lambda: _saved(run))
    return _train(Recipe(options.data, options.model, options.train, options.eval), run, options)


def _saved(run: Path) -> set[Path]:
    """What a run that is begun anew can go on from."""
    return {path for path in run.rglob("*") if path.suffix in (".pt", ".safetensors", ".npz")}


def _train(recipe: Recipe, run: Path, options: Options) -> int:
    from rcnn.commands.progress import track
    from rcnn.processes import joined, own_device
    from rcnn.runs import train_run
    from rcnn.training.loop import StoppedError

    device = own_device(options.device)
    with joined(device):
        try:
            train_run(recipe, run, resume=options.resume, device=device, track=track)
        except StoppedError as stop:
            print(f"rcnn: {stop}", file=sys.stderr)
            return 1
    return 0
