import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import rcnn
from rcnn import build
from rcnn.config import Data, Eval, Model, Recipe, Train
from rcnn.data.records import Record, RecordTable
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.models.norm import FrozenBatchNorm
from rcnn.recipes import r18_custom, r101_voc0712, vgg16_voc07
from rcnn.weights import safetensors
from tests import tiny

CPU = torch.device("cpu")
CLASSES = ("ant", "bee")
SMALL = Recipe(
    data=Data(short_side=64, long_side=96, workers=0),
    model=Model(
        backbone="resnet18",
        head_hidden=16,
        dropout=0.0,
        rpn_channels=8,
        roi_size=2,
        anchor_scales=(1, 2),
        frozen=("conv1", "layer1"),
    ),
    train=Train(rpn_rois=32, rois=16, rpn_pre_nms=64, rpn_post_nms=24, rpn_min_size=4),
    eval=Eval(rpn_pre_nms=64, rpn_post_nms=24, rpn_min_size=4, max_detections=10),
)
NETWORKS = {
    "vgg16": replace(vgg16_voc07.RECIPE.model, head_hidden=16),
    "resnet18": replace(r18_custom.RECIPE.model, head_hidden=16),
    "resnet50": Model(backbone="resnet50", head="stage4", roi_size=14, frozen=("conv1", "bn1", "layer1")),
    "resnet50_v2": replace(r101_voc0712.RECIPE.model, backbone="resnet50_v2"),
}


def small_model(seed: int = 0, **changes: object) -> FasterRCNN:
    torch.manual_seed(seed)
    return build.build_model(replace(SMALL.model, **changes), SMALL.eval, len(CLASSES))


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.compile
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_one_program(name: str) -> None:
    torch.compiler.reset()
    model = build.build_model(NETWORKS[name], SMALL.eval, 2).eval()
    batch = tiny.batch(objects=(1,), canvas=(32, 48))
    arguments = (batch.images, batch.image_size, batch.scale)
    with torch.no_grad():
        expected = model(*arguments)
        found = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")(*arguments)
    for ours, eager in zip(found, expected, strict=True):  # which fuses convolution and ReLU, and rounds otherwise
        torch.testing.assert_close(ours, eager, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("vgg16", {"conv1_1", "conv1_2", "conv2_1", "conv2_2"}, {"conv3_1", "conv5_3"}),
        ("resnet18", {"conv1", "layer1"}, {"layer2", "layer3"}),
        ("resnet50_v2", {"conv0", "stage1_unit1", "stage1_unit3"}, {"stage2_unit1", "stage3_unit6"}),
    ],
)
def test_definition_of_what_is_frozen(name: str, frozen: set[str], trained: set[str]) -> None:
    with torch.device("meta"):
        model = build.build_model(NETWORKS[name], SMALL.eval, 2)
    trains = {n.split(".")[0] for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained <= trains and not frozen & trains
    assert all(p.requires_grad for p in model.rpn.parameters())
    norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm)]
    assert not any(p.requires_grad for norm in norms for p in norm.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": ("stage1",)}, r"--model\.frozen stage1: no such stage.*conv1, bn1, layer1, layer2, layer3"),
        ({"backbone": "vgg16", "head": "stage4", "frozen": ()}, r"--model\.head stage4: VGG16 .*--model\.head fc"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build.build_model(replace(SMALL.model, **changes), SMALL.eval, 2)


def test_values_of_the_recipe_reach_the_model() -> None:
    model = small_model(offset=0.0, box_std=(1.0, 2.0, 3.0, 4.0), roi_op="align", dropout=0.25)
    assert (model.offset, model.roi_op, model.roi_size, model.head.dropout) == (0.0, "align", 2, 0.25)
    assert model.box_std.tolist() == [[1, 2, 3, 4]] * model.head.cls_score.out_features
    assert model.head.cls_score.out_features == 3 and model.rpn.num_anchors == 6
    assert (model.proposal_rules.pre_nms, model.detection_rules.most) == (64, 10)


# --- schedule and step ----------------------------------------------------------------------------------------------


def test_definition_of_mx_rcnns_schedule() -> None:
    schedule = build.build_schedule(vgg16_voc07.RECIPE.train, 10022)
    assert schedule.total == 100220 and schedule.drops == (70154,)
    assert [schedule(step) for step in (0, 70153, 70154, 100219)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_the_rate_follows_the_batch_where_the_recipe_says_so() -> None:
    train = Train(lr=0.01, batch=8, lr_batch=2, epochs=0.5, schedule="cosine", lr_final=0.5)
    assert build.build_schedule(train, 7).lr == 0.01
    schedule = build.build_schedule(replace(train, scale_lr=True), 7)
    assert (schedule.lr, schedule.total, schedule.final) == (0.04, 4, 0.5)
    assert build.build_schedule(replace(train, epochs=0), 7).total == 1


def test_the_step_trains_what_is_not_frozen(dataset: RecordTable) -> None:
    model = small_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    step = build.build_train_step(SMALL.train, model, CPU)
    loader = build.build_train_loader(SMALL, dataset)
    assert step(next(iter(loader.epoch(0))), 0.01)["loss"].isfinite()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) for name in moved)
    assert model.rpn.conv.weight.is_contiguous(memory_format=torch.channels_last)


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> RecordTable:
    """Three pictures with a box each."""
    records = []
    for i, size in enumerate([(64, 96), (48, 96), (96, 64)]):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((*size, 3), 40 * i, np.uint8))
        box, off = np.array([[4, 5, 40, 39]], np.float32), np.array([False])
        records.append(
            Record(i, str(tmp_path / f"{i}.png"), *size, box, np.array([1]), off, np.ones(1, np.float32), off)
        )
    return RecordTable.from_records(records, "three", CLASSES)


