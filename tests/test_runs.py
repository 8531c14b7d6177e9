"""Alternate training, its phases by hand, and what joins them, on a small generated set."""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn import build, runs
from rcnn.config import Data, Recipe, Train, recipe_to_dict
from rcnn.data.proposals import open_proposals
from rcnn.data.shapes import write_shapes
from rcnn.recipes import r18_custom, vgg16_voc07_alternate
from rcnn.training.methods import ALTERNATE
from rcnn.weights import safetensors

PHASES = [phase.name for phase in ALTERNATE]


def track(items: Iterable[Any], *, total: int, what: str) -> Iterable[Any]:
    return iter(items)


def small(root: Path, method: str = "alternate", **train: Any) -> Recipe:
    """A recipe of four steps a phase."""
    given = r18_custom.RECIPE
    changes = {
        "rpn_pre_nms": 100,
        "rpn_post_nms": 20,
        "rois": 16,
        "precision": "fp32",
        "log_every": 2,
        "save_every": 0.5,
    }
    return Recipe(
        data=replace(given.data, root=str(root), short_side=64, long_side=96, workers=0),
        model=replace(given.model, head_hidden=16, rpn_channels=16, dropout=0.5),
        train=replace(given.train, method=method, epochs=1.0, **(changes | train)),
        eval=replace(
            given.eval, rpn_pre_nms=100, rpn_post_nms=20, dump_pre_nms=200, dump_post_nms=30, precision="fp32"
        ),
    )


def train(recipe: Recipe, run: Path, *, resume: bool = False) -> Path:
    runs.train_run(recipe, run, resume=resume, device="cpu", track=track)
    return run


def tensors(run: Path, part: str = "") -> dict[str, Tensor]:
    found, _ = safetensors.load(run / "model.safetensors")
    return {name: x for name, x in found.items() if name.startswith(part)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return bool(a) and set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=8, test=4, seed=0)
    return root


