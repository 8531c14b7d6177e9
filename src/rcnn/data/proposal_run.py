"""Proposals of a whole set: computed by several processes, kept in parts, so that a run which was ended goes on."""

import hashlib
import json
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32

from rcnn.atomic import replacing
from rcnn.data.images import read_image
from rcnn.data.proposal_npz import save_proposals
from rcnn.data.records import Dataset, refuse_repeated_ids
from rcnn.data.selective_search import SIDES, Mode, selective_search

PART_IMAGES = 64
AHEAD = 4  # images under way for each process: enough that a slow one keeps none of the others waiting
KEY_VERSION = 1  # raise it when the same picture gives other boxes than before

logger = logging.getLogger("rcnn.data")


class Parts:
    """The proposals of images that are done, in a folder of files which are each whole or not there.

    An image goes by a name that should change when its picture does. What is there of images that nobody asks for any
    more does no harm.

    Args:
        key: all else that the proposals depend on, values of JSON. Parts of another key are discarded, with a warning.
    """

    def __init__(self, folder: str | os.PathLike[str], key: Mapping[str, Any]):
        self.folder = Path(folder)
        self._key_file = self.folder / "key.json"
        wanted = json.loads(json.dumps(key))
        found = self._read_key()
        if found != wanted:
            self._discard(found, wanted)
            with replacing(self._key_file) as file:
                file.write(json.dumps(wanted).encode())

    def done(self) -> set[str]:
        """Names of the images that are there.

        Raises:
            ValueError: naming the file that is damaged.
        """
        return {name for path in self._paths() for name in self._read(path)["names"].tolist()}

    def write(
        self,
        names: Sequence[str],
        boxes: Sequence[Float32[np.ndarray, "_ 4"]],
        scores: Sequence[Float32[np.ndarray, "_"]],
    ) -> None:
        """Keeps the proposals of some images, one at least."""
        assert len(names) == len(boxes) == len(scores) > 0, (len(names), len(boxes), len(scores))
        with replacing(self.folder / f"{_digest(list(names))}.npz") as file:
            np.savez(
                file,
                names=np.array(names),
                lengths=np.array([len(each) for each in boxes], np.int64),
                boxes=np.concatenate(boxes, dtype=np.float32),
                scores=np.concatenate(scores, dtype=np.float32),
            )

    def join(self, names: Sequence[str]) -> tuple[list[Float32[np.ndarray, "_ 4"]], list[Float32[np.ndarray, "_"]]]:
        """Boxes and scores of the images with these names, all of which must be done."""
        rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for path in self._paths():
            part = self._read(path)
            ends = np.cumsum(part["lengths"])[:-1]
            pairs = zip(np.split(part["boxes"], ends), np.split(part["scores"], ends), strict=True)
            rows.update(zip(part["names"].tolist(), pairs, strict=True))
        return [rows[name][0] for name in names], [rows[name][1] for name in names]

    def remove(self) -> None:
        """Removes the folder with our files in it; files of others stay."""
        for path in [*self._paths(), *self.folder.glob(".*.part"), self._key_file]:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.npz"))

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as part:
                return dict(part)
        except Exception as error:  # numpy and zipfile raise any of a dozen kinds
            raise ValueError(f"{path}: is damaged ({error}); remove it, and its images are done once more") from error

    def _read_key(self) -> Any:
        with suppress(OSError, ValueError):
            return json.loads(self._key_file.read_bytes())
        return None

    def _discard(self, found: Any, wanted: dict[str, Any]) -> None:
        paths = self._paths()
        if paths:
            logger.warning(
                "%s: its %d parts are of a run with %s; they are discarded and all images are done anew",
                self.folder, len(paths), _difference(found, wanted),
            )  # fmt: skip
        self.remove()


