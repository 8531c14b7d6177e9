"""`rcnn reeval`: metrics again from detections.json or comp4 files, without a model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from rcnn.commands.options import parse
from rcnn.config import Data, Eval, Model, Recipe

DESCRIPTION = """Compute the metrics of saved detections again: a detections.json or a folder of comp4 files.
No model is needed."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    detections: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DETECTIONS")]
    """a detections.json or a folder of comp4 files"""
    data: Data
    eval: Eval
    out: str = ""
    """directory to write to; empty: where the detections are"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="reeval", description=DESCRIPTION)
    from rcnn.build import open_set
    from rcnn.commands.results import report
    from rcnn.evaluation.results import read_comp4, read_detections

    path = Path(options.detections)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; give a detections.json or a folder of comp4 files")
    offset = 1.0
    dataset = open_set(options.data, options.data.test, classes=(), offset=offset, pictures=False)
    ids = [dataset[i].image_id for i in range(len(dataset))]
    if path.is_dir():
        found = read_comp4(path, dataset.classes, offset=offset, image_ids=ids)
    else:
        saved = read_detections(
            path, offset=offset, classes=dataset.classes, category_ids=dataset.category_ids, image_ids=ids
        )
        found = saved.detections
    data = replace(options.data, classes=dataset.classes)
    recipe = Recipe(data=data, model=Model(offset=offset), eval=options.eval)
    report(recipe, dataset, found, dataset.classes, Path(options.out) if options.out else _beside(path))
    return 0


def _beside(path: Path) -> Path:
    return path if path.is_dir() else path.parent
