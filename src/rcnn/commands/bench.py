"""`rcnn bench`: time inference, training, the operators or the data path on this machine."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rcnn.benchmark.settings import Against, Mode, Settings, What, choose_sides, with_rois
from rcnn.commands.options import parse

DESCRIPTION = """Time this machine: a recipe's network (infer, train), its operators (ops), its data path (data) or the
evaluation of a set (eval), on made-up input. Prints medians, the range that holds half of the runs, and the share of
the machine's own ceiling."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    what: Annotated[What, tyro.conf.Positional]
    """what to time"""
    recipe: str = "vgg16_voc07"
    """a recipe's name or file"""
    against: Against = "nothing"
    """compare, pair by pair, with the same network or operators built from torchvision, or with mx-rcnn's network in
    MXNet; eval: with pycocotools"""
    peer_modes: tuple[Mode, ...] = ("default", "best")
    """how the other runs: default is fp32; channels_last adds that layout and a fused optimiser; best adds bf16;
    _malloc sets glibc's allocator to keep freed memory and PyTorch's to huge pages, as rcnn does itself"""
    peer_python: str = ""
    """for mxnet: the Python of a venv that has mxnet==1.9.1 and numpy==1.23.5"""
    json: str = ""
    """file to write all times to"""
    height: int = 600
    """of the canvas"""
    width: int = 800
    """of the canvas"""
    batch: int = 1
    """images a run"""
    rois: int = 0
    """RoIs of a picture in the second stage; 0: as many as the recipe says"""
    runs: int = 10
    """timed runs, after two that are not"""
    threads: int = 0
    """of torch; 0: its own choice, or each process's part of the cores"""
    precision: Literal["recipe", "fp32", "bf16", "auto"] = "recipe"
    """ours; recipe: what the recipe says"""
    winograd: bool = False
    """infer in fp32 on a CPU: ours as with --eval.winograd; its FLOPs are counted as the direct convolution's"""
    int8: bool = False
    """infer on a CPU: ours as rcnn convert --int8 makes it; the ceiling is still that of the other layers' precision"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    data_root: str = ""
    """folder of pictures for data; empty: generated ones"""
    images: int = 5000
    """of the set for eval"""
    devices: int = 1
    """compare a training step with that of so many processes, with as many threads each and --batch images each"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="bench", description=DESCRIPTION)
    from rcnn.benchmark.measure import measure
    from rcnn.benchmark.report import format_report, write_json
    from rcnn.recipes.find import find_recipe

    names = ("height", "width", "batch", "precision", "winograd", "int8", "device", "threads", "data_root", "images")
    shared = {name: getattr(options, name) for name in names}
    if options.devices > 1 and not options.threads:
        shared["threads"] = max(1, (os.cpu_count() or 1) // options.devices)
    settings = Settings(options.what, with_rois(find_recipe(options.recipe), options.rois), **shared)
    sides = choose_sides(options.what, options.against, options.peer_modes, options.devices, options.peer_python)
    report = measure(settings, sides, runs=options.runs)
    if options.json:
        write_json(Path(options.json), report, options.recipe)
    print(format_report(report, options.recipe))
    return 0
