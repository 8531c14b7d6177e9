"""The asking end of a worker process."""

import json
import os
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
    """A side of a measurement in a process of its own; leaving the `with` block ends it.

    Raises:
        ValueError: the side cannot be measured here, and why.
    """

    def __init__(self, side: Side, settings: Settings) -> None:
        self.side = side
        self._process = subprocess.Popen(
            _program(side),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_import_path(), **side.environment},
        )
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
        """Precision and images a run of every task."""
        return self.about["tasks"]

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        """The worker's answer to one request."""
        return self._exchange(json.dumps({"do": do, **arguments}))

    def time(self, task: str) -> float:
        """Seconds of one run."""
        return self.ask("run", task=task)["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _exchange(self, line: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            raise RuntimeError(f"{self.side.label}: the worker process ended with status {self._process.wait()}")
        answer = json.loads(reply)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def _program(side: Side) -> list[str]:
    if side.package == "mxnet":  # -I: its own folder is on no path, so that `import mxnet` finds the package
        return [side.python, "-I", str(Path(__file__).with_name("mxnet.py"))]
    return [sys.executable, "-m", "rcnn.benchmark.worker"]


def _import_path() -> dict[str, str]:
    """So that the worker imports this very package."""
    paths = [str(Path(rcnn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
