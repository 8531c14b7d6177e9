"""The process that is measured: reads a request a line, answers a line, both JSON.

The first line says what to measure and the answer names the tasks; then each request is one of `run` (a timed run of a
task), `count` (its work), `ceiling` and `memory`. Nothing else goes to standard output.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from rcnn import processes
from rcnn.allocator import keep_freed_memory
from rcnn.benchmark import evaluation, network, operators, pictures, torchvision
from rcnn.benchmark.ceiling import measure_ceiling
from rcnn.benchmark.settings import Settings, Side, decode
from rcnn.benchmark.task import Task, count_work, time_task


def main() -> int:
    """Serve the process that started this one, until it closes the pipe."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        for answer in answers(sys.stdin):
            replies.write(json.dumps(answer) + "\n")
            replies.flush()
    except KeyboardInterrupt:  # of the whole terminal; the asking process says so
        return 130
    return 0


def answers(requests: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The answer to every request; a user's mistake is an answer too, anything else ends the process."""
    lines = iter(requests)
    side, settings = decode(next(lines))
    settings = replace(settings, device=processes.own_device(settings.device))
    with processes.joined(settings.device):
        try:
            tasks = open_tasks(side, settings)
        except ValueError as error:
            yield {"error": str(error)}
            return
        about = {name: {"precision": task.precision, "images": task.images} for name, task in tasks.items()}
        yield {"tasks": about, **_machine(side, _device_of(tasks))}
        for line in lines:
            yield _answer(tasks, **json.loads(line))


def open_tasks(side: Side, settings: Settings) -> dict[str, Task]:
    """What this side can do of the measurement."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    ours = side.package == "rcnn"
    if ours:
        keep_freed_memory()
    if settings.what == "data":
        return pictures.open_tasks(settings)
    if settings.what == "eval":
        return evaluation.open_ours(settings) if ours else evaluation.open_pycocotools(settings)
    if settings.what == "ops":
        return operators.open_ours(settings) if ours else operators.open_torchvision(settings)
    task = network.open_network(settings) if ours else torchvision.open_network(settings, side.mode)
    return {settings.what: task}


def _answer(tasks: dict[str, Task], do: str, task: str = "", precision: str = "") -> dict[str, Any]:
    device = _device_of(tasks)
    verbs: dict[str, Callable[[], dict[str, Any]]] = {
        "run": lambda: {"seconds": time_task(tasks[task])},
        "count": lambda: count_work(tasks[task])._asdict(),
        "ceiling": lambda: {"flops_per_second": measure_ceiling(precision, device)},
        "memory": lambda: {"bytes": peak_memory(device)},
    }
    return verbs[do]()


def peak_memory(device: torch.device) -> int:
    """The most this process has held: on the GPU where it computes on one, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_of(tasks: dict[str, Task]) -> torch.device:
    return next(iter(tasks.values())).device


def _machine(side: Side, device: torch.device) -> dict[str, Any]:
    versions = {"torch": str(torch.__version__)}
    if side.package != "rcnn":
        versions[side.package] = version(side.package)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"versions": versions, "threads": torch.get_num_threads(), "device": name}


if __name__ == "__main__":
    sys.exit(main())
