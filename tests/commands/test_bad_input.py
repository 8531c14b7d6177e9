"""Broken data sets and files through the command line: one message with file and way out, status 2, nothing lost."""

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from rcnn.cli import main
from rcnn.data.shapes import write_shapes
from rcnn.models.vgg import STAGES
from rcnn.training.checkpoint import checkpoint_paths
from tests.commands.test_verbs import fault, train


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    write_shapes(root, train=8, test=2, seed=0)
    return root


def refusal(capsys: pytest.CaptureFixture[str], shapes: Path, *more: str) -> str:
    """The message of a training that is refused before its first step."""
    capsys.readouterr()
    run = shapes.parent / "run"
    assert train(shapes, run, *more) == 2
    assert not (run / "model.safetensors").exists()
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def first(shapes: Path, folder: str) -> Path:
    return sorted((shapes / folder).glob("trainval_*"))[0]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def with_object(shapes: Path) -> Path:
    """An annotation that has an object."""
    return next(p for p in sorted((shapes / "Annotations").glob("trainval_*")) if "<object>" in p.read_text())


def test_missing_root_and_set(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refusal(capsys, shapes, "--data.root", str(shapes / "nowhere"))
    message = refusal(capsys, shapes, "--data.train", "trianval")
    assert "trianval" in message and "trainval" in message


def test_truncated_and_missing_pictures(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = first(shapes, "JPEGImages")
    picture.write_bytes(picture.read_bytes()[:500])
    assert picture.name in refusal(capsys, shapes)
    picture.unlink()
    assert picture.name in refusal(capsys, shapes)


def test_xml_that_does_not_parse(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotation = first(shapes, "Annotations")
    annotation.write_text("<annotation><object>")
    assert annotation.name in refusal(capsys, shapes)


def test_unknown_class(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, shapes, "--data.classes", "circle", "square")
    assert "triangle" in message and "--data.classes" in message


def test_an_empty_set(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "ImageSets" / "Main" / "trainval.txt").write_text("\n")
    assert "empty" in refusal(capsys, shapes)


def test_bad_boxes_are_counted_or_refused(
    shapes: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    annotation = with_object(shapes)
    xmax = annotation.read_text().split("<xmax>")[1].split("<")[0]
    edit(annotation, f"<xmax>{xmax}</xmax>", "<xmax>9999</xmax>")
    message = refusal(capsys, shapes, "--data.strict")
    assert annotation.name in message and "9999" in message and "--data.no-strict" in message
    assert train(shapes, shapes.parent / "run", "--train.epochs", "0.25") == 0
    assert annotation.name in caplog.text


def test_weights_of_another_network(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = [3, *(width for stage in STAGES for width in stage)]
    pairs = zip(places, itertools.pairwise(widths), strict=True)
    torch.save({f"features.{i}.weight": torch.zeros(b, a, 3, 3) for i, (a, b) in pairs}, tmp_path / "other.pth")
    message = refusal(capsys, shapes, "--model.pretrained", str(tmp_path / "other.pth"))
    assert all(word in message for word in ("other.pth", "vgg16", "resnet18"))


def test_pickled_code_is_not_run(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    assert "evil.pth" in refusal(capsys, shapes, "--model.pretrained", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(
    shapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save, saved = shapes.parent / "run", torch.save, []

    def full_at_the_second(state, file):
        saved.append(1)
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    assert train(shapes, run, "--train.save-every", "0.5") == 2
    message = capsys.readouterr().err
    assert "No space left" in message and "--resume" in message and "step_00000002.pt" in message
    assert [p.name for p in checkpoint_paths(run / "checkpoints")] == ["step_00000002.pt"]
    assert train(shapes, run, "--train.save-every", "0.5", "--resume") == 0


def test_damaged_models(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shapes.parent / "run"
    assert train(shapes, run, "--train.epochs", "0.25") == 0
    whole = (run / "model.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    for size in (0, 4, 200, len(whole) // 2):
        broken.write_bytes(whole[:size])
        assert "broken.safetensors" in fault(capsys, ["test", str(broken)])


def test_coco_json_that_does_not_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train.json").write_text('{"images": [')
    options = ["--data.root", str(root), "--data.train", "train", "--run", str(tmp_path / "run")]
    assert "instances_train.json" in fault(capsys, ["train", "r18_custom", *options])


def test_detections_of_another_set(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"image_id": "elsewhere", "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}]
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"classes": ["circle", "square", "triangle"], "images": [], "detections": rows}))
    message = fault(capsys, ["reeval", str(path), "--data.root", str(shapes), "--data.test", "test"])
    assert "elsewhere" in message
    shutil.rmtree(shapes / "JPEGImages")  # metrics need no pictures
    path.write_text(json.dumps({"classes": ["circle", "square", "triangle"], "images": [], "detections": []}))
    assert main(["reeval", str(path), "--data.root", str(shapes), "--data.test", "test"]) == 0
