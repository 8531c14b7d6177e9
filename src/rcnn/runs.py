"""Run directories: a training of any method, begun or resumed, to its model.safetensors."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from rcnn import build, processes
from rcnn.allocator import keep_freed_memory
from rcnn.atomic import replacing
from rcnn.config import Recipe, recipe_from_dict, recipe_to_dict
from rcnn.data.proposal_npz import save_proposals
from rcnn.data.proposals import ProposalTable
from rcnn.data.records import RecordTable
from rcnn.evaluation.plots import plot_training
from rcnn.inference.collect import collect_proposals
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.terminal import printable
from rcnn.training.box_units import measure_box_units
from rcnn.training.distributed import Share, own_share
from rcnn.training.log import Log
from rcnn.training.loop import train
from rcnn.training.methods import ALTERNATE, Phase
from rcnn.weights import safetensors

# Options that may differ when a run is resumed, besides all of train and eval: where things are, not what they are.
MAY_CHANGE = (
    "--data.root",
    "--data.workers",
    "--data.test",
    "--data.train_proposals",
    "--data.test_proposals",
    "--model.pretrained",
)
MODEL, PROPOSALS = "model.safetensors", "proposals.npz"  # what a phase leaves


@runtime_checkable
class Track(Protocol):
    """Hands items on and shows how far it is."""

    def __call__(self, items: Iterable[Any], *, total: int, what: str) -> Iterator[Any]: ...


def train_run(recipe: Recipe, run: Path, *, resume: bool, device: str, track: Track) -> None:
    """Train by the recipe's method and write the run directory.

    Raises:
        ValueError: the recipe, its data or the directory cannot be used.
        StoppedError: a signal ended the run after its state was saved.
    """
    keep_freed_memory()
    build.check_values(recipe)
    place = build.choose_device(device)
    dataset = build.open_set(recipe.data, recipe.data.train, classes=(), offset=recipe.model.offset)
    recipe = replace(recipe, data=replace(recipe.data, classes=dataset.classes))
    recipe = open_run(run, recipe, resume)
    if recipe.train.method == "alternate":
        _train_alternate(recipe, dataset, run, place, track)
    else:
        _train_phase(recipe, dataset, run, place)
    print(f"wrote {run / MODEL}; next: {_next_step(recipe, run)}", file=sys.stderr)


def phase_recipe(recipe: Recipe, phase: Phase, run: Path) -> Recipe:
    """The recipe of one phase of the alternate training in `run`: what one would type to train it by itself."""
    data, model, train = recipe.data, recipe.model, replace(recipe.train, method=phase.part)
    if phase.part == "fast_rcnn":
        names = ("epochs", "lr", "lr_steps", "batch", "rois")
        total = math.ceil(train.total_batch * (train.fast_batch or train.batch) / train.batch)
        own = {name: getattr(train, f"fast_{name}") or getattr(train, name) for name in names}
        train = replace(train, total_batch=total, **own)
    if phase.start_from:
        model = replace(model, pretrained=str(run / phase.start_from / MODEL))
    if phase.shared:
        model = replace(model, frozen=("all",))
    if phase.proposals_from:
        data = replace(data, train_proposals=str(run / phase.proposals_from / PROPOSALS))
    return Recipe(data, model, train, recipe.eval)


def dump_proposals(
    recipe: Recipe, model: Path, dataset: RecordTable, out: Path, *, device: torch.device, track: Track
) -> None:
    """Write the proposals that the model's RPN makes on every image of the set.

    Raises:
        ValueError: it has none.
    """
    if recipe.train.method == "fast_rcnn":
        raise ValueError(f"{model}: is a Fast R-CNN, which has no RPN; give rcnn proposals one that has it")
    network = build.load_model(model, recipe, len(dataset.classes))
    step = build.build_propose_step(recipe.eval, network, device)
    found = collect_proposals(step, build.build_test_loader(recipe, dataset), dataset)
    by_index = {regions.index: regions for regions in track(found, total=len(dataset), what="proposing")}
    if processes.rank():
        return
    ordered = [by_index[index] for index in range(len(dataset))]
    save_proposals(
        out,
        [dataset[index].image_id for index in range(len(dataset))],
        [regions.boxes for regions in ordered],
        [regions.scores for regions in ordered],
        offset=recipe.model.offset,
        header={"method": "rpn", "set": dataset.name, "model": str(model)},
    )


def combine(rpn: Path, fast_rcnn: Path, out: Path, recipe: Recipe | None = None) -> None:
    """Join a region proposal network and a Fast R-CNN that share their backbone into one detector.

    Args:
        recipe: written with it; None: that of `fast_rcnn`.

    Raises:
        ValueError: a file lacks its part or is in int8, or their backbones, conventions or classes are not the same.
    """
    (proposer, names), (detector, classes) = build.read_model_header(rpn), build.read_model_header(fast_rcnn)
    for path, of in ((rpn, proposer), (fast_rcnn, detector)):
        if of.model.int8:
            raise ValueError(f"{path}: its weights are in int8; combine the models before, then rcnn convert --int8")
    tensors, others = safetensors.load(fast_rcnn)[0], safetensors.load(rpn)[0]
    for path, found, part in ((rpn, others, "rpn"), (fast_rcnn, tensors, "head")):
        if not any(name.startswith(f"{part}.") for name in found):
            raise ValueError(f"{path}: has no trained {'RPN' if part == 'rpn' else 'second stage'}; name the RPN first")
    conventions = (replace(r.model, pretrained="", frozen=()) for r in (proposer, detector))
    shared = [name for name in tensors if name.startswith("backbone.")]
    same = len(set(conventions)) == 1 and names == classes
    if not same or not all(torch.equal(tensors[name], others.get(name, tensors[name][:0])) for name in shared):
        raise ValueError(
            f"{rpn} and {fast_rcnn}: do not share a backbone, conventions and classes, so that they cannot be one "
            f"detector; train both from the same model with --model.frozen all"
        )
    recipe = recipe or replace(detector, train=replace(detector.train, method="alternate"))
    model = build.build_model(recipe.model, recipe.eval, len(classes))
    model.load_state_dict({name: x for name, x in others.items() if name.startswith("rpn.")} | tensors)
    build.save_model(out, model, recipe, classes)


def _train_alternate(recipe: Recipe, dataset: RecordTable, run: Path, device: torch.device, track: Track) -> None:
    for number, phase in enumerate(ALTERNATE, start=1):
        folder, part = run / phase.name, phase_recipe(recipe, phase, run)
        print(f"phase {number} of {len(ALTERNATE)}: {phase.name}", file=sys.stderr)
        if not processes.agree((folder / MODEL).is_file()):
            part = open_run(folder, part, resume=(folder / "recipe.json").is_file())
            _train_phase(part, dataset, folder, device)
        processes.share_file(folder / MODEL)
        if phase.part == "rpn":
            if not processes.agree((folder / PROPOSALS).is_file()):
                dump_proposals(part, folder / MODEL, dataset, folder / PROPOSALS, device=device, track=track)
            processes.share_file(folder / PROPOSALS)
    if processes.rank():
        return
    combine(run / "rpn2" / MODEL, run / "rcnn2" / MODEL, run / MODEL, recipe)


def _train_phase(recipe: Recipe, dataset: RecordTable, run: Path, device: torch.device) -> None:
    """One training from the first step, or from the newest checkpoint in the run directory, to its model."""
    torch.manual_seed(recipe.train.seed)
    model = build.build_model(recipe.model, recipe.eval, len(dataset.classes))
    if recipe.model.pretrained:
        print(build.load_pretrained(model, recipe.model, dataset.classes).format(), file=sys.stderr)
    elif recipe.model.frozen:
        print(
            f"starting from random weights, of which {', '.join(recipe.model.frozen)} will stay so (--model.frozen): "
            f"give ImageNet weights with --model.pretrained FILE; rcnn download --list shows some",
            file=sys.stderr,
        )
    proposals = None
    if recipe.train.method == "fast_rcnn":
        proposals = build.open_given_proposals(recipe, dataset, recipe.data.train_proposals)
        use_class_units(recipe, model, dataset, proposals)
    loader = build.build_train_loader(recipe, dataset, proposals)
    schedule = build.build_schedule(recipe.train, len(loader))
    print(printable(_summary(recipe, dataset, schedule.total, device)), file=sys.stderr)
    log = Log(
        run / "metrics.jsonl",
        every=recipe.train.log_every,
        total=schedule.total,
        name_image=lambda index: dataset[index].path,
    )
    with closing(loader):
        train(
            build.build_train_step(recipe.train, model, device),
            loader,
            schedule,
            log,
            folder=run / "checkpoints",
            save_every=max(1, round(recipe.train.save_every * len(loader))),
            keep=recipe.train.keep,
        )
    if processes.rank():
        return
    use_recipe_units(recipe, model)
    plot_training(run / "metrics.jsonl", run / "curves.png")
    build.save_model(run / MODEL, model, recipe, dataset.classes)


def use_class_units(recipe: Recipe, model: FasterRCNN, dataset: RecordTable, proposals: ProposalTable) -> None:
    """Let the box layer train in units of each class's own mean and deviation on the set, as Fast R-CNN does."""
    mean, std = measure_box_units(
        dataset,
        proposals,
        offset=recipe.model.offset,
        positive_iou=recipe.train.roi_positive_iou,
        mirrored=recipe.data.flip,
        default_std=recipe.model.box_std,
    )
    model.change_box_units(mean, std)


