"""Truncated SVD of a model's fc6 and fc7, from the command line's side."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rcnn import build
from rcnn.compress import compress
from rcnn.config import Model
from rcnn.recipes import r18_custom

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