@pytest.fixture(scope="module")
def alternate(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished alternate training."""
    return train(small(shapes), tmp_path_factory.mktemp("runs") / "alternate")


# --- the phases' recipes --------------------------------------------------------------------------------------------


def test_recipes_of_the_phases() -> None:
    recipe = replace(vgg16_voc07_alternate.RECIPE, model=replace(vgg16_voc07_alternate.RECIPE.model, pretrained="vgg"))
    rpn1, rcnn1, rpn2, rcnn2 = (runs.phase_recipe(recipe, phase, Path("x")) for phase in ALTERNATE)
    assert [r.train.method for r in (rpn1, rcnn1, rpn2, rcnn2)] == ["rpn", "fast_rcnn"] * 2
    assert rpn1.model == rcnn1.model == recipe.model
    assert rpn2.model == rcnn2.model
    assert rpn2.model.frozen == ("all",) and Path(rpn2.model.pretrained) == Path("x/rcnn1/model.safetensors")
    assert Path(rcnn1.data.train_proposals) == Path("x/rpn1/proposals.npz")
    assert Path(rcnn2.data.train_proposals) == Path("x/rpn2/proposals.npz")
    assert (rpn1.train.batch, rpn1.train.epochs, rpn1.train.lr_steps) == (1, 8.0, (6.0,))
    assert (rcnn1.train.batch, rcnn1.train.rois, rcnn1.train.epochs, rcnn1.train.lr_steps) == (2, 64, 8.0, (6.0,))


def test_fast_rcnn_phases_can_have_a_schedule_of_their_own() -> None:
    train = replace(vgg16_voc07_alternate.RECIPE.train, fast_epochs=3.0, fast_lr=0.5, fast_lr_steps=(2.0,))
    recipe = replace(vgg16_voc07_alternate.RECIPE, train=train)
    rpn, fast = (runs.phase_recipe(recipe, phase, Path("x")).train for phase in ALTERNATE[:2])
    assert (rpn.epochs, rpn.lr, rpn.lr_steps) == (8.0, 0.001, (6.0,))
    assert (fast.epochs, fast.lr, fast.lr_steps) == (3.0, 0.5, (2.0,))


# --- alternate training ---------------------------------------------------------------------------------------------


def test_each_phase_is_a_run_of_its_own(alternate: Path) -> None:
    for name in PHASES:
        assert {"recipe.json", "metrics.jsonl", "checkpoints", "model.safetensors"} <= {
            path.name for path in (alternate / name).iterdir()
        }
        lines = [json.loads(line) for line in (alternate / name / "metrics.jsonl").read_text().splitlines()]
        trained, other = ("rpn", "head") if name.startswith("rpn") else ("head", "rpn")
        assert [line["step"] for line in lines] == [2, 4]
        assert all(line[f"{trained}_cls"] > 0 and line[f"{other}_cls"] is None for line in lines)
    assert tensors(alternate / "rpn1", "head.") == {} == tensors(alternate / "rcnn1", "rpn.")


def test_the_last_phases_share_the_backbone_of_the_second_and_make_the_detector(alternate: Path) -> None:
    backbone = tensors(alternate / "rcnn1", "backbone.")
    assert all(same(tensors(alternate / name, "backbone."), backbone) for name in ("rpn2", "rcnn2", ""))
    assert not same(tensors(alternate / "rpn1", "backbone."), backbone)
    assert same(tensors(alternate, "rpn."), tensors(alternate / "rpn2", "rpn."))
    assert same(tensors(alternate, "head."), tensors(alternate / "rcnn2", "head."))
    assert not same(tensors(alternate, "head."), tensors(alternate / "rcnn1", "head."))


def test_the_detector_detects(alternate: Path) -> None:
    detector = build.load(alternate, device="cpu")
    result = detector(np.full((64, 96, 3), 128, np.uint8))
    assert detector.classes == ("circle", "square", "triangle") and np.isfinite(result.boxes).all()


def test_proposals_of_a_phase_are_of_its_training_set(shapes: Path, alternate: Path) -> None:
    dataset = build.open_set(small(shapes).data, "trainval", classes=(), offset=0.0)
    table = open_proposals(str(alternate / "rpn1" / "proposals.npz"), dataset, offset=0.0)
    assert len(table) == 8 and 0 < table.num_boxes.max() <= 30
    for index in range(8):
        boxes, scores = table[index]
        assert (np.diff(scores) <= 0).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
        assert (boxes.max(0, initial=0)[2:] <= (dataset[index].width, dataset[index].height)).all()


@pytest.mark.parametrize("lost", ["rcnn2", "rpn2", "rcnn1"])
def test_a_run_goes_on_in_the_phase_and_step_where_it_was(
    shapes: Path, alternate: Path, tmp_path: Path, lost: str
) -> None:
    """As if the process had been killed between two checkpoints of a phase."""
    import shutil

    run = tmp_path / "stopped"
    shutil.copytree(alternate, run)
    for name in PHASES[PHASES.index(lost) + 1 :]:
        shutil.rmtree(run / name)
    for path in (run / "model.safetensors", run / lost / "model.safetensors", run / lost / "proposals.npz"):
        path.unlink(missing_ok=True)
    (run / lost / ".left.part").write_text("half a file")
    sorted((run / lost / "checkpoints").iterdir())[-1].unlink()
    done = (run / PHASES[0] / "model.safetensors").stat().st_mtime_ns
    train(small(shapes), run, resume=True)
    assert same(tensors(run), tensors(alternate))
    assert not (run / lost / ".left.part").exists()
    assert (run / PHASES[0] / "model.safetensors").stat().st_mtime_ns == done


# --- by hand --------------------------------------------------------------------------------------------------------


def test_the_phases_by_hand_give_the_same(shapes: Path, alternate: Path, tmp_path: Path) -> None:
    """rcnn train --train.method rpn, rcnn proposals, rcnn train --train.method fast_rcnn, rcnn combine."""
    recipe = small(shapes)
    dataset = build.open_set(recipe.data, "trainval", classes=(), offset=0.0)
    for phase in ALTERNATE:
        part = runs.phase_recipe(recipe, phase, tmp_path)
        train(part, tmp_path / phase.name)
        if phase.part == "rpn":
            model, out = tmp_path / phase.name / "model.safetensors", tmp_path / phase.name / "proposals.npz"
            runs.dump_proposals(part, model, dataset, out, device=torch.device("cpu"), track=track)
    models = (tmp_path / name / "model.safetensors" for name in ("rpn2", "rcnn2"))
    runs.combine(*models, tmp_path / "model.safetensors")
    assert same(tensors(tmp_path), tensors(alternate))
    assert build.read_model_header(tmp_path / "model.safetensors")[0].train.method == "alternate"


def test_combining_refuses_what_does_not_belong_together(alternate: Path, tmp_path: Path) -> None:
    models = {name: alternate / name / "model.safetensors" for name in PHASES}
    with pytest.raises(ValueError, match=r"do not share a backbone.*--model.frozen all"):
        runs.combine(models["rpn1"], models["rcnn2"], tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"rcnn2.*has no trained RPN; name the RPN first"):
        runs.combine(models["rcnn2"], models["rpn2"], tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_fast_rcnn_proposes_nothing(shapes: Path, alternate: Path, tmp_path: Path) -> None:
    model, out = alternate / "rcnn2" / "model.safetensors", tmp_path / "x.npz"
    recipe, _ = build.read_model_header(model)
    dataset = build.open_set(recipe.data, "trainval", classes=(), offset=0.0)
    with pytest.raises(ValueError, match=r"rcnn2.*is a Fast R-CNN, which has no RPN; give rcnn proposals one"):
        runs.dump_proposals(recipe, model, dataset, out, device=torch.device("cpu"), track=track)
    assert not out.exists()


def test_fast_rcnn_wants_proposals(shapes: Path, alternate: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fast_rcnn: wants.*--data.train_proposals FILE.*rcnn proposals"):
        train(small(shapes, "fast_rcnn"), tmp_path / "run")
    recipe, _ = build.read_model_header(alternate / "rcnn2" / "model.safetensors")
    dataset = build.open_set(recipe.data, "test", classes=recipe.data.classes, offset=0.0)
    with pytest.raises(ValueError, match=r"x: is a Fast R-CNN, which has no RPN.*--data.test_proposals FILE"):
        build.test_proposals(Path("x"), recipe, dataset)
    with pytest.raises(ValueError, match=r"no detector; use it with rcnn proposals"):
        build.load(alternate / "rpn2")


# --- run directories ------------------------------------------------------------------------------------------------


def test_a_run_is_resumed_with_the_same_network_and_data(tmp_path: Path) -> None:
    recipe = Recipe(data=Data(root="x"))
    recipe = runs.open_run(tmp_path, recipe, False)
    assert json.loads((tmp_path / "recipe.json").read_text()) == json.loads(json.dumps(recipe_to_dict(recipe)))
    runs.open_run(tmp_path, replace(recipe, data=Data(root="moved")), True)
    with pytest.raises(ValueError, match=r"--data.short_side 600 before, 400 now"):
        runs.open_run(tmp_path, replace(recipe, data=Data(root="x", short_side=400)), True)
    with pytest.raises(ValueError, match=r"--train.method joint before, rpn now"):
        runs.open_run(tmp_path, replace(recipe, train=replace(recipe.train, method="rpn")), True)
    with pytest.raises(ValueError, match=r"holds a run already"):
        runs.open_run(tmp_path, recipe, False)
    with pytest.raises(ValueError, match=r"nothing to resume"):
        runs.open_run(tmp_path / "other", recipe, True)


def test_frozen_random_weights_are_told(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = small(shapes)
    train(replace(recipe, train=replace(recipe.train, method="rpn", epochs=0.25)), tmp_path / "run")
    told = capsys.readouterr().err
    assert f"random weights, of which {', '.join(recipe.model.frozen)} will stay so" in told
    assert "--model.pretrained FILE" in told


def test_a_run_keeps_the_images_of_a_step(tmp_path: Path) -> None:
    """Whatever is given for one process later; also a run that was begun before there was such an option."""
    recipe = Recipe(data=Data(root="x"), train=Train(batch=2))
    assert runs.open_run(tmp_path, recipe, False).train.total_batch == 2
    other = replace(recipe, train=replace(recipe.train, batch=5))
    assert runs.open_run(tmp_path, other, True).train.total_batch == 2
    with pytest.raises(ValueError, match=r"--train.total_batch 2 before, 4 now"):
        runs.open_run(tmp_path, replace(recipe, train=replace(recipe.train, total_batch=4)), True)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_dict(recipe)).replace('"total_batch": 0, ', ""))
    assert runs.open_run(tmp_path, recipe, True).train.total_batch == 2


def test_a_group_that_torchrun_started_anew_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(data=Data(root="x"))
    runs.open_run(tmp_path, recipe, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    runs.open_run(tmp_path, recipe, False)
    runs.open_run(tmp_path / "new", recipe, False)


def test_a_group_that_dies_while_it_begins_knows_what_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with monkeypatch.context() as mishap:
        mishap.setattr(runs, "recipe_to_dict", lambda recipe: sys.exit("killed"))
        with pytest.raises(SystemExit):
            runs.open_run(tmp_path / "run", recipe, False)
    assert (tmp_path / "run" / "job").read_text() == "job"  # before the recipe, which makes it a run
    runs.open_run(tmp_path / "run", recipe, False)
    runs.open_run(tmp_path / "run", recipe, False)


def test_fast_rcnn_phases_have_their_own_images_of_a_step() -> None:
    train = Train(method="alternate", batch=1, fast_batch=2, total_batch=6)
    rpn, fast = (runs.phase_recipe(Recipe(train=train), phase, Path("x")).train for phase in ALTERNATE[:2])
    assert (rpn.batch, rpn.total_batch, fast.batch, fast.total_batch) == (1, 6, 2, 12)
