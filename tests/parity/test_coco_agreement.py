"""COCO's numbers are pycocotools', on real annotations with crowds, mask areas and equal scores."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.data.coco import load_coco
from rcnn.evaluation.coco import NUMBERS, evaluate_coco
from rcnn.evaluation.ground_truth import read_coco_ground_truth
from rcnn.evaluation.results import ImageInfo, read_detections, write_detections

TOLERANCE = 1e-6
SETS = {
    "val2017_subset": "data/coco_val2017_subset/annotations/instances_val.json",
    "official_mini": "data/coco_official_mini/annotations/instances_train2017.json",
}


@pytest.fixture(scope="module", params=SETS.values(), ids=SETS.keys())
def annotations(request, shared: Path) -> Path:
    return shared / request.param


def perturbed(document: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """The annotations as a detector might have found them: shifted, missed, doubled, confused, with rounded scores."""
    rng = np.random.default_rng(seed)
    ids = [category["id"] for category in document["categories"]]
    results = []
    for annotation in document["annotations"]:
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            x, y, width, height = annotation["bbox"]
            across, down, wider, higher = rng.normal(0, rng.choice([0.0, 0.02, 0.1]), 4)
            box = [x + across * width, y + down * height, width * np.exp(wider), height * np.exp(higher)]
            category = annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(ids))
            results.append(result(annotation["image_id"], category, box, rng.beta(5, 2)))
    for image in document["images"]:
        for _ in range(rng.integers(0, 3)):
            corner = rng.uniform(0, 0.5, 2) * (image["width"], image["height"])
            size = rng.uniform(2, 0.5 * min(image["width"], image["height"]), 2)
            results.append(result(image["id"], int(rng.choice(ids)), [*corner, *size], rng.beta(2, 5)))
    return results


def result(image_id: int, category_id: int, box: list[float], score: float) -> dict[str, Any]:
    bbox = [float(value) for value in box]
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": round(float(score), 2)}


def pycocotools_numbers(path: Path, results: list[dict[str, Any]]) -> tuple[list[float], dict[int, float]]:
    """The twelve numbers, and the average precision by category id."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluator = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    means = {c: precision[:, :, k][precision[:, :, k] > -1] for k, c in enumerate(evaluator.params.catIds)}
    return evaluator.stats.tolist(), {c: float(values.mean()) if values.size else -1.0 for c, values in means.items()}


def known(value: float | None) -> float:
    return -1.0 if value is None else value


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_are_pycocotools(annotations, tmp_path, offset, seed):
    document = json.loads(annotations.read_text())
    results = perturbed(document, seed)
    names = [category["name"] for category in document["categories"]]
    ids = [category["id"] for category in document["categories"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = read_detections(tmp_path / "results.json", offset=offset, classes=names, category_ids=ids).detections
    metrics = evaluate_coco(read_coco_ground_truth(annotations, names, offset=offset), found, names, offset=offset)

    numbers, by_category = pycocotools_numbers(annotations, results)
    assert [known(metrics[key]) for key in NUMBERS] == pytest.approx(numbers, abs=TOLERANCE)
    ours = {category: known(metrics["AP_by_class"][name]) for category, name in zip(ids, names, strict=True)}
    assert ours == pytest.approx(by_category, abs=TOLERANCE)
    assert 0.1 < metrics["AP"] < 0.9


def test_records_of_our_reader_give_the_same(annotations, tmp_path):
    document = json.loads(annotations.read_text())
    (tmp_path / "results.json").write_text(json.dumps(perturbed(document, seed=3)))
    table = load_coco(annotations.parents[1], annotations.stem.removeprefix("instances_"), offset=1.0)
    ids = {category["name"]: category["id"] for category in document["categories"]}
    options = {"classes": table.classes, "category_ids": [ids[name] for name in table.classes]}
    found = read_detections(tmp_path / "results.json", offset=1.0, **options).detections
    raw = read_coco_ground_truth(annotations, table.classes, offset=1.0)
    by_record, by_file = (evaluate_coco(truth, found, table.classes, offset=1.0) for truth in (table, raw))
    assert [known(by_record[key]) for key in NUMBERS] == pytest.approx(
        [known(by_file[key]) for key in NUMBERS], abs=TOLERANCE
    )
    assert by_record["num_gt"] == by_file["num_gt"]


def test_our_detections_file_goes_into_pycocotools_as_it_is(annotations, tmp_path):
    document = json.loads(annotations.read_text())
    (tmp_path / "results.json").write_text(json.dumps(perturbed(document, seed=2)))
    names = [category["name"] for category in document["categories"]]
    ids = [category["id"] for category in document["categories"]]
    found = read_detections(tmp_path / "results.json", offset=1.0, classes=names, category_ids=ids).detections
    found = [image._replace(boxes=image.boxes.astype(np.float32)) for image in found]  # as a model gives them
    images = [ImageInfo(i["id"], i["file_name"], i["height"], i["width"]) for i in document["images"]]
    write_detections(tmp_path / "detections.json", names, images, found, offset=1.0, category_ids=ids)

    results = json.loads((tmp_path / "detections.json").read_text())["detections"]
    again = read_detections(tmp_path / "detections.json", offset=1.0).detections
    metrics = evaluate_coco(read_coco_ground_truth(annotations, names, offset=1.0), again, names, offset=1.0)
    assert [known(metrics[key]) for key in NUMBERS] == pytest.approx(
        pycocotools_numbers(annotations, results)[0], abs=1e-6
    )
