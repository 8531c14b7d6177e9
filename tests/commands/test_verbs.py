"""The verbs as a user runs them, on a small generated set: train, resume, test, demo, reeval, and their mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from rcnn.cli import main
from rcnn.data.shapes import write_shapes

SMALL = [
    "--data.short-side", "64", "--data.long-side", "96", "--data.workers", "0",
    "--model.head-hidden", "16", "--model.rpn-channels", "16",
    "--train.rpn-pre-nms", "100", "--train.rpn-post-nms", "20", "--train.rois", "16",
    "--train.precision", "fp32", "--train.log-every", "2", "--eval.precision", "fp32",
    "--eval.rpn-pre-nms", "100", "--eval.rpn-post-nms", "20",
]  # fmt: skip
METRIC_KEYS = {
    "step", "epoch", "lr", "loss", "rpn_cls", "rpn_box", "head_cls", "head_box", "rpn_accuracy", "head_accuracy",
    "images_per_second", "memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=8, test=4, seed=0)
    return root


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train(shapes, folder) == 0
    return folder


def train(shapes: Path, run: Path, *more: str, epochs: str = "1") -> int:
    where = ["--data.root", str(shapes), "--data.train", "trainval", "--data.test", "test", "--run", str(run)]
    return main(["train", "r18_custom", *where, *SMALL, "--train.epochs", epochs, *more])


def test_a_run_directory_is_complete(run: Path) -> None:
    assert json.loads((run / "recipe.json").read_text())["model"]["backbone"] == "resnet18"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert METRIC_KEYS <= set(lines[0])
    assert (run / "model.safetensors").is_file()
    assert len(list((run / "checkpoints").iterdir())) == 1


def test_resume_gives_the_undisturbed_weights(shapes: Path, run: Path, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(shapes, straight, "--train.save-every", "0.5", "--train.keep", "9") == 0
    assert train(shapes, stopped, "--train.save-every", "0.5", "--train.keep", "9") == 0
    (stopped / "model.safetensors").unlink()
    sorted((stopped / "checkpoints").iterdir())[-1].unlink()
    assert train(shapes, stopped, "--train.save-every", "0.5", "--train.keep", "9", "--resume") == 0
    assert (stopped / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def test_test_and_reeval_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", str(run)]) == 0
    table = capsys.readouterr().out
    assert "circle" in table and "mean" in table
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["metric"] == "voc_area" and set(metrics["AP"]) == {"circle", "square", "triangle"}
    data = json.loads((run / "recipe.json").read_text())["data"]
    again = ["--data.root", data["root"], "--data.test", "test", "--out", str(run / "again")]
    for saved in ("detections.json", "comp4"):
        assert main(["reeval", str(run / "test" / saved), *again]) == 0
        assert json.loads((run / "again" / "metrics.json").read_text())["mAP"] == pytest.approx(
            metrics["mAP"], abs=1e-4
        )


def test_demo_draws_and_prints_json(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((shapes / "JPEGImages").glob("test_*"))
    options = ["--out", str(tmp_path), "--threshold", "0", "--json", "--device", "cpu"]
    assert main(["demo", str(run), str(picture), *options]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["image"] == str(picture)
    assert all(set(d) == {"label", "name", "score", "box"} for d in row["detections"])
    drawn = cv2.imread(str(tmp_path / f"{picture.stem}_result.jpg"))
    assert drawn.shape == cv2.imread(str(picture)).shape


@pytest.mark.parametrize("display", [True, False])
def test_demo_shows_a_window_or_says_that_there_is_none(
    run: Path,
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    display: bool,
) -> None:
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "get_backend", lambda: "qtagg" if display else "agg")
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gca().images[0].get_array()))
    picture = next((shapes / "JPEGImages").glob("test_*"))
    assert main(["demo", str(run), str(picture), "--out", str(tmp_path), "--show", "--device", "cpu"]) == 0
    pyplot.close("all")
    assert [array.shape for array in shown] == ([cv2.imread(str(picture)).shape] if display else [])
    told = f"no window can be opened here; look at {tmp_path / f'{picture.stem}_result.jpg'}"
    assert (told in capsys.readouterr().err) != display


def test_python_api(run: Path, shapes: Path) -> None:
    import rcnn

    detector = rcnn.load(str(run), device="cpu")
    picture = next((shapes / "JPEGImages").glob("test_*"))
    one = detector(str(picture))
    image = np.ascontiguousarray(cv2.imread(str(picture))[:, :, ::-1])
    both = detector([str(picture), image])
    np.testing.assert_array_equal(one.boxes, both[0].boxes)
    np.testing.assert_array_equal(one.boxes, both[1].boxes)
    assert len(one.boxes) == len(one.scores) == len(one.labels) == len(one.names) > 0


def fault(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The message of a command that fails by the user's fault."""
    capsys.readouterr()
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tran"], ["unknown verb 'tran'", "did you mean train?"]),
        (["train"], ["which recipe?", "r18_custom"]),
        (["train", "r18_costum"], ["r18_costum", "did you mean r18_custom?"]),
        (["train", "nowhere.py"], ["nowhere.py", "no such recipe file"]),
        (["test", "nowhere"], ["nowhere", "model.safetensors"]),
        (["demo", "nowhere", "also_nowhere.jpg"], ["also_nowhere.jpg", "no such file"]),
        (["reeval", "nowhere.json"], ["nowhere.json", "no such file"]),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]) -> None:
    message = fault(capsys, argv)
    assert all(word in message for word in words), message


def test_misspelt_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "r18_custom", "--train.epoch", "3"])
    assert stop.value.code == 2
    assert "--train.epochs" in capsys.readouterr().err


def test_recipe_files_with_misspelt_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("from rcnn.config import *\nRECIPE = Recipe(train=Train(epoch=3))\n")
    (tmp_path / "b.json").write_text('{"train": {"epoch": 3}}')
    (tmp_path / "c.json").write_text('{"train": {"epochs": "three"}}')
    (tmp_path / "d.py").write_text("RECIPE = 3\n")
    assert "epoch" in fault(capsys, ["train", str(tmp_path / "a.py")])
    assert "did you mean train.epochs?" in fault(capsys, ["train", str(tmp_path / "b.json")])
    assert "$.train.epochs" in fault(capsys, ["train", str(tmp_path / "c.json")])
    assert "must set RECIPE" in fault(capsys, ["train", str(tmp_path / "d.py")])


def test_a_run_is_not_overwritten_nor_resumed_with_other_options(
    shapes: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert train(shapes, run) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train(shapes, run, "--resume", "--data.short-side", "80") == 2
    assert "--data.short_side 64 before, 80" in capsys.readouterr().err
    assert train(shapes, run, "--resume", "--train.lr", "1") == 0
    assert "--train.lr: 0.01 before, 1" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("batch", "0"), ("keep", "0"), ("lr", "-1"), ("epochs", "0")])
def test_values_that_cannot_be(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    capsys.readouterr()
    assert train(shapes, tmp_path / "run", f"--train.{option}", value) == 2
    assert f"--train.{option}" in capsys.readouterr().err


def test_classes_that_do_not_fit_the_weights(run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fault(capsys, ["test", str(run), "--data.classes", "circle", "hexagon"])
    assert "hexagon" in message and "circle" in message


def test_an_exploding_loss_names_the_images(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert train(shapes, tmp_path / "run", "--train.lr", "1e12", "--train.warmup", "0", epochs="4") == 2
    message = capsys.readouterr().err
    assert "not finite" in message and ".jpg" in message and "--train.lr" in message


def test_help_does_not_import_torch() -> None:
    code = "import sys; from rcnn.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0
