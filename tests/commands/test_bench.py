"""`rcnn bench` as a user runs it, on a network that takes milliseconds."""

import json
from pathlib import Path

import pytest

from rcnn.benchmark import settings as bench_settings
from rcnn.cli import main
from rcnn.config import recipe_to_dict
from tests.benchmark.small import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(recipe_to_dict(RECIPE)))
    return str(path)


def test_it_prints_a_table_and_writes_json(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    size = ["--height", "64", "--width", "96", "--runs", "2", "--threads", "1", "--device", "cpu"]
    assert main(["bench", "data", "--recipe", recipe, *size, "--json", str(out)]) == 0
    assert "decode and resize" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert [len(row["times"]) for row in rows] == [2, 2, 2]
    assert all(row["images_per_second"] > 0 for row in rows)


@pytest.mark.parametrize("what", ["infer", "train"])
def test_the_rois_asked_for_are_those_that_are_done(what: str, recipe: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    size = ["--height", "64", "--width", "96", "--runs", "1", "--threads", "1", "--device", "cpu", "--rois", "7"]
    assert main(["bench", what, "--recipe", recipe, *size, "--json", str(out)]) == 0
    assert [row["rois"] for row in json.loads(out.read_text())["rows"]] == [7]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["infer", "--recipe", "vgg61_voc07"], ["vgg61_voc07", "did you mean vgg16_voc07?"]),
        (["infer", "--height", "5"], ["--height 5", "at least 32"]),
        (["infer", "--runs", "0"], ["--runs 0", "at least 1"]),
        (["infer", "--rois", "-3"], ["--rois -3", "at least 1"]),
        (["infer", "--against", "mxnet"], ["--peer-python ''", "mxnet==1.9.1", "leave --against out"]),
        (["data", "--against", "torchvision"], ["--against torchvision", "leave --against out"]),
        (["infer", "--against", "torchvision"], ["--against torchvision", "not installed", "leave --against out"]),
    ],
)
def test_mistakes(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_settings, "find_spec", lambda name: None)
    assert main(["bench", *argv]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert all(word in message for word in words), message


def test_help_and_unknown_words(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, status in ((["--help"], 0), ([], 2), (["fly"], 2)):
        with pytest.raises(SystemExit) as end:
            main(["bench", *argv])
        assert end.value.code == status
    assert "--peer-modes" in capsys.readouterr().out
