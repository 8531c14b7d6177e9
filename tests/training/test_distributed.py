"""One step shared out over passes and processes is the same step."""

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rcnn import processes
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch
from rcnn.training.distributed import Share, own_share, share_step
from rcnn.training.log import Log, NonFiniteLossError
from rcnn.training.losses import fast_rcnn_loss, joint_loss, rpn_loss
from rcnn.training.step import TrainStep, sgd
from tests import ranks, tiny

STEPS = 20
LOSSES = {"joint": joint_loss, "rpn": rpn_loss, "fast_rcnn": fast_rcnn_loss}
UNTRAINED = {"joint": "nothing", "rpn": "head.", "fast_rcnn": "rpn."}


# --- shares ---------------------------------------------------------------------------------------------------------


def test_definition_of_a_share() -> None:
    assert share_step(4, 1, 2) == Share(4, passes=2, size=1, world=2)
    seven = share_step(7, 2, 2)
    assert (seven.passes, seven.size, seven.places, seven.idle) == (2, 2, 4, 0) and seven.weight == 8 / 7
    assert share_step(1, 4, 3).idle == 2
    assert own_share(2, 0) == Share(2, 1, 2, 1) and own_share(2, 6) == Share(6, 3, 2, 1)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 20))
def test_a_share_has_room_for_every_image_and_no_pass_too_many(images: int, most: int, world: int) -> None:
    share = share_step(images, most, world)
    assert 1 <= share.size <= most and share.places * world >= images
    assert (share.passes - 1) * most * world < images
    assert share.weight == pytest.approx(share.places * world / images)


# --- passes ---------------------------------------------------------------------------------------------------------


def step_of(kind: str, share: Share | None = None, **options: object) -> TrainStep:
    model = tiny.detector(dropout=0.5).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(UNTRAINED[kind]))
    loss = partial(LOSSES[kind], rules=tiny.rules(count=8))
    return TrainStep(
        model, loss, sgd(model, momentum=0.9, weight_decay=1e-3), clip=5, bf16=False, share=share, **options
    )


def batch_of(step: int, images: int) -> Batch:
    """Images with 0 to 3 objects, and proposals near them and elsewhere."""
    batch = tiny.batch(objects=tuple((step + i) % 4 for i in range(images)), seed=step)
    found = torch.stack([tiny.boxes(1000 * step + i, 12) for i in range(images)])
    found[:, :4] = torch.where(batch.boxes_valid[..., None], batch.boxes + 2, found[:, :4])
    return batch._replace(proposals=found, proposals_valid=torch.ones(images, 12, dtype=torch.bool))


def places(batch: Batch, first: int, count: int) -> Batch:
    """Some places of a batch; those beyond it are empty."""
    row = [min(i, len(batch.images) - 1) for i in range(first, first + count)]
    empty = torch.tensor([i >= len(batch.images) for i in range(first, first + count)])
    part = tiny.rows(batch, *row)
    return part._replace(image_index=torch.where(empty, -1, part.image_index))


