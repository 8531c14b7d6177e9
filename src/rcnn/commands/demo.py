"""`rcnn demo`: detect on pictures, draw the boxes, print them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rcnn.commands.options import parse

DESCRIPTION = "Detect on pictures, or on all pictures of folders; writes NAME_result.jpg and prints the boxes."
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a model.safetensors or a run directory"""
    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_OR_FOLDER...")]
    """pictures or folders of pictures"""
    out: str = "runs/demo"
    """directory for the drawn pictures"""
    threshold: float = 0.7
    """show detections of at least this score"""
    show: bool = False
    """open each result in a window as well"""
    json: bool = False
    """print one line of JSON a picture on standard output"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="demo", description=DESCRIPTION)
    from rcnn import build
    from rcnn.allocator import keep_freed_memory
    from rcnn.data.images import read_image
    from rcnn.terminal import printable

    keep_freed_memory()
    paths = picture_paths(options.images)
    detector = build.load(options.model, options.device, threshold=options.threshold)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    unread = 0
    for path in paths:
        try:
            image = read_image(path)
        except ValueError as error:
            print(f"rcnn: {printable(str(error))}", file=sys.stderr)
            unread += 1
            continue
        result = detector(image)
        target = write_picture(out, path, image, result, detector.classes, show=options.show)
        print(_json_line(path, result) if options.json else printable(_lines(path, target, result)), flush=True)
    if unread:
        raise ValueError(f"{unread} of {len(paths)} pictures could not be read (named above)")
    return 0


def picture_paths(given: tuple[str, ...]) -> list[Path]:
    """The files given, and the pictures in the folders given.

    Raises:
        ValueError: nothing was given, a path does not exist, or a folder holds no picture.
    """
    paths: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise ValueError(f"{path}: no pictures there ({', '.join(SUFFIXES)})")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise ValueError(f"{path}: no such file or folder")
    if not paths:
        raise ValueError("no pictures given: rcnn demo MODEL IMAGE_OR_FOLDER...")
    return paths


def write_picture(out: Path, path: Path, image, result, classes: tuple[str, ...], *, show: bool) -> Path:
    """Draw the result and write it as NAME_result.jpg; returns where."""
    import cv2

    from rcnn.inference.draw import draw_detections

    drawn = draw_detections(image, result.boxes, result.labels, result.scores, classes)
    target = out / f"{path.stem}_result.jpg"
    if not cv2.imwrite(str(target), drawn[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]):
        raise ValueError(f"{target}: cannot be written; choose another --out")
    if show:
        _show(target, drawn)
    return target


def _show(target: Path, drawn) -> None:
    from matplotlib import pyplot

    if pyplot.get_backend().lower() == "agg":  # what matplotlib takes without a display, and then shows nothing
        print(f"rcnn: no window can be opened here; look at {target}", file=sys.stderr)
        return
    pyplot.figure(str(target))
    pyplot.imshow(drawn)
    pyplot.axis("off")
    pyplot.show()


def _json_line(path: Path, result) -> str:
    detections = [
        {"label": int(label), "name": name, "score": float(score), "box": [float(x) for x in box]}
        for label, name, score, box in zip(result.labels, result.names, result.scores, result.boxes, strict=True)
    ]
    return json.dumps({"image": str(path), "detections": detections})


def _lines(path: Path, target: Path, result) -> str:
    lines = [f"{path}: {len(result.boxes)} detections -> {target}"]
    for name, score, box in zip(result.names, result.scores, result.boxes, strict=True):
        lines.append(f"  {name:<14} {score:.3f}  " + " ".join(f"{x:7.1f}" for x in box))
    return "\n".join(lines)
