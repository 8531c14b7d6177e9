import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from rcnn.data import proposal_run
from rcnn.data.images import read_image
from rcnn.data.proposal_npz import read_npz
from rcnn.data.proposal_run import Parts, SelectiveSearchRun, map_in_order
from rcnn.data.records import Record, RecordTable
from rcnn.data.selective_search import selective_search

OPTIONS: dict[str, Any] = {"mode": "fast", "most": 60, "seed": 3, "side": 80}
KEY = {"method": "by hand", "most": 7}
A_RUN = """
import pickle, sys
from rcnn.data import proposal_run
proposal_run.PART_IMAGES = 4
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        table, out, options = pickle.load(file)
    for index in proposal_run.SelectiveSearchRun(table, out, workers=2, **options):
        print(index, flush=True)
"""


def table_of(folder: str | Path, name: str = "made") -> RecordTable:
    """The set of all pictures of a folder."""
    paths = sorted(Path(folder).glob("*.png"))
    none = np.zeros(0, np.float32)
    nothing = (none.reshape(0, 4), none.astype(np.int64), none.astype(bool), none, none.astype(bool))
    return RecordTable.from_records([Record(p.stem, str(p), 60, 90, *nothing) for p in paths], name, ("a",))


@pytest.fixture
def write_set(tmp_path: Path) -> Callable[[int], RecordTable]:
    """Writes so many pictures of blocks of colour and returns their set."""

    def write(count: int) -> RecordTable:
        generator = np.random.default_rng(0)
        (tmp_path / "pictures").mkdir()
        for index in range(count):
            blocks = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            picture = cv2.resize(blocks, (90, 60), interpolation=cv2.INTER_NEAREST)
            assert cv2.imwrite(str(tmp_path / "pictures" / f"{index:03d}.png"), picture)
        return table_of(tmp_path / "pictures")

    return write


def run_of(table: RecordTable, out: Path, workers: int = 0, **options: Any) -> SelectiveSearchRun:
    return SelectiveSearchRun(table, out, workers=workers, **{**OPTIONS, **options})


def whole(table: RecordTable, out: Path, workers: int = 0, **options: Any) -> bytes:
    """The file of a run that nothing disturbs."""
    run = run_of(table, out, workers, **options)
    assert list(run) == list(range(len(table)))
    return out.read_bytes()


def stop_after(last: int, run: SelectiveSearchRun) -> None:
    """Iterates as far as the image `last` and no further."""
    with closing(iter(run)) as images:  # pyright: ignore[reportArgumentType]: a generator
        assert [next(images) for _ in range(last + 1)] == list(range(last + 1))


