import json

import pytest
import torch

from rcnn.benchmark import worker
from rcnn.benchmark.settings import Side, encode
from rcnn.benchmark.task import Task
from tests.benchmark.small import settings


@pytest.fixture(autouse=True)
def same_threads_after() -> None:
    """A worker may be asked to set the number of threads; tests after this one want their own."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records what would be done to the allocator of the test process."""
    calls: list[str] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: calls.append("kept"))
    return calls


def served(side: Side, given, *requests: dict) -> list[dict]:
    return list(worker.answers([encode(side, given), *map(json.dumps, requests)]))


def test_every_request_is_answered_in_order(allocator: list[str]) -> None:
    requests = [{"do": "count", "task": "infer"}, {"do": "run", "task": "infer"}, {"do": "memory"}]
    about, work, run, memory = served(Side("rcnn"), settings("infer", threads=1), *requests)
    assert about["tasks"] == {"infer": {"precision": "fp32", "images": 1}}
    assert about["threads"] == 1 and about["device"] == "cpu" and about["versions"] == {"torch": torch.__version__}
    assert work["rois"] == 10 and work["flops"] > 0
    assert run["seconds"] > 0
    assert memory["bytes"] > 10 * 2**20
    assert allocator == ["kept"]


def test_the_ceiling_is_asked_by_precision(allocator: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "measure_ceiling", lambda precision, device: {"fp32": 1.0, "bf16": 2.0}[precision])
    answers = served(Side("rcnn"), settings("infer"), *({"do": "ceiling", "precision": p} for p in ("bf16", "fp32")))
    assert [answer["flops_per_second"] for answer in answers[1:]] == [2.0, 1.0]


def test_the_users_mistake_is_an_answer(allocator: list[str]) -> None:
    (answer,) = served(Side("rcnn"), settings("infer", device="nonsense"), {"do": "memory"})
    assert "--device nonsense" in answer["error"]


def test_a_set_is_evaluated_by_either_side(allocator: list[str]) -> None:
    for side in (Side("rcnn"), Side("peer", "pycocotools")):
        about, run = served(side, settings("eval", images=2), {"do": "run", "task": "COCO"})
        assert about["tasks"]["COCO"] == {"precision": "float64", "images": 2} and run["seconds"] > 0
    assert about["versions"]["pycocotools"] and allocator == ["kept"]


@pytest.mark.parametrize("what", ["infer", "ops", "data"])
def test_the_peer_keeps_its_allocator(what, allocator: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = {"it": Task(lambda: None, "fp32", torch.device("cpu"))}
    monkeypatch.setattr(worker.torchvision, "open_network", lambda given, mode: opened["it"])
    monkeypatch.setattr(worker.operators, "open_torchvision", lambda given: opened)
    monkeypatch.setattr(worker.pictures, "open_tasks", lambda given: opened)
    tasks = worker.open_tasks(Side("peer", "torchvision"), settings(what))
    assert list(tasks.values()) == [opened["it"]]
    assert not allocator
