"""`rcnn proposals`: regions of every image of a set to a file, and the table of their recall."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rcnn.commands.options import parse
from rcnn.config import Data, Eval, Recipe

DESCRIPTION = """Write the regions that a model's RPN, or selective search, proposes on the set --data.test.
Usage: rcnn proposals MODEL --out FILE.npz [options], or without a model:
rcnn proposals --method selective_search --data.root DIR --data.test SET --out FILE.npz
Prints how many of the annotated objects they cover. The file serves --data.train_proposals, --data.test_proposals."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    data: Data
    eval: Eval
    out: str = ""
    """the .npz file to write"""
    method: Literal["rpn", "selective_search"] = "rpn"
    """rpn: of a model of rcnn train; selective_search: OpenCV's, which needs no model"""
    mode: Literal["fast", "quality"] = "fast"
    """of the selective search"""
    workers: int = 0
    """processes of the selective search; 0: one for each core"""
    device: str = "auto"
    """of the RPN: auto, cpu, cuda or cuda:1"""
    devices: int = 0
    """processes of the RPN on this machine, a CUDA device each; 0 or 1: this one"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    named = bool(argv) and not argv[0].startswith("-")
    default, model, recipe, classes = Options(Data(), Eval()), None, Recipe(), ()
    if named:
        from rcnn import build

        model = build.model_path(argv[0])
        recipe, classes = build.read_model_header(model)
        default = Options(recipe.data, recipe.eval)
    options = parse(Options, argv[named:], verb="proposals MODEL", description=DESCRIPTION, default=default)
    _check(options, model)
    recipe = replace(recipe, data=options.data, eval=options.eval)
    if options.method == "selective_search":
        propose(recipe, model, classes, options)
        return 0
    from rcnn.commands.devices import must_start, start
    from rcnn.processes import joined, own_device

    if must_start(options.devices):
        return start("proposals", argv, options.devices)
    options = replace(options, device=own_device(options.device))
    with joined(options.device):
        propose(recipe, model, classes, options)
    return 0


def _check(options: Options, model: Path | None) -> None:
    if not options.out.endswith(".npz"):
        raise ValueError(f"--out {options.out or '(not given)'}: name the .npz file to write")
    if options.method == "rpn" and model is None:
        raise ValueError(
            "which model? rcnn proposals MODEL --out FILE.npz: a model.safetensors or a run directory; or without one: "
            "--method selective_search"
        )
    if options.method == "selective_search" and model is not None:
        raise ValueError(f"{model}: selective search takes no model; leave it or --method out")
    if options.method == "selective_search" and options.devices:
        raise ValueError(f"--devices {options.devices}: is for the RPN; selective search has --workers")


def propose(recipe: Recipe, model: Path | None, classes: tuple[str, ...], options: Options) -> None:
    """Write the file and print the table."""
    from rcnn import build, processes
    from rcnn.allocator import keep_freed_memory
    from rcnn.commands.progress import track
    from rcnn.data.proposal_run import SelectiveSearchRun
    from rcnn.data.proposals import open_proposals
    from rcnn.evaluation.recall import evaluate_recall
    from rcnn.evaluation.table import format_recall
    from rcnn.runs import dump_proposals

    keep_freed_memory()
    out, offset = Path(options.out), recipe.model.offset
    dataset = build.open_set(recipe.data, recipe.data.test, classes=classes, offset=offset)
    if model is not None:
        dump_proposals(recipe, model, dataset, out, device=build.choose_device(options.device), track=track)
    else:
        workers = options.workers or os.cpu_count() or 1
        run = SelectiveSearchRun(dataset, out, workers=workers, mode=options.mode, most=recipe.data.max_proposals)
        for _ in track(run, total=len(run), what="searching"):
            pass
    if processes.rank():
        return
    table = open_proposals(str(out), dataset, offset=offset)
    boxes = [table[index][0] for index in range(len(dataset))]
    print(format_recall(evaluate_recall(dataset, boxes, offset=offset)))
    print(f"wrote {out}: {len(table)} images", file=sys.stderr)
