import json
from pathlib import Path

import pytest

from rcnn.weights.classes import COCO_CLASSES, name_classes


def test_definition_the_names_of_coco() -> None:
    assert len(set(COCO_CLASSES)) == 80
    assert COCO_CLASSES[:3] == ("person", "bicycle", "car")
    assert COCO_CLASSES[-1] == "toothbrush"


def test_agreement_with_cocos_own_file(shared: Path) -> None:
    file = shared / "data" / "coco_official_mini" / "annotations" / "instances_train2017.json"
    categories = json.loads(file.read_text())["categories"]
    assert COCO_CLASSES == tuple(c["name"] for c in sorted(categories, key=lambda category: category["id"]))


def test_definition_names_given_or_known() -> None:
    known = (("a", "b"), ("c", "d", "e"))
    assert name_classes(2, ("x", "y"), known=known, source="f") == ("x", "y")
    assert name_classes(3, (), known=known, source="f") == ("c", "d", "e")


@pytest.mark.parametrize(("count", "names"), [(4, ()), (2, ("x",)), (3, ("x", "y"))])
def test_a_wrong_number_of_names_is_refused(count: int, names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"f\.params: knows {count} classes, {len(names)} names .*--classes"):
        name_classes(count, names, known=(("a", "b", "c"),) if names else (), source="f.params")
