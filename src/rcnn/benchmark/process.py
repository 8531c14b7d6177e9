"""The asking end of a worker process."""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import rcnn
from rcnn.benchmark.settings import Settings, Side, encode

PATIENCE = 10.0  # seconds for a worker to end by itself


class Worker:
    """A side of a measurement in a process of its own, or in several; leaving the `with` block ends them.

    Raises:
        ValueError: the side cannot be measured here, and why.
    """

    def __init__(self, side: Side, settings: Settings) -> None:
        self.side = side
        self._processes = [_start(side, group) for group in _groups(side.processes)]
        try:
            self.about = self._exchange(encode(side, settings))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Precision and images a run of every task, of all processes together."""
        count = self.side.processes
        return {name: {**task, "images": task["images"] * count} for name, task in self.about["tasks"].items()}

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """The answer of the first process to one request that all of them carry out."""
        return self._exchange(json.dumps({"do": do, **arguments}))

    def time(self, task: str) -> float:
        """Seconds of one run."""
        return self.ask("run", task=task)["seconds"]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin and process.stdout
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _exchange(self, line: str) -> dict[str, Any]:
        for process in self._processes:
            assert process.stdin
            with suppress(BrokenPipeError):  # it has ended, which the answer tells
                process.stdin.write(line + "\n")
                process.stdin.flush()
        first, *_ = [self._answer(process) for process in self._processes]
        return first

    def _answer(self, process: subprocess.Popen) -> dict[str, Any]:
        assert process.stdout
        reply = process.stdout.readline()
        if not reply:
            raise RuntimeError(f"{self.side.label}: the worker process ended with status {process.wait()}")
        answer = json.loads(reply)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def _program(side: Side) -> list[str]:
    if side.package == "mxnet":  # -I: its own folder is on no path, so that `import mxnet` finds the package
        return [side.python, "-I", str(Path(__file__).with_name("mxnet.py"))]
    return [sys.executable, "-m", "rcnn.benchmark.worker"]


def _start(side: Side, group: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        _program(side),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **_import_path(), **side.environment, **group},
    )


def _groups(processes: int) -> list[dict[str, str]]:
    """What torchrun would tell each of the processes; nothing where there is one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = str(processes)
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _import_path() -> dict[str, str]:
    """So that the worker imports this very package."""
    paths = [str(Path(rcnn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
