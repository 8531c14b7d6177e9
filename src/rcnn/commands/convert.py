"""`rcnn convert`: any weight file we know to ours, saying what was kept, initialised and left."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rcnn.commands.options import parse

DESCRIPTION = """Convert a weight file to ours: mx-rcnn's .params, py-faster-rcnn's .caffemodel, checkpoints of
simple-faster-rcnn-pytorch and of jwyang's faster-rcnn.pytorch, torchvision's classifiers.
A whole detector becomes a model for rcnn test and rcnn demo; weights of a backbone a file for --model.pretrained.
With --svd or --int8: a model of rcnn to a smaller and faster one, at a price in accuracy."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """the weight file"""
    out: str
    """the .safetensors file to write"""
    recipe: str = "vgg16_voc07"
    """the recipe that the weights belong to: network and conventions"""
    classes: tuple[str, ...] = ()
    """names of the classes in order, of a detector; empty: VOC's 20 or COCO's 80, where that many were trained"""
    pixels: Literal["auto", "caffe", "torchvision"] = "auto"
    """its input, where the file does not say it: caffe (BGR minus a mean) or torchvision (RGB, normalised)"""
    svd: tuple[int, ...] = ()
    """ranks of fc6 and fc7 for truncated SVD, such as 1024 256; SOURCE is then a model of rcnn or its run directory"""
    int8: bool = False
    """weights and maps in int8, for inference on a CPU; SOURCE is a model of rcnn or its run directory"""
    calibrate: tuple[str, ...] = ()
    """pictures or folders of them from the training set, whose maps say the ranges of int8; of more than 64 a part"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="convert", description=DESCRIPTION)
    from rcnn.build import convert
    from rcnn.recipes.find import find_recipe

    if not options.out.endswith(".safetensors"):
        raise ValueError(f"--out {options.out}: must end in .safetensors")
    if options.svd and options.int8:
        raise ValueError("--svd with --int8: one after the other; --svd first, then --int8 on what it wrote")
    if options.calibrate and not options.int8:
        raise ValueError("--calibrate: it is for --int8; add --int8 or leave --calibrate out")
    if options.int8:
        from rcnn.commands.demo import picture_paths
        from rcnn.compress import to_int8

        pictures = picture_paths(options.calibrate) if options.calibrate else []
        print(to_int8(Path(options.source), Path(options.out), pictures))
        print(f"wrote {options.out}", file=sys.stderr)
        return 0
    if options.svd:
        from rcnn.compress import compress

        print(compress(Path(options.source), Path(options.out), options.svd))
        print(f"wrote {options.out}", file=sys.stderr)
        return 0
    recipe = find_recipe(options.recipe)
    told = convert(Path(options.source), Path(options.out), recipe, options.classes, options.pixels)
    print(told)
    print(f"wrote {options.out}", file=sys.stderr)
    return 0
