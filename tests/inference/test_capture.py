from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rcnn.inference import capture
from rcnn.inference.capture import MOST_GRAPHS, WARM_UP, Captured, Recorder
from rcnn.inference.step import DetectStep
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Batch
from rcnn.training.losses import joint_loss
from rcnn.training.step import TrainStep, sgd
from tests import tiny
from tests.training.test_step import Weights, copies, scaled, step_of, unchanged

CPU = torch.device("cpu")


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Replays(Recorder):
    """Records as a GPU does, on the CPU: a replay reads and writes the memory of the recorded run."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, ...]] = []
        self.benchmarks: list[bool] = []

    def warm_up(self, step: Callable[..., Any], arguments: tuple[Any, ...], *, benchmark: bool) -> Any:
        self.benchmarks.append(benchmark)
        return step(*arguments)

    def record(self, step: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
        self.recorded.append(inputs)
        results = step(*(torch.zeros_like(x) if isinstance(x, Tensor) else x for x in inputs))

        def replay() -> None:
            for mine, new in zip(tree_leaves(results), tree_leaves(step(*inputs)), strict=True):
                mine.copy_(new)

        return replay, results


def total(x: Tensor, pair: Pair | None) -> dict[str, Tensor]:
    return {"sum": x.sum() if pair is None else x.sum() + (pair.a * pair.b).sum()}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "has_kernels", lambda device: True)


# --- definition -----------------------------------------------------------------------------------------------------


def test_a_shape_is_recorded_after_its_ordinary_runs_and_then_replayed(kernels: None) -> None:
    recorder = Replays()
    step = Captured(total, CPU, recorder)
    results = [step(torch.full((2,), float(i)), None)["sum"] for i in range(WARM_UP + 3)]
    assert [x.item() for x in results] == [2.0 * i for i in range(WARM_UP + 3)]
    assert len(recorder.recorded) == 1
    assert recorder.benchmarks == [False] * (WARM_UP - 1) + [True]


def test_every_shape_and_form_of_arguments_has_its_graph(kernels: None) -> None:
    recorder = Replays()
    step = Captured(total, CPU, recorder)
    pair = Pair(torch.ones(2), torch.tensor([3.0, 4.0]))
    for _ in range(WARM_UP + 2):
        assert step(torch.ones(2), None)["sum"] == 2
        assert step(torch.ones(5), None)["sum"] == 5
        assert step(torch.ones(2), pair)["sum"] == 9
        assert step(torch.ones(2, dtype=torch.int64), None)["sum"] == 2
    assert len(recorder.recorded) == 4


def test_arguments_are_copied_and_so_are_results(kernels: None) -> None:
    step, given = Captured(total, CPU, Replays()), torch.ones(2)
    for _ in range(WARM_UP + 1):
        first = step(given, None)["sum"]
    step(torch.zeros(2), None)
    assert first == 2 and torch.equal(given, torch.ones(2))


def test_shapes_beyond_the_most_run_as_they_are(kernels: None) -> None:
    recorder = Replays()
    step = Captured(total, CPU, recorder)
    for _ in range(WARM_UP + 2):
        for width in range(1, MOST_GRAPHS + 4):
            assert step(torch.ones(width), None)["sum"] == width
    assert len(recorder.recorded) == MOST_GRAPHS


@pytest.mark.parametrize("reason", ["asked", "no kernels", "processes", "no gpu"])
def test_without_a_graph_every_run_is_an_ordinary_one(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    monkeypatch.setattr(capture, "has_kernels", lambda device: reason != "no kernels")
    monkeypatch.setenv("RCNN_CAPTURE", "0" if reason == "asked" else "")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: reason == "processes")
    recorder = None if reason == "no gpu" else Replays()
    step = Captured(total, CPU, recorder)
    assert all(step(torch.ones(3), None)["sum"] == 3 for _ in range(WARM_UP + 2))
    assert recorder is None or not recorder.recorded + recorder.benchmarks


def test_training_replayed_is_training(kernels: None) -> None:
    """Every run counts once: the counterfeit records with zeros, from which nothing is learnt."""

    def grow(weight: Tensor, x: Tensor) -> Tensor:
        weight += x.sum()
        return weight.clone()

    weight = torch.zeros(())
    step = Captured(partial(grow, weight), CPU, Replays())
    assert [step(torch.ones(2)).item() for _ in range(WARM_UP + 3)] == [2.0 * (i + 1) for i in range(WARM_UP + 3)]


# --- on a GPU -------------------------------------------------------------------------------------------------------

CUDA = torch.device("cuda")
CANVASES = ((64, 96), (96, 64))


def on_gpu(batch: Batch) -> Batch:
    return Batch(*(x.cuda() for x in batch))


def training(model: FasterRCNN, bf16: bool, backend: str | None = None) -> TrainStep:
    model = model.to(CUDA, memory_format=torch.channels_last).train()
    loss, optimiser = partial(joint_loss, rules=tiny.rules()), sgd(model, momentum=0.9, weight_decay=5e-4)
    return TrainStep(model, loss, optimiser, clip=5.0, bf16=bf16, backend=backend)


def losses_and_weights(
    monkeypatch: pytest.MonkeyPatch, captured: bool, *, bf16: bool, **changes: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Eight updates on two canvases, with a learning rate that falls."""
    monkeypatch.setenv("RCNN_CAPTURE", str(int(captured)))
    step = training(tiny.detector(**changes), bf16)
    losses = []
    for i in range(8):
        batch = on_gpu(tiny.batch(seed=i, canvas=CANVASES[i % 2], objects=(i % 4, 1)))
        losses.append(step(batch, 0.02 / (i + 1))["loss"].cpu())
    assert len(step.update._graphs) == (2 if captured else 0)
    return losses, [p.detach().cpu() for p in step.model.parameters()]


