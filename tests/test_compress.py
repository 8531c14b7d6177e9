"""Truncated SVD of a model's fc6 and fc7, and a model in int8, from the command line's side."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rcnn import build
from rcnn.commands.convert import main as convert
from rcnn.compress import compress, to_int8
from rcnn.config import Model
from rcnn.data.images import read_image
from rcnn.recipes import r18_custom
from rcnn.runs import combine
from rcnn.weights import safetensors
from rcnn.weights.open import read_weights

MODEL = Model(backbone="resnet18", head="fc", head_hidden=24, roi_size=2, rpn_channels=8, roi_op="align", frozen=())
RECIPE = replace(r18_custom.RECIPE, model=MODEL)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    build.save_model(path, build.build_model(MODEL, RECIPE.eval, 2), RECIPE, ("cat", "dog"))
    return path


def embedded(path: Path, x: torch.Tensor) -> torch.Tensor:
    recipe, classes = build.read_model_header(path)
    with torch.no_grad():
        return build.load_model(path, recipe, len(classes)).eval().head.embed(x)


def test_full_rank_changes_nothing(saved: Path, tmp_path: Path) -> None:
    out, x = tmp_path / "small.safetensors", torch.randn(5, 256, 2, 2)
    told = compress(saved, out, (24, 24))
    assert told.count("100.00% of their squares") == 2
    assert torch.allclose(embedded(out, x), embedded(saved, x), atol=1e-4)
    assert build.read_model_header(out)[0].model.svd == (24, 24)


def test_lower_ranks_are_smaller_and_nearer_the_higher_they_are(saved: Path, tmp_path: Path) -> None:
    x = torch.randn(50, 256, 2, 2)
    whole, errors, sizes = embedded(saved, x), [], []
    for rank in (4, 12, 20):
        out = tmp_path / f"{rank}.safetensors"
        compress(saved, out, (rank, rank))
        errors.append((embedded(out, x) - whole).square().mean().item())
        sizes.append(out.stat().st_size)
    assert errors[0] > errors[1] > errors[2] > 0
    assert sizes == sorted(sizes) and sizes[0] < saved.stat().st_size


def test_the_compressed_model_detects(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    compress(saved, out, (8, 8))
    detector = build.load(out, device="cpu")
    assert detector(torch.zeros(64, 80, 3, dtype=torch.uint8).numpy()).boxes.shape[1] == 4


@pytest.mark.parametrize("ranks", [(0, 3), (25, 3), (3,), (3, 3, 3)])
def test_ranks_that_do_not_fit(saved: Path, tmp_path: Path, ranks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give two ranks, of fc6 and fc7, from 1 to 24 and 1 to 24"):
        compress(saved, tmp_path / "out.safetensors", ranks)


def test_only_once(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    compress(saved, out, (8, 8))
    with pytest.raises(ValueError, match="is compressed already"):
        compress(out, tmp_path / "smaller.safetensors", (4, 4))


# --- int8


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        coarse = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, (80, 64)))
    return paths


def features(path: Path, picture: Path) -> torch.Tensor:
    step = build.load(path, device="cpu").step
    image = torch.from_numpy(read_image(picture))[None]
    with torch.no_grad():
        return step.model.features(image, torch.tensor([[64, 80]])).float()


def test_int8_is_a_quarter_of_the_size_and_near_the_model(saved: Path, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    told = to_int8(saved, out, pictures)
    assert told.startswith("int8: ") and "calibrated on 3 of 3 pictures" in told
    assert out.stat().st_size < 0.35 * saved.stat().st_size
    assert build.read_model_header(out)[0].model.int8
    exact, got = features(saved, pictures[0]), features(out, pictures[0])
    assert 0 < (got - exact).norm() / exact.norm() < 0.1


def test_int8_from_the_command_line(saved: Path, pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "int8.safetensors"
    assert convert([str(saved), "--int8", "--calibrate", *map(str, pictures), "--out", str(out)]) == 0
    detector = build.load(out, device="cpu")
    assert detector(pictures[0]).boxes.shape[1] == 4


def test_a_model_of_low_rank_goes_to_int8(saved: Path, pictures: list[Path], tmp_path: Path) -> None:
    small, out = tmp_path / "small.safetensors", tmp_path / "int8.safetensors"
    compress(saved, small, (8, 8))
    to_int8(small, out, pictures)
    assert build.load(out, device="cpu")(pictures[0]).boxes.shape[1] == 4


def test_a_fast_rcnn_goes_to_int8_without_the_rpn_that_it_lacks(pictures: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, train=replace(RECIPE.train, method="fast_rcnn"))
    path, out = tmp_path / "model.safetensors", tmp_path / "int8.safetensors"
    build.save_model(path, build.build_model(MODEL, recipe.eval, 2), recipe, ("cat", "dog"))
    to_int8(path, out, pictures)
    assert build.load(out, device="cpu")(pictures[0]).boxes.shape[1] == 4


def test_without_kernels_int8_runs_in_floating_point(
    saved: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "int8.safetensors"
    to_int8(saved, out, pictures)
    monkeypatch.setattr("rcnn.models.quantised.has_kernels", lambda device: False)
    exact, got = features(saved, pictures[0]), features(out, pictures[0])
    assert 0 < (got - exact).norm() / exact.norm() < 0.05
    assert "run in floating point" in caplog.text


@pytest.mark.parametrize(
    ("row", "column", "value"), [(0, 0, 0.0), (0, 0, -1.0), (2, 0, -1.0), (2, 1, 256.0), (1, 1, -1.0)]
)
def test_steps_that_are_none(
    saved: Path, pictures: list[Path], tmp_path: Path, row: int, column: int, value: float
) -> None:
    out = tmp_path / "int8.safetensors"
    to_int8(saved, out, pictures)
    tensors, header = safetensors.load(out)
    steps = tensors["head.fc6.steps"].clone()
    steps[row, column] = value
    safetensors.save(out, {name: x.clone() for name, x in tensors.items()} | {"head.fc6.steps": steps}, dict(header))
    with pytest.raises(ValueError, match=r"int8.safetensors: head.fc6.steps holds .*; the file is damaged"):
        build.load(out, device="cpu")


def test_what_int8_refuses(saved: Path, pictures: list[Path], tmp_path: Path) -> None:
    out, more = tmp_path / "int8.safetensors", tmp_path / "more.safetensors"
    with pytest.raises(ValueError, match="--int8: wants pictures to calibrate on"):
        convert([str(saved), "--int8", "--out", str(out)])
    with pytest.raises(ValueError, match="--calibrate: it is for --int8"):
        convert([str(saved), "--calibrate", str(pictures[0]), "--out", str(out)])
    with pytest.raises(ValueError, match="one after the other; --svd first"):
        convert([str(saved), "--int8", "--svd", "4", "4", "--out", str(out)])
    to_int8(saved, out, pictures)
    with pytest.raises(ValueError, match="in int8 already; --int8 wants the model it was made from"):
        to_int8(out, more, pictures)
    with pytest.raises(ValueError, match="in int8 already; --svd wants the model it was made from; --svd first"):
        compress(out, more, (4, 4))
    with pytest.raises(ValueError, match="in int8, which are for inference only; use the model it was made from"):
        read_weights(out, "resnet18")
    for given in ((out, saved), (saved, out)):
        with pytest.raises(ValueError, match=f"{out}: its weights are in int8; combine the models before, then"):
            combine(*given, more)
    with pytest.raises(ValueError, match=r"--model.int8: int8 is for inference; train without it"):
        build.check_values(build.read_model_header(out)[0])
    assert not more.exists()
