"""Names of the classes of an old detector, which seldom writes them down."""

from collections.abc import Sequence

# In the order of their numbers, which is that of mx-rcnn and of jwyang's program.
# Source: Lin et al. 2014, Microsoft COCO; names as in its annotation files.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def name_classes(
    count: int, names: tuple[str, ...], *, known: Sequence[tuple[str, ...]], source: object
) -> tuple[str, ...]:
    """Names for so many classes: those given, else the known ones of which there are as many.

    Raises:
        ValueError: too many or too few names are given, or none and none are known.
    """
    names = names or next((candidate for candidate in known if len(candidate) == count), ())
    if len(names) != count:
        raise ValueError(f"{source}: knows {count} classes, {len(names)} names are given; name each with --classes")
    return names