@pytest.mark.gpu
@pytest.mark.compile  # the checker of shapes launches nothing, but takes time
@pytest.mark.parametrize(
    ("roi_op", "bf16"), [("pool", False), ("align", False), ("align_legacy", False), ("pool", True)]
)
def test_captured_training_is_eager_training(monkeypatch: pytest.MonkeyPatch, roi_op: str, bf16: bool) -> None:
    eager = losses_and_weights(monkeypatch, False, bf16=bf16, roi_op=roi_op)
    captured = losses_and_weights(monkeypatch, True, bf16=bf16, roi_op=roi_op)
    tolerance = {"rtol": 5e-2, "atol": 1e-2} if bf16 else {"rtol": 1e-3, "atol": 1e-4}
    for ours, theirs in zip(captured, eager, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.gpu
@pytest.mark.compile
def test_dropout_differs_from_replay_to_replay() -> None:
    step = training(tiny.detector(dropout=0.5), bf16=False)
    batch = on_gpu(tiny.batch())
    losses = [step(batch, 0.0)["head_cls"].item() for _ in range(8)]
    assert len(set(losses[WARM_UP + 1 :])) > 1


@pytest.mark.gpu
@pytest.mark.compile
def test_a_replayed_loss_that_is_not_finite_changes_nothing() -> None:
    model = Weights().to(CUDA)
    step = step_of(model)
    for _ in range(WARM_UP + 1):
        step(on_gpu(scaled(1.0)), 0.01)
    before = copies(model)
    assert step(on_gpu(scaled(torch.nan)), 0.1)["loss"].isnan()
    assert unchanged(model, before)
    assert step(on_gpu(scaled(1.0)), 0.1)["loss"].isfinite()
    assert not unchanged(model, before)


@pytest.mark.gpu
@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, inside inductor
def test_a_compiled_step_is_captured_whole() -> None:
    torch.compiler.reset()
    step, eager = training(tiny.detector(), False, "inductor"), training(tiny.detector(), False)
    for i in range(5):
        batch = on_gpu(tiny.batch(seed=i))
        assert torch.allclose(step(batch, 0.02)["loss"], eager(batch, 0.02)["loss"], rtol=1e-3, atol=1e-4)
    assert len(step.update._graphs) == 1


@pytest.mark.gpu
@pytest.mark.compile
@pytest.mark.parametrize("given", [False, True])
def test_captured_detection_is_eager_detection(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    batches = [tiny.batch(seed=i, canvas=CANVASES[i % 2]) for i in range(10)]
    if given:
        regions = torch.stack([tiny.boxes(i, 6) for i in range(2)])
        batches = [b._replace(proposals=regions, proposals_valid=torch.ones(2, 6, dtype=torch.bool)) for b in batches]
    found = []
    for captured in ("0", "1"):
        monkeypatch.setenv("RCNN_CAPTURE", captured)
        step = DetectStep(tiny.detector(), device=CUDA)
        found.append([step(batch) for batch in batches])
    assert len(step.forward._graphs) == 2
    for eager, replayed in zip(*found, strict=True):
        for a, b in zip(eager, replayed, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
