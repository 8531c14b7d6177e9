"""`rcnn quickstart`: the whole way on a small generated data set."""

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rcnn.commands.options import parse

DESCRIPTION = "Generate a small data set of shapes, train on it, test on images it was not trained on, draw the boxes."


TRAIN_IMAGES, TEST_IMAGES = 800, 100


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    run: str = "runs/quickstart"
    """directory to write to; an earlier quickstart there is replaced"""
    seed: int = 0
    """of the pictures and the training"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="quickstart", description=DESCRIPTION)
    from rcnn.build import read_model_header
    from rcnn.commands.demo import main as demo
    from rcnn.commands.progress import track
    from rcnn.commands.test import test_model
    from rcnn.data.shapes import write_shapes
    from rcnn.recipes.quickstart import RECIPE
    from rcnn.runs import train_run

    begun = time.perf_counter()
    run = Path(options.run)
    _clear(run)
    data = run / "data"
    _say(f"1/4 drawing pictures of shapes into {data}")
    write_shapes(data, train=TRAIN_IMAGES, test=TEST_IMAGES, seed=options.seed)
    _say("2/4 training")
    recipe = replace(RECIPE, data=replace(RECIPE.data, root=str(data)), train=replace(RECIPE.train, seed=options.seed))
    train_run(recipe, run, resume=False, device=options.device, track=track)
    _say("3/4 testing on pictures it was not trained on")
    model = run / "model.safetensors"
    recipe, classes = read_model_header(model)
    metrics = test_model(model, recipe, classes, run / "test", options.device)
    _say("4/4 drawing what it finds")
    pictures = [str(p) for p in sorted((data / "JPEGImages").glob("test_*"))[:6]]
    demo([str(model), *pictures, "--out", str(run / "demo"), "--device", options.device])
    _say(
        f"mAP {metrics['mAP']:.4f}; look at the pictures in {run / 'demo'}. {time.perf_counter() - begun:.0f} s in all"
    )
    return 0


def _clear(run: Path) -> None:
    if not run.exists():
        return
    recipe = run / "recipe.json"
    if any(run.iterdir()) and not (recipe.is_file() or (run / "data" / "ImageSets").is_dir()):
        raise ValueError(f"{run}: is not an earlier quickstart's directory; choose another --run")
    shutil.rmtree(run)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
