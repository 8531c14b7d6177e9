"""A Faster R-CNN toolkit on PyTorch. The names below are the public API; each is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcnn.build import load
    from rcnn.config import Recipe
    from rcnn.data.open import open_dataset
    from rcnn.data.records import Record, RecordTable
    from rcnn.evaluation.coco import evaluate_coco
    from rcnn.evaluation.voc import evaluate_voc

__version__ = "0.1.0"

_HOMES = {
    "Recipe": "rcnn.config",
    "Record": "rcnn.data.records",
    "RecordTable": "rcnn.data.records",
    "evaluate_coco": "rcnn.evaluation.coco",
    "evaluate_voc": "rcnn.evaluation.voc",
    "load": "rcnn.build",
    "open_dataset": "rcnn.data.open",
}

__all__ = [
    "Recipe",
    "Record",
    "RecordTable",
    "__version__",
    "evaluate_coco",
    "evaluate_voc",
    "load",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rcnn' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
