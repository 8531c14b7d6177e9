"""What a detector was trained with besides its weights: fields of a recipe's model, by name."""

from collections.abc import Mapping

INCLUSIVE: Mapping[str, object] = {"offset": 1.0, "roi_op": "pool"}  # of py-faster-rcnn and those that follow it
CONTINUOUS: Mapping[str, object] = {"offset": 0.0, "roi_op": "pool"}  # of ChainerCV and those that follow it
WORDS: Mapping[tuple[str, object], str] = {
    ("offset", 1.0): "boxes that include their last pixel",
    ("offset", 0.0): "boxes of continuous corners",
    ("beyond", 1.0): "decoded one pixel beyond",
    ("roi_op", "pool"): "RoIPool",
    ("roi_op", "align_legacy"): "RoIAlign of the first kind (half a cell off, a sample for each cell of a bin)",
}
UNREADY: Mapping[tuple[str, object], str] = {("roi_op", "crop"): "crop_and_resize, a bilinear grid over the RoI"}


def in_words(conventions: Mapping[str, object]) -> str:
    """The conventions for people."""
    return ", ".join(WORDS.get(item, f"{item[0]} {item[1]}") for item in conventions.items())


def refuse_unready(conventions: Mapping[str, object], *, source: str) -> None:
    """Passes unless a convention is one that no model of ours has.

    Raises:
        ValueError: naming it, and the way out.
    """
    for item in conventions.items():
        if item in UNREADY:
            raise ValueError(
                f"{source}: was trained with {UNREADY[item]}, which is not built yet: with another operator it would "
                "detect something else; a training can start from it: rcnn train RECIPE --model.pretrained FILE"
            )