@pytest.mark.parametrize(
    ("flip", "epoch_of_flips", "images"), [(True, True, 6), (True, False, 3), (False, True, 3), (False, False, 3)]
)
def test_length_of_a_training_epoch(dataset: RecordTable, flip: bool, epoch_of_flips: bool, images: int) -> None:
    recipe = replace(
        SMALL, data=replace(SMALL.data, flip=flip), train=replace(SMALL.train, epoch_of_flips=epoch_of_flips)
    )
    assert len(build.build_train_loader(recipe, dataset)) == images


def test_the_test_loader_holds_each_image_once_and_no_mirror(dataset: RecordTable) -> None:
    loader = build.build_test_loader(replace(SMALL, eval=replace(SMALL.eval, batch=2)), dataset)
    batches = list(loader.epoch(0))
    assert sorted(i for batch in batches for i in batch.image_index.tolist() if i >= 0) == [0, 1, 2]
    assert all((batch.boxes[batch.boxes_valid] == torch.tensor([4.0, 5, 40, 39])).all() for batch in batches[:1])


# --- files ----------------------------------------------------------------------------------------------------------


def saved(folder: Path, model: FasterRCNN, recipe: Recipe = SMALL) -> Path:
    path = folder / "model.safetensors"
    build.save_model(path, model, recipe, CLASSES)
    return path


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_a_saved_model_comes_back_with_all_that_is_needed(tmp_path: Path) -> None:
    model = small_model().to(memory_format=torch.channels_last)
    path = saved(tmp_path, model)
    recipe, classes = build.read_model_header(path)
    assert (recipe, classes) == (SMALL, CLASSES)
    back = build.load_model(path, recipe, len(classes))
    assert same_weights(back.state_dict(), model.state_dict())


def test_what_a_model_file_lacks_is_zero_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    """A Fast R-CNN's has no RPN; its weights are memory-mapped, and may be changed without the file."""
    recipe = replace(SMALL, train=replace(SMALL.train, method="fast_rcnn"))
    path = saved(tmp_path, small_model(), recipe)
    before = path.read_bytes()
    back = build.load_model(path, recipe, len(CLASSES))
    assert not any(x.any() for x in back.rpn.parameters()) and back.head.fc6.weight.any()
    with torch.no_grad():
        for parameter in back.parameters():
            parameter.fill_(7)
    assert path.read_bytes() == before


def test_load_makes_a_detector_of_a_file_or_a_run(tmp_path: Path) -> None:
    model = small_model()
    path = saved(tmp_path, model)
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    results = [rcnn.load(str(where), device="cpu")(picture) for where in (path, tmp_path)]
    batch = tiny.batch(objects=(0,))._replace(images=torch.from_numpy(picture)[None])
    expected = build.build_detect_step(SMALL.eval, model, CPU)(batch)
    for found in results:
        count = len(found.boxes)
        assert count > 0 and set(found.names) <= set(CLASSES)
        assert np.allclose(found.boxes, expected.boxes[0, :count].numpy(), atol=1e-3)
        assert np.allclose(found.scores, expected.scores[0, :count].numpy(), atol=1e-5)
    middle = float(results[0].scores[len(results[0].scores) // 2])
    assert 0 < len(rcnn.load(str(path), threshold=middle)(picture).boxes) < len(results[0].boxes)


def test_pretrained_weights_fill_what_fits_and_classes_by_name(tmp_path: Path) -> None:
    source = small_model(seed=1)
    options = replace(SMALL.model, pretrained=str(saved(tmp_path, source)))
    model = build.build_model(options, SMALL.eval, 3)
    fresh = model.head.cls_score.weight.clone()
    report = build.load_pretrained(model, options, ("cow", "bee", "dog"))
    assert not report.initialised and not report.skipped
    assert same_weights(model.backbone.state_dict(), source.backbone.state_dict())
    found, given = model.head.cls_score.weight, source.head.cls_score.weight
    assert torch.equal(found[[0, 2]], given[[0, 2]])  # background, and bee, which is number 2 in both
    assert torch.equal(found[[1, 3]], fresh[[1, 3]])


@pytest.mark.parametrize("name", ["nowhere.safetensors", "."])
def test_a_model_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors or a run directory"):
        build.model_path(str(tmp_path / name))


def test_weights_without_a_recipe_are_refused_with_a_way_out(tmp_path: Path) -> None:
    safetensors.save(tmp_path / "w.safetensors", small_model().state_dict(), {})
    with pytest.raises(ValueError, match=r"w\.safetensors: weights without a recipe.*--model\.pretrained"):
        build.read_model_header(tmp_path / "w.safetensors")


def test_weights_that_do_not_fit_their_header_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, small_model(), replace(SMALL, model=replace(SMALL.model, head_hidden=32)))
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit the recipe"):
        build.load_model(path, build.read_model_header(path)[0], len(CLASSES))


def test_a_recipe_of_another_version_is_said(tmp_path: Path) -> None:
    header = {"format": build.FORMAT, "recipe": json.dumps({"model": {"depth": 3}}), "classes": "[]"}
    safetensors.save(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, header)
    with pytest.raises(ValueError, match=r"w\.safetensors, recipe in the header: unknown key model\.depth"):
        build.read_model_header(tmp_path / "w.safetensors")
