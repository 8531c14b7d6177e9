"""CUDA graphs: a step of static shapes is recorded once a canvas, and replayed as one launch instead of thousands."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from rcnn.ops import has_kernels

WARM_UP = 2  # ordinary runs of a canvas before it is recorded
MOST_GRAPHS = 32  # each keeps its inputs; canvases beyond run as they are

Step = Callable[..., Any]  # of tensors, or of tuples of them


class Captured:
    """A step that, on a GPU, becomes a CUDA graph for every shape of its arguments.

    The first runs of a shape are ordinary ones, and count: a training step may be captured. The step must not ask the
    host, and must find all that is not an argument at the same place of memory each time. Results are copies.

    Without a GPU, without its kernels, with RCNN_CAPTURE=0 or among several processes (whose gradients are averaged by
    hooks that a graph would not see) every run is an ordinary one.
    """

    def __init__(self, step: Step, device: torch.device, recorder: "Recorder | None" = None) -> None:
        self.step = step
        self.device = device
        self._recorder = recorder or (Recorder(device) if device.type == "cuda" else None)
        self._runs: Counter[tuple] = Counter()
        self._graphs: dict[tuple, Graph] = {}

    def __call__(self, *arguments: Any) -> Any:
        if self._recorder is None or not _wanted(self.device):
            return self.step(*arguments)
        shape = _shape(arguments)
        if shape not in self._graphs:
            self._runs[shape] += 1
            if self._runs[shape] <= WARM_UP or len(self._graphs) == MOST_GRAPHS:
                return self._recorder.warm_up(self.step, arguments, benchmark=self._runs[shape] == WARM_UP)
            self._graphs[shape] = Graph(self._recorder, self.step, arguments)
        return self._graphs[shape](arguments)


class Graph:
    """One recorded run: its inputs are copied to where it reads them, its results from where it writes them."""

    def __init__(self, recorder: "Recorder", step: Step, arguments: tuple[Any, ...]) -> None:
        self.inputs = tree_map_only(Tensor, torch.clone, arguments)
        self.replay, self.results = recorder.record(step, self.inputs)

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        for mine, given in zip(_tensors(self.inputs), _tensors(arguments), strict=True):
            mine.copy_(given, non_blocking=True)
        self.replay()
        return tree_map_only(Tensor, torch.clone, self.results)


class Recorder:
    """Runs and records on a stream of its own. All graphs share one pool of memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step, arguments: tuple[Any, ...], *, benchmark: bool) -> Any:
        """An ordinary run; with `benchmark` cuDNN tries its algorithms, and keeps the fastest for these shapes."""
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream), _benchmark(benchmark):
            results = step(*arguments)
        present.wait_stream(self.stream)
        for result in _tensors(results):
            result.record_stream(present)
        return results

    def record(self, step: Step, inputs: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
        """What replays the step, which is not run now, and the tensors that hold its results then.

        Raises:
            ValueError: the step asks the host, as a backbone or a loss from outside may.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device), _benchmark(True), self._recording(graph):
                results = step(*inputs)
        except RuntimeError as error:
            raise ValueError(f"the step is no CUDA graph ({error}); RCNN_CAPTURE=0 runs it without") from error
        return graph.replay, results

    def _recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        return torch.cuda.graph(graph, pool=self.pool, stream=self.stream)


@contextmanager
def _benchmark(on: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or (on and not torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _wanted(device: torch.device) -> bool:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return os.environ.get("RCNN_CAPTURE") != "0" and not distributed and has_kernels(device)


def _shape(arguments: tuple[Any, ...]) -> tuple:
    """What fixes a graph: shape and type of every tensor, and everything else as it is."""
    leaves, structure = tree_flatten(arguments)
    return (str(structure), *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