class SelectiveSearchRun:
    """Selective search over the images of a set, written to one file of proposals.

    To iterate does the work and gives the place in the set of each image that is done; `len` is the number of images
    that were left to do at the beginning. What is done is kept in parts in the folder `OUT.parts`: after an error, or
    when the process was killed, the same run goes on from there. The file is written last, and the folder removed.
    Neither the boxes nor their order depend on the workers. A score is the share of the image's boxes that are no
    better: selective search itself has none.

    Args:
        out: the file to write, .npz; see `save_proposals`.
        workers: processes, of one thread each; 0: in this process.
        mode, most, seed, side: see `selective_search`.

    Raises:
        ValueError: if the path or a number cannot be, or an image comes twice; while iterating, naming the image file
            that cannot be read.
        RuntimeError: while iterating, if a process was killed.
        OSError: nothing can be written there.
    """

    def __init__(
        self,
        dataset: Dataset,
        out: str | os.PathLike[str],
        *,
        workers: int,
        mode: Mode,
        most: int,
        seed: int = 0,
        side: int | None = None,
    ):
        self.out, self.workers = Path(out), workers
        _check(self.out, workers)
        self.options = {"mode": mode, "most": most, "seed": seed, "side": side}
        selective_search(np.zeros((1, 1, 3), np.uint8), **self.options)  # raises now what it would for every image
        self.options["side"] = side or SIDES[mode]
        records = [dataset[index] for index in range(len(dataset))]
        self._set, self._ids = dataset.name, [record.image_id for record in records]
        refuse_repeated_ids(self._ids, dataset.name)
        self._files = [record.path for record in records]
        self._names = [_digest([os.path.abspath(path), *_state(path)]) for path in self._files]
        self.parts = Parts(f"{self.out}.parts", {**self._header(), "version": KEY_VERSION})
        done = self.parts.done()
        self._left = [index for index, name in enumerate(self._names) if name not in done]
        if len(self._left) < len(records):
            logger.info("%d of %d images are done already", len(records) - len(self._left), len(records))

    def __len__(self) -> int:
        return len(self._left)

    def __iter__(self) -> Iterator[int]:
        try:
            yield from self._compute()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a worker process was killed, often for want of memory, or could not start; the images done so far "
                f"are kept in {self.parts.folder}: the same command goes on from there, with fewer workers if need be"
            ) from error
        boxes, scores = self.parts.join(self._names)
        save_proposals(self.out, self._ids, boxes, scores, offset=1.0, header=self._header())
        self.parts.remove()

    def _compute(self) -> Iterator[int]:
        search = partial(_search_file, **self.options)
        files = [self._files[index] for index in self._left]
        indices, boxes = [], []
        with closing(map_in_order(search, files, self.workers)) as results:
            try:
                for index, found in zip(self._left, results, strict=True):
                    indices.append(index)
                    boxes.append(found)
                    if len(indices) == PART_IMAGES:
                        self._write_part(indices, boxes)
                    yield index
            finally:  # those before an error or Ctrl-C too
                self._write_part(indices, boxes)

    def _write_part(self, indices: list[int], boxes: list[np.ndarray]) -> None:
        """Writes them, if there are any, and empties the lists."""
        if indices:
            names = [self._names[index] for index in indices]
            self.parts.write(names, boxes, [_rank_scores(len(each)) for each in boxes])
            indices.clear()
            boxes.clear()

    def _header(self) -> dict[str, Any]:
        return {"method": "selective_search", "set": self._set, "opencv": cv2.__version__, **self.options}


def map_in_order(
    function: Callable[[str], np.ndarray], items: Iterable[str], workers: int
) -> Generator[np.ndarray, None, None]:
    """The function's results, in order, from so many processes (0: this one); a few items ahead and no more.

    The processes end when the iterator does, when it is closed, and when this process dies in whatever way.

    Raises:
        BrokenProcessPool: if one of the processes was killed.
    """
    if not workers:
        yield from map(function, items)
        return
    context = get_context("spawn")  # threads of torch and OpenCV do not survive a fork
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours, ProcessPoolExecutor(workers, context, _begin_worker, (theirs,)) as pool:
        try:
            waiting = deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            ours.close()  # they end at once, not after the images they are at
            raise


def _begin_worker(lifeline: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us, which ends us
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when the other end is closed
    os._exit(1)


def _search_file(path: str, **options: Any) -> Float32[np.ndarray, "n 4"]:
    return selective_search(read_image(path), **options)


def _rank_scores(count: int) -> Float32[np.ndarray, "n"]:
    return np.arange(count, 0, -1, dtype=np.float32) / np.float32(max(count, 1))


def _check(out: Path, workers: int) -> None:
    if out.suffix.lower() != ".npz" or out.is_dir():
        raise ValueError(f"{out}: proposals are written to one file, whose name ends in .npz")
    if workers < 0:
        raise ValueError(f"{workers} workers are not possible; use 1 for each core, or 0 for this process alone")


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _state(path: str) -> tuple[int, int]:
    with suppress(OSError):  # who reads the file will say that it is missing
        state = os.stat(path)
        return state.st_size, state.st_mtime_ns
    return -1, -1


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "settings that are not known"
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {found.get(name)!r}" for name in names)
