"""rcnn proposals and what is done with its files, as a user runs them, on a small generated set."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rcnn.cli import main
from rcnn.data.shapes import write_shapes
from tests.commands.test_verbs import SMALL

FILES = ["--eval.dump-pre-nms", "200", "--eval.dump-post-nms", "30"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=8, test=4, seed=0)
    return root


def train(shapes: Path, run: Path, *more: str) -> int:
    where = ["--data.root", str(shapes), "--run", str(run), "--train.epochs", "1"]
    return main(["train", "r18_custom", *where, *SMALL, *more])


@pytest.fixture(scope="module")
def rpn(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the RPN alone."""
    run = tmp_path_factory.mktemp("runs") / "rpn"
    assert train(shapes, run, "--train.method", "rpn") == 0
    return run


def test_proposals_of_a_model_and_their_recall(rpn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.npz"
    assert main(["proposals", str(rpn), "--out", str(out), *FILES]) == 0
    table = capsys.readouterr().out
    assert all(size in table for size in ("all", "0-25", "25-50", "50-100", "100-200", "200-300", "300-inf"))
    with np.load(out) as file:
        assert len(file["num_boxes"]) == 4 and 0 < file["num_boxes"].max() <= 30
        assert json.loads(str(file["header"]))["method"] == "rpn"


def test_a_network_of_proposals_alone_is_no_detector(
    shapes: Path, rpn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(next((shapes / "JPEGImages").iterdir()))
    for argv in (["test", str(rpn)], ["demo", str(rpn), picture]):
        assert main(argv) == 2
        assert "no detector; use it with rcnn proposals" in capsys.readouterr().err


def test_fast_rcnn_on_selective_search_from_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Selective search of both sets, training, test, and a demo, which searches by itself."""
    for name in ("trainval", "test"):
        search = ["proposals", "--method", "selective_search", "--data.root", str(shapes), "--data.test", name]
        assert main([*search, "--out", str(tmp_path / f"{name}.npz"), "--workers", "1"]) == 0
    files = ["--data.train_proposals", str(tmp_path / "trainval.npz")]
    run = tmp_path / "run"
    assert train(shapes, run, "--train.method", "fast_rcnn", *files) == 0
    told = capsys.readouterr().err
    assert "Fast R-CNN with resnet18 on 8 images" in told and f"rcnn test {run} --data.test_proposals FILE" in told
    assert main(["test", str(run)]) == 2
    assert "give proposals of test, --data.test_proposals FILE" in capsys.readouterr().err
    assert main(["test", str(run), "--data.test_proposals", str(tmp_path / "test.npz")]) == 0
    assert (run / "test" / "metrics.json").is_file()
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((60, 90, 3), 128, np.uint8))
    picture = str(next((shapes / "JPEGImages").iterdir()))
    pictures = [picture, str(tmp_path / "grey.png")]
    capsys.readouterr()
    assert main(["demo", str(run), *pictures, "--out", str(tmp_path), "--threshold", "0", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and lines[0]["detections"]


def test_rpn_and_fast_rcnn_by_hand_are_combined(shapes: Path, rpn: Path, tmp_path: Path) -> None:
    shared = ["--model.frozen", "all", "--model.pretrained", str(rpn / "model.safetensors")]
    proposals = tmp_path / "x.npz"
    assert main(["proposals", str(rpn), "--data.test", "trainval", "--out", str(proposals), *FILES]) == 0
    fast = ["--train.method", "fast_rcnn", "--data.train_proposals", str(proposals), *shared]
    assert train(shapes, tmp_path / "fast", *fast) == 0
    out = tmp_path / "model.safetensors"
    assert main(["combine", str(rpn), str(tmp_path / "fast"), "--out", str(out)]) == 0
    assert main(["test", str(out), "--out", str(tmp_path / "test")]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--out", "x.npz"], "which model? rcnn proposals MODEL"),
        (["--method", "selective_search"], "--out (not given): name the .npz file"),
        (["--method", "selective_search", "--out", "x.txt"], "--out x.txt: name the .npz file"),
        (["MODEL", "--out", "x.npz", "--method", "selective_search"], "selective search takes no model"),
    ],
)
def test_mistakes(rpn: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    assert main(["proposals", *(str(rpn) if word == "MODEL" else word for word in argv)]) == 2
    assert words in capsys.readouterr().err


def test_proposals_of_another_set_are_refused(
    shapes: Path, rpn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "test.npz"
    assert main(["proposals", str(rpn), "--out", str(out), *FILES]) == 0
    files = ["--train.method", "fast_rcnn", "--data.train_proposals", str(out)]
    capsys.readouterr()
    assert train(shapes, tmp_path / "run", *files) == 2
    assert str(out) in capsys.readouterr().err
