"""A small generated data set: coloured circles, squares and triangles, learnt on a CPU in minutes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

CLASSES = ("circle", "square", "triangle")
SIZES = ((240, 320), (320, 240), (240, 320), (264, 304))  # height, width
SIDES = (30, 140)  # px, of an object's box before it is turned
MAX_OBJECTS = 6
EMPTY_SHARE = 0.04  # of images without objects
MAX_COVERED = 0.1  # share of the smaller of two boxes
MIN_CONTRAST = 150  # sum over the three channels, object against the mean of the background
SUBPIXEL_BITS = 3  # of cv2's drawing coordinates


class Shape(NamedTuple):
    """An object to draw."""

    label: int  # position in CLASSES
    outline: Float64[np.ndarray, "v 2"]  # x, y of a polygon
    colour: tuple[int, int, int]

    @property
    def box(self) -> Float64[np.ndarray, "4"]:
        """Left, top, right, bottom."""
        return np.concatenate([self.outline.min(0), self.outline.max(0)])


def write_shapes(root: str | os.PathLike[str], *, train: int, test: int, seed: int) -> None:
    """Writes a VOC-style folder with the sets `trainval` and `test`; equal seeds give equal images.

    Args:
        train: images of the set trainval.
        test: images of the set test.
    """
    folder = Path(root)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for part, (split, count) in enumerate((("trainval", train), ("test", test))):
        names = [f"{split}_{number:05d}" for number in range(count)]
        for number, name in enumerate(names):
            image, shapes = draw_shapes(np.random.default_rng([seed, part, number]))
            _write_image(folder, name, image, shapes)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def draw_shapes(generator: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w 3"], list[Shape]]:
    """A picture (RGB) and what is on it."""
    height, width = SIZES[generator.integers(len(SIZES))]
    image = _background(generator, height, width)
    mean = image.mean((0, 1))
    wanted = 0 if generator.random() < EMPTY_SHARE else generator.integers(1, MAX_OBJECTS + 1)
    shapes: list[Shape] = []
    for _ in range(20 * wanted):
        shape = _random_shape(generator, height, width, mean)
        if len(shapes) < wanted and not any(_overlap(shape.box, other.box) for other in shapes):
            shapes.append(shape)
    for shape in shapes:
        points = np.rint(shape.outline * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(image, [points], shape.colour, cv2.LINE_AA, SUBPIXEL_BITS)
    noise = generator.normal(0, generator.uniform(2, 8), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), shapes


def _background(generator: np.random.Generator, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A soft colour gradient with coarse blotches."""
    corners = (generator.uniform(50, 205, 3) + generator.normal(0, 25, (2, 2, 3))).astype(np.float32)
    blotches = generator.normal(0, 12, (9, 11, 3)).astype(np.float32)
    layers = (cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR) for layer in (corners, blotches))
    return np.clip(sum(layers), 0, 255).astype(np.uint8)


def _random_shape(
    generator: np.random.Generator, height: int, width: int, background: Float64[np.ndarray, "3"]
) -> Shape:
    label = int(generator.integers(len(CLASSES)))
    side = float(np.exp(generator.uniform(*np.log(SIDES))))
    unit = OUTLINES[CLASSES[label]]()
    angle = generator.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = unit @ turn * side * generator.uniform(0.85, 1.0, 2)
    low, high = -outline.min(0), np.array([width, height]) - 1 - outline.max(0)
    return Shape(label, outline + generator.uniform(low, high), _contrasting(generator, background))


def _circle() -> Float64[np.ndarray, "v 2"]:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return 0.5 * np.stack([np.cos(angles), np.sin(angles)], 1)


def _square() -> Float64[np.ndarray, "v 2"]:
    return np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])


def _triangle() -> Float64[np.ndarray, "v 2"]:
    return np.array([[0.0, -0.5], [0.5, 0.5], [-0.5, 0.5]])


OUTLINES: dict[str, Callable[[], Float64[np.ndarray, "v 2"]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
}


def _contrasting(generator: np.random.Generator, background: Float64[np.ndarray, "3"]) -> tuple[int, int, int]:
    while True:
        red, green, blue = generator.integers(0, 256, 3).tolist()
        if np.abs(np.array([red, green, blue]) - background).sum() >= MIN_CONTRAST:
            return red, green, blue


def _overlap(a: Float64[np.ndarray, "4"], b: Float64[np.ndarray, "4"]) -> bool:
    shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    smaller = min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod())
    return bool(shared.min() > 0 and shared.prod() > MAX_COVERED * smaller)


def _write_image(folder: Path, name: str, image: UInt8[np.ndarray, "h w 3"], shapes: list[Shape]) -> None:
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    height, width = image.shape[:2]
    objects = "".join(_object_xml(shape) for shape in shapes)
    (folder / "Annotations" / f"{name}.xml").write_text(
        f"<annotation>\n  <filename>{name}.jpg</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )


def _object_xml(shape: Shape) -> str:
    left, top, right, bottom = (np.rint(shape.box) + 1).astype(int).tolist()  # VOC counts pixels from 1
    return (
        f"  <object><name>{CLASSES[shape.label]}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>\n"
    )
