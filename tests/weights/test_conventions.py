import pytest

from rcnn.config import Model
from rcnn.weights.conventions import CONTINUOUS, INCLUSIVE, UNREADY, WORDS, in_words, refuse_unready


def test_definition_in_words() -> None:
    assert in_words(INCLUSIVE) == "boxes that include their last pixel, RoIPool"
    assert in_words(CONTINUOUS) == "boxes of continuous corners, RoIPool"
    assert in_words({"offset": 0.5}) == "offset 0.5"


@pytest.mark.parametrize("item", [*WORDS, *UNREADY])
def test_agreement_conventions_are_fields_of_a_recipes_model(item: tuple[str, object]) -> None:
    name, value = item
    assert isinstance(value, type(getattr(Model(), name)))


def test_what_no_model_has_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"a\.pth: was trained with crop_and_resize.*rcnn train RECIPE --model\.pre"):
        refuse_unready({**INCLUSIVE, "roi_op": "crop"}, source="a.pth")


def test_the_others_pass() -> None:
    for conventions in (INCLUSIVE, CONTINUOUS, {"roi_op": "align_legacy"}, {}):
        refuse_unready(conventions, source="a.pth")
