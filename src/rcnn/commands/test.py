"""`rcnn test`: detect on a set, print the table, write detections and metrics."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rcnn.commands.options import parse
from rcnn.config import Data, Eval, Recipe

DESCRIPTION = """Detect on a set with a model (a model.safetensors or a run directory) and print the metrics.
Usage: rcnn test MODEL [options]. Options not given are those the model was trained with."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    data: Data
    eval: Eval
    out: str = ""
    """directory to write to; empty: test/ beside the model"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    devices: int = 0
    """processes of this machine, a CUDA device each; 0 or 1: this one. Of several machines: torchrun -m rcnn ..."""


def main(argv: list[str]) -> int:
    """Run the verb."""
    from rcnn import build

    if not argv or argv[0].startswith("-"):
        parse(Options, argv, verb="test MODEL", description=DESCRIPTION, default=Options(Data(), Eval()))
        raise ValueError("which model? rcnn test MODEL ...: a model.safetensors or a run directory")
    path = build.model_path(argv[0])
    recipe, classes = build.read_model_header(path)
    default = Options(recipe.data, recipe.eval)
    options = parse(Options, argv[1:], verb="test MODEL", description=DESCRIPTION, default=default)
    if options.data.classes != classes:
        raise ValueError(
            f"--data.classes {' '.join(options.data.classes)}: does not fit the weights, which know "
            f"{' '.join(classes)} in this order; leave --data.classes out"
        )
    from rcnn.commands.devices import must_start, start
    from rcnn.processes import joined, own_device

    if must_start(options.devices):
        return start("test", argv, options.devices)
    recipe = replace(recipe, data=options.data, eval=options.eval)
    device = own_device(options.device)
    with joined(device):
        test_model(path, recipe, classes, Path(options.out or path.parent / "test"), device)
    return 0


def test_model(path: Path, recipe: Recipe, classes: tuple[str, ...], out: Path, device_name: str) -> dict:
    """Detect on the recipe's test set, write `detections.json`, `metrics.json` and VOC's files; return the metrics.

    Of several processes rank 0 alone has and writes them.
    """
    import time

    from rcnn import build, processes
    from rcnn.allocator import keep_freed_memory
    from rcnn.commands.progress import track
    from rcnn.commands.results import report, write_found
    from rcnn.inference.collect import collect

    keep_freed_memory()
    device = build.choose_device(device_name)
    dataset = build.open_set(recipe.data, recipe.data.test, classes=classes, offset=recipe.model.offset)
    model = build.load_model(path, recipe, len(classes))
    proposals = build.test_proposals(path, recipe, dataset)
    step = build.build_detect_step(recipe.eval, model, device)
    begun = time.perf_counter()
    loader = build.build_test_loader(recipe, dataset, proposals)
    found = list(track(collect(step, loader, dataset), total=len(dataset), what="testing"))
    if processes.rank():
        return {}
    seconds = (time.perf_counter() - begun) / len(dataset)
    write_found(recipe, dataset, found, classes, out)
    metrics = report(recipe, dataset, found, classes, out)
    print(f"{len(dataset)} images, {seconds:.3f} s an image; wrote {out}", file=sys.stderr)
    return metrics