def use_recipe_units(recipe: Recipe, model: FasterRCNN) -> None:
    """Let the box layer speak in the recipe's units, as every model file does."""
    std = torch.tensor(recipe.model.box_std).repeat(len(model.box_std), 1)
    model.change_box_units(torch.zeros_like(std), std)


def open_run(run: Path, recipe: Recipe, resume: bool) -> Recipe:
    """Make the directory and write the recipe into it, or see that a resumed run has the same network and data.

    A group that torchrun started anew, because a process of it died or a machine came back, resumes what it had begun.

    Returns:
        The recipe with the images of a step that the run keeps, which rank 0 knows.

    Raises:
        ValueError: there is nothing to resume, or a run that is not to be resumed, or one of another recipe.
    """
    return _with_total_batch(recipe, processes.agree(_open_run(run, recipe, resume) if processes.rank() == 0 else 0))


def _open_run(run: Path, recipe: Recipe, resume: bool) -> int:
    path, job = run / "recipe.json", run / "job"
    if path.is_file() and (resume or processes.is_restarted(job)):
        recipe = _compare_with_begun(path, recipe)
    elif resume:
        raise ValueError(f"{run}: nothing to resume there; leave --resume out to begin")
    elif path.exists():
        raise ValueError(f"{run}: holds a run already; go on with --resume, or choose another --run")
    for left in run.rglob(".*.part"):  # of a run that was killed while it wrote
        left.unlink()
    images = own_share(recipe.train.batch, recipe.train.total_batch).images
    processes.sign(job)  # first: a group that dies here shall know that what it finds is its own
    with replacing(path) as file:
        file.write((json.dumps(recipe_to_dict(_with_total_batch(recipe, images)), indent=2) + "\n").encode())
    return images


