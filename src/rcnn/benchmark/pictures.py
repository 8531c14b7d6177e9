"""The data path on one core: decoding, resizing, and batches from the loader."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from rcnn import build
from rcnn.benchmark.network import SEED
from rcnn.benchmark.settings import Settings
from rcnn.benchmark.task import Task
from rcnn.config import Recipe
from rcnn.data.images import SUFFIXES, read_image, read_size
from rcnn.data.loader import Loader
from rcnn.data.records import Record, RecordTable
from rcnn.data.transforms import resize_scales, resize_to_canvas, resized_sizes
from rcnn.structures import Batch, Canvas

MOST = 128  # pictures
SIZE = (375, 500)  # of pictures made up: the commonest in VOC
QUALITY = 90  # of their JPEG


def open_tasks(settings: Settings) -> dict[str, Task]:
    """Decoding alone, decoding and resizing, and the loader with the recipe's worker processes."""
    cv2.setNumThreads(1)
    paths = find_pictures(settings.data_root) if settings.data_root else make_pictures(MOST)
    recipe = replace(settings.recipe, eval=replace(settings.recipe.eval, batch=settings.batch))
    data = recipe.data
    loader = build.build_test_loader(recipe, open_table(paths))
    batches = _endless(loader)
    steps = min(len(loader), 16)
    about = ("uint8", torch.device("cpu"))
    workers = "in this process" if not data.workers else f"{data.workers} worker processes"
    return {
        "decode": Task(lambda: [read_image(path) for path in paths], *about, images=len(paths)),
        "decode and resize": Task(lambda: [_resized(path, recipe) for path in paths], *about, images=len(paths)),
        f"loader, {workers}": Task(lambda: list(islice(batches, steps)), *about, images=steps * settings.batch),
    }


def find_pictures(root: str) -> list[str]:
    """The first pictures under a folder, by name.

    Raises:
        ValueError: there is none.
    """
    files = sorted(str(path) for path in Path(root).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--data-root {root}: no pictures there ({', '.join(SUFFIXES)}); give a folder that has some")
    return files[:MOST]


def make_pictures(count: int) -> list[str]:
    """JPEGs of smooth colours and noise in a temporary folder, which goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="rcnn-bench-")
    _FOLDERS.append(folder)
    random = np.random.default_rng(SEED)
    paths = [str(Path(folder.name, f"{i:04}.jpg")) for i in range(count)]
    for path in paths:
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
        noise = random.integers(0, 24, picture.shape, dtype=np.uint8)
        cv2.imwrite(path, cv2.add(picture, noise), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return paths


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # kept until the process ends


def open_table(paths: list[str]) -> RecordTable:
    """The pictures as a data set without objects."""
    nothing = np.zeros(0, np.bool_)
    boxes, labels, areas = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    records = (Record(path, path, *read_size(path), boxes, labels, nothing, areas, nothing) for path in paths)
    return RecordTable.from_records(records, "pictures", ("object",))


def _resized(path: str, recipe: Recipe) -> np.ndarray:
    image, short, long = read_image(path), recipe.data.short_side, recipe.data.long_side
    size = np.array([image.shape[:2]])
    height, width = resized_sizes(size, resize_scales(size, short=short, long=long))[0].tolist()
    return resize_to_canvas(image, np.zeros((0, 4), np.float32), Canvas(height, width), short, long)[0]


def _endless(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1
