"""The COCO annotation file as typed objects: only the fields we use are decoded, so the masks cost nothing."""

import json
from pathlib import Path

import msgspec


class Image(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: int | str
    file_name: str = ""
    height: float = 0  # 0 = not said
    width: float = 0


class Annotation(msgspec.Struct, gc=False):
    """An entry of `annotations`."""

    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]  # x, y, width, height
    id: int | str = "without id"
    iscrowd: int | bool = 0
    area: float | None = None


class Category(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: int
    name: str


class CocoFile(msgspec.Struct):
    """A whole annotation file; a file image_info_*.json has no annotations."""

    images: list[Image]
    categories: list[Category] = []
    annotations: list[Annotation] | None = None


def read_coco_file(path: Path) -> CocoFile:
    """Decodes an annotation file.

    Raises:
        ValueError: naming the file and, if a field is missing or of the wrong type, where it is.
    """
    try:
        return _decode(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:  # ends with the place, as `$.annotations[3].bbox`
        raise ValueError(f"{path}: {error}; correct or remove that entry ($ is the file, counting from 0)") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no valid JSON: {error}; copy or write the file again") from error


def _decode(data: bytes) -> CocoFile:
    try:
        return msgspec.json.decode(data, type=CocoFile)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if b"NaN" not in data and b"Infinity" not in data:
            raise
    return msgspec.convert(json.loads(data), CocoFile)  # json reads NaN; the check of the boxes drops it with a count