def boxes_of(*counts: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    generator = np.random.default_rng(sum(counts))
    return [generator.random((n, 4), np.float32) for n in counts], [generator.random(n, np.float32) for n in counts]


def parts_in(out: Path) -> list[Path]:
    return list(Path(f"{out}.parts").glob("*.npz"))


# Parts


def test_parts_give_back_what_was_written(tmp_path: Path) -> None:
    boxes, scores = boxes_of(3, 0, 5, 1)
    parts = Parts(tmp_path / "parts", KEY)
    assert parts.done() == set()
    parts.write(["b", "c"], boxes[1:3], scores[1:3])
    parts.write(["d"], boxes[3:], scores[3:])
    again = Parts(tmp_path / "parts", KEY)
    assert again.done() == {"b", "c", "d"}
    again.write(["a"], boxes[:1], scores[:1])
    for order in ("abcd", "dbca", "c"):
        joined_boxes, joined_scores = again.join(list(order))
        for name, found, score in zip(order, joined_boxes, joined_scores, strict=True):
            assert np.array_equal(found, boxes["abcd".index(name)]) and np.array_equal(
                score, scores["abcd".index(name)]
            )


def test_parts_of_another_key_are_discarded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes, scores = boxes_of(2)
    Parts(tmp_path / "parts", KEY).write(["a"], boxes, scores)
    with caplog.at_level(logging.WARNING):
        other = Parts(tmp_path / "parts", {**KEY, "most": 8})
    assert other.done() == set() and len(caplog.messages) == 1
    assert "its 1 parts are of a run with most 7; they are discarded" in caplog.text
    assert Parts(tmp_path / "parts", {**KEY, "most": 8}).done() == set()
    assert len(caplog.messages) == 1


def test_parts_without_their_key_are_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    boxes, scores = boxes_of(2)
    Parts(tmp_path / "parts", KEY).write(["a"], boxes, scores)
    (tmp_path / "parts" / "key.json").write_bytes(b'{"meth')
    assert Parts(tmp_path / "parts", KEY).done() == set()
    assert "settings that are not known" in caplog.text


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    boxes, scores = boxes_of(40)
    parts = Parts(tmp_path / "parts", KEY)
    parts.write(["a"], boxes, scores)
    (path,) = (tmp_path / "parts").glob("*.npz")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{path.name}: is damaged .*remove it"):
        parts.done()


def test_removal_leaves_the_files_of_others(tmp_path: Path) -> None:
    boxes, scores = boxes_of(1)
    for folder in ("ours", "shared"):
        parts = Parts(tmp_path / folder, KEY)
        parts.write(["a"], boxes, scores)
        (tmp_path / folder / ".key.json.0a1b2c3d.part").touch()  # what a killed process leaves
        if folder == "shared":
            (tmp_path / folder / "notes.txt").touch()
        parts.remove()
    assert [path.name for path in tmp_path.rglob("*")] == ["shared", "notes.txt"]


# The run


def test_the_file_holds_the_search_of_every_image(write_set: Callable, tmp_path: Path) -> None:
    table = write_set(3)
    whole(table, tmp_path / "out.npz")
    found = read_npz(tmp_path / "out.npz")
    assert found.image_ids is not None and list(found.image_ids) == ["000", "001", "002"]
    expected = [selective_search(read_image(record.path), **OPTIONS) for record in table]
    assert found.num_boxes.tolist() == [len(boxes) for boxes in expected] and min(found.num_boxes) > 1
    assert np.array_equal(found.boxes, np.concatenate(expected))
    first = found.scores[: found.num_boxes[0]] if found.scores is not None else np.zeros(0)
    assert first[0] == 1 and np.allclose(np.diff(first), -1 / len(first)) and found.offset == 1
    assert found.header.items() >= {"method": "selective_search", "set": "made", **OPTIONS}.items()
    assert not Path(f"{tmp_path / 'out.npz'}.parts").exists()


@pytest.mark.parametrize("part", [1, 3, 64])
def test_the_size_of_parts_does_not_matter(
    part: int, write_set: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_set(7)
    expected = whole(table, tmp_path / "out.npz")
    monkeypatch.setattr(proposal_run, "PART_IMAGES", part)
    assert whole(table, tmp_path / "other.npz") == expected


def test_the_number_of_workers_does_not_matter(write_set: Callable, tmp_path: Path) -> None:
    table = write_set(12)
    expected = whole(table, tmp_path / "0.npz", workers=0)
    assert whole(table, tmp_path / "1.npz", workers=1) == expected
    assert whole(table, tmp_path / "2.npz", workers=2) == expected


def test_a_set_without_images(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    whole(table_of(tmp_path / "pictures"), tmp_path / "out.npz")
    assert read_npz(tmp_path / "out.npz").boxes.shape == (0, 4)


def test_who_stops_early_goes_on_from_there(
    write_set: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_set(6)
    expected = whole(table, tmp_path / "whole.npz")
    stop_after(3, run_of(table, tmp_path / "out.npz"))
    assert not (tmp_path / "out.npz").exists()
    with caplog.at_level(logging.INFO):
        rest = run_of(table, tmp_path / "out.npz")
    assert "4 of 6 images are done already" in caplog.text
    assert len(rest) == 2 and list(rest) == [4, 5]
    assert (tmp_path / "out.npz").read_bytes() == expected


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_ended_leaves_whole_parts(how: signal.Signals, write_set: Callable, tmp_path: Path) -> None:
    table, out = write_set(60), tmp_path / "out.npz"
    expected = whole(table, tmp_path / "whole.npz")
    (tmp_path / "run.py").write_text(A_RUN)
    (tmp_path / "run.pickle").write_bytes(pickle.dumps((table, out, OPTIONS)))
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "run.pickle")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(9)]
    process.send_signal(how)
    rest, errors = process.communicate(timeout=60)  # returns when the workers, who hold the pipe too, have ended
    assert seen[-1] == "8\n" and not rest.endswith("59\n"), errors
    assert process.returncode == -how
    assert errors.count("Traceback") == (how == signal.SIGINT)  # of this process, none of its workers
    assert not out.exists() and len(parts_in(out)) >= 2
    run = run_of(table, out)
    assert 0 < len(run) <= 52
    assert list(run)[-1] == 59 and out.read_bytes() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_named_and_the_others_are_kept(workers: int, write_set: Callable, tmp_path: Path) -> None:
    table, bad = write_set(8), tmp_path / "pictures" / "005.png"
    expected, good = whole(table, tmp_path / "whole.npz"), bad.read_bytes()
    bad.write_bytes(good[:100])
    with pytest.raises(ValueError, match=r"005\.png: the file ends early"):
        list(run_of(table, tmp_path / "out.npz", workers))
    assert not multiprocessing.active_children()
    bad.write_bytes(good)
    assert list(run_of(table, tmp_path / "out.npz")) == [5, 6, 7]
    assert (tmp_path / "out.npz").read_bytes() == expected


def test_a_missing_picture_is_named(write_set: Callable, tmp_path: Path) -> None:
    table = write_set(2)
    (tmp_path / "pictures" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"001\.png: no such image file"):
        list(run_of(table, tmp_path / "out.npz"))


def test_a_changed_picture_is_done_anew(write_set: Callable, tmp_path: Path) -> None:
    table = write_set(5)
    stop_after(2, run_of(table, tmp_path / "out.npz"))
    picture = tmp_path / "pictures" / "001.png"
    os.utime(picture, ns=(0, picture.stat().st_mtime_ns + 10**9))
    (tmp_path / "pictures" / "002.png").unlink()
    table = table_of(tmp_path / "pictures")
    assert [table[index].image_id for index in run_of(table, tmp_path / "out.npz")] == ["001", "003", "004"]
    assert (tmp_path / "out.npz").read_bytes() == whole(table, tmp_path / "whole.npz")


@pytest.mark.parametrize("change", [{"mode": "quality"}, {"most": 61}, {"seed": 4}, {"side": 81}, {"name": "other"}])
def test_other_settings_begin_anew(
    change: dict, write_set: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write_set(2)
    stop_after(0, run_of(table, tmp_path / "out.npz"))
    other = table_of(tmp_path / "pictures", change.pop("name", "made"))
    assert len(run_of(other, tmp_path / "out.npz", **change)) == 2
    assert "they are discarded and all images are done anew" in caplog.text


def test_a_killed_worker_is_said(write_set: Callable, tmp_path: Path) -> None:
    table = write_set(40)
    with pytest.raises(RuntimeError, match=r"a worker process was killed.*kept in .*out\.npz\.parts.*fewer workers"):
        for index in run_of(table, tmp_path / "out.npz", workers=1):
            if index == 3:
                multiprocessing.active_children()[0].kill()
    assert not multiprocessing.active_children()
    rest = run_of(table, tmp_path / "out.npz")
    assert 4 <= 40 - len(rest) < 40
    list(rest)
    assert (tmp_path / "out.npz").read_bytes() == whole(table, tmp_path / "whole.npz")


@pytest.mark.parametrize(
    ("out", "wrong", "problem"),
    [
        ("out.npy", {}, r"out.npy: proposals are written .* ends in .npz"),
        ("folder.npz", {}, r"folder.npz: proposals are written to one file"),
        ("out.npz", {"workers": -1}, "-1 workers are not possible"),
        ("out.npz", {"most": 0}, "most 0"),
    ],
)
def test_refuses_before_it_begins(out: str, wrong: dict, problem: str, write_set: Callable, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=problem):
        run_of(write_set(1), tmp_path / out, **wrong)
    assert not Path(f"{tmp_path / out}.parts").exists()


# The processes


def length_and_threads(text: str) -> np.ndarray:
    """Runs in a worker."""
    return np.array([len(text), cv2.getNumThreads()])


@pytest.mark.parametrize("workers", [0, 3])
def test_results_come_in_order_and_few_ahead(workers: int) -> None:
    taken = []

    def items():
        for count in range(50):
            taken.append(count)
            yield "x" * count

    for count, result in enumerate(map_in_order(length_and_threads, items(), workers)):
        assert result[0] == count and len(taken) <= count + 2 + proposal_run.AHEAD * workers
        assert not workers or result[1] == 1
    assert count == 49 and not multiprocessing.active_children()
