"""`rcnn combine`: an RPN and a Fast R-CNN that share their backbone to one detector."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rcnn.commands.options import parse

DESCRIPTION = """Join a region proposal network and a Fast R-CNN that share their backbone into one detector.
Both were trained by rcnn train with --train.method rpn and fast_rcnn, the second with --model.frozen all from the first
or both from one model. (Alternate training does this by itself.)"""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    rpn: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RPN")]
    """the model or run directory of the RPN"""
    fast_rcnn: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FAST_RCNN")]
    """the model or run directory of the Fast R-CNN"""
    out: str
    """the .safetensors file to write"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="combine", description=DESCRIPTION)
    from rcnn.build import model_path
    from rcnn.runs import combine

    if not options.out.endswith(".safetensors"):
        raise ValueError(f"--out {options.out}: must end in .safetensors")
    combine(model_path(options.rpn), model_path(options.fast_rcnn), Path(options.out))
    print(f"wrote {options.out}; next: rcnn test {options.out}", file=sys.stderr)
    return 0