def train(step: TrainStep, images: int, share: Share) -> list[dict[str, Tensor]]:
    """Steps of this process's places; the scalars of all of them."""
    first = processes.rank() * share.places
    return [step(places(batch_of(i, images), first, share.places), 0.02) for i in range(STEPS)]


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to it."""
    return max(((a[name] - b[name]).norm() / a[name].norm().clamp(min=1e-30)).item() for name in a)


@pytest.fixture(scope="module")
def whole() -> dict[tuple[str, int], tuple[TrainStep, list[dict[str, Tensor]]]]:
    """Trainings of one process in one pass."""
    made = {}
    for kind in LOSSES:
        for images in (2, 3):
            step = step_of(kind)
            made[kind, images] = (step, train(step, images, share_step(images, images, 1)))
    return made


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("images", "most"), [(2, 1), (3, 1), (3, 2)])
def test_several_passes_are_one_step(whole: dict, kind: str, images: int, most: int) -> None:
    share = share_step(images, most, 1)
    step = step_of(kind, share)
    scalars = train(step, images, share)
    expected, theirs = whole[kind, images]
    assert difference(expected.model.state_dict(), step.model.state_dict()) < 1e-5
    for ours, one in zip(scalars, theirs, strict=True):
        assert all(torch.allclose(ours[name], one[name], atol=1e-4) for name in one)


def test_the_weights_have_moved(whole: dict) -> None:
    """By far more than by what the other tests allow them to differ."""
    for (kind, _), (step, _) in whole.items():
        assert difference(step_of(kind).model.state_dict(), step.model.state_dict()) > 1e-2


# --- processes ------------------------------------------------------------------------------------------------------


def train_together(folder: str, images: str, most: str) -> None:
    """Every method, in however many processes there are."""
    share = share_step(int(images), int(most), processes.world())
    for kind in LOSSES:
        step = step_of(kind, share)
        scalars = train(step, int(images), share)
        means = [{name: processes.gather(x).mean() for name, x in each.items()} for each in scalars]
        own = list(step.model.parameters())
        assert all((processes.gather(p.detach()) == p.detach()).all() for p in own)  # bit for bit in all processes
        if processes.rank() == 0:
            torch.save((step.model.state_dict(), means), Path(folder) / f"{kind}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("machines", [False, True])
@pytest.mark.parametrize(("world", "images", "most"), [(2, 2, 1), (3, 3, 1), (2, 3, 2), (2, 3, 1), (3, 2, 1)])
def test_several_processes_are_one_step(
    whole: dict, tmp_path: Path, world: int, images: int, most: int, machines: bool
) -> None:
    """Also where they cannot share evenly, and where one finds no image left; many images have no box.

    Of one machine they read each other's gradients; of several they send them.
    """
    target = "tests.training.test_distributed:train_together"
    ended = ranks.run(target, tmp_path, images, most, world=world, machines=machines)
    assert all(each.status == 0 for each in ended), ended
    for kind in LOSSES:
        weights, means = torch.load(tmp_path / f"{kind}.pt")
        expected, theirs = whole[kind, images]
        assert difference(expected.model.state_dict(), weights) < 1e-5
        for ours, one in zip(means, theirs, strict=True):
            assert all(torch.allclose(ours[name], one[name], atol=1e-4) for name in one), kind


def explode(model: FasterRCNN, batch: Batch) -> dict[str, Tensor]:
    """The joint loss, infinite (with a gradient that is not) on picture 71."""
    scalars, bad = joint_loss(model, batch, tiny.rules()), torch.where((batch.image_index == 71).any(), torch.inf, 0.0)
    return scalars | {"head_cls": scalars["head_cls"] + bad, "loss": scalars["loss"] + bad}


def without_boxes(folder: str) -> None:
    """The second process never has a box; then it has a picture that breaks the loss."""
    model, rank = tiny.detector().train(), processes.rank()
    step = TrainStep(model, explode, sgd(model, momentum=0.9, weight_decay=1e-3), clip=5, bf16=False)
    for i in range(3):
        assert step(tiny.batch(objects=(2 * (1 - rank),), seed=i), 0.02)["loss"].isfinite()
    before = [p.detach().clone() for p in model.parameters()]
    broken = tiny.batch(objects=(2,), seed=9)._replace(image_index=torch.tensor([70 + rank]))
    scalars = step(broken, 0.02)
    assert scalars["loss"].isnan() and all(map(torch.equal, before, model.parameters()))
    log = Log(Path(folder) / "log", every=9, total=9, name_image=lambda i: f"{i}.jpg")
    log.add(1, 0.1, 0.02, scalars, broken)
    with pytest.raises(NonFiniteLossError, match=r"images of the batch: 71\.jpg\."):
        log.flush(0.1, 0.02)


@pytest.mark.parametrize("machines", [False, True])
def test_a_process_without_boxes_and_one_with_a_bad_loss(tmp_path: Path, machines: bool) -> None:
    """The first hangs nobody; the second changes no weight anywhere, and its picture is named by all."""
    ended = ranks.run("tests.training.test_distributed:without_boxes", tmp_path, world=2, machines=machines)
    assert all(each.status == 0 for each in ended), ended


def compiled(folder: str) -> None:
    eager, step = step_of("joint"), step_of("joint", backend="aot_eager")
    for i in range(3):
        ours, theirs = step(batch_of(i, 2), 0.02), eager(batch_of(i, 2), 0.02)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)
    assert difference(eager.model.state_dict(), step.model.state_dict()) < 1e-5


@pytest.mark.compile
@pytest.mark.parametrize("machines", [False, True])
def test_a_compiled_step_of_two_processes(tmp_path: Path, machines: bool) -> None:
    ended = ranks.run("tests.training.test_distributed:compiled", tmp_path, world=2, machines=machines)
    assert all(each.status == 0 for each in ended), ended