def _with_total_batch(recipe: Recipe, images: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, total_batch=images))


def _compare_with_begun(path: Path, recipe: Recipe) -> Recipe:
    """Refuse another network or other data; say what else is not as the run was begun."""
    before = recipe_from_dict(json.loads(path.read_text()), where=str(path))
    if not recipe.train.total_batch:
        recipe = _with_total_batch(recipe, before.train.total_batch or before.train.batch)
    old, new = recipe_to_dict(before), recipe_to_dict(recipe)
    changed = {
        f"--{group}.{name}": f"{old[group][name]} before, {new[group][name]} now"
        for group in old
        for name in old[group]
        if old[group][name] != new[group][name]
    }
    fixed = [key for key in changed if key.startswith(("--model.", "--data.")) and key not in MAY_CHANGE]
    fixed += [key for key in ("--train.method", "--train.total_batch") if key in changed]
    if fixed:
        told = "; ".join(f"{key} {changed[key]}" for key in fixed[:5])
        raise ValueError(f"{path}: the run was begun with other options ({told}); give the same, or another --run")
    for key, values in changed.items():
        print(f"resuming with another {key}: {values}", file=sys.stderr)
    return recipe


def _summary(recipe: Recipe, dataset: RecordTable, steps: int, device: torch.device) -> str:
    classes, share = dataset.classes, own_share(recipe.train.batch, recipe.train.total_batch)
    what = {"joint": "", "rpn": "RPN of ", "fast_rcnn": "Fast R-CNN with "}[recipe.train.method]
    return (
        f"{what}{recipe.model.backbone} on {len(dataset)} images of {recipe.data.train}, {len(classes)} classes "
        f"({', '.join(classes[:6])}{', ...' if len(classes) > 6 else ''}); {steps} steps of "
        f"{share.images} images on {device}{_shared(share)}"
    )


def _shared(share: Share) -> str:
    """How the images of a step are shared out, where that needs saying."""
    told = f", by {share.world} processes" if share.world > 1 else ""
    told += f", in {share.passes} passes of {share.size}" if share.passes > 1 else ""
    idle = f"; {share.idle} of them find no image left: the run was begun with {share.images} a step"
    return told + (idle if share.idle else "")


def _next_step(recipe: Recipe, run: Path) -> str:
    if recipe.train.method == "rpn":
        return f"rcnn proposals {run} --out FILE.npz"
    if recipe.train.method == "fast_rcnn" and not recipe.data.test_proposals:
        return f"rcnn test {run} --data.test_proposals FILE"
    return f"rcnn test {run}"
