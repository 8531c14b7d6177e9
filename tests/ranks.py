"""Functions of the tests run in several processes, as torchrun would start them."""

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """How a process ended and what it said."""

    status: int
    out: str
    err: str


def run(
    target: str, *arguments: object, world: int, machines: bool = False, timeout: float = 120, **env: str
) -> list[Ended]:
    """Calls `module:function` with the arguments, as texts, in each of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(world):
        place = {"LOCAL_RANK": 0 if machines else rank, "LOCAL_WORLD_SIZE": 1 if machines else world}
        group = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **place}
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.ranks", target, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(x) for name, x in group.items()} | env,
            )
        )
    try:
        return [Ended(p.returncode, out, err) for p in started for out, err in [p.communicate(timeout=timeout)]]
    finally:
        for process in started:
            process.kill()


def children(pid: int) -> list[int]:
    """The processes of rcnn that a launcher started, by rank."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return sorted(int(line.split()[0]) for line in found.splitlines() if "rcnn" in line)


def _is_of_group(thread: Path) -> bool:
    """Such a thread, if it ends after the interpreter, aborts the process."""
    try:
        return "gloo" in thread.read_text()
    except OSError:  # it just ended
        return False


def main(target: str, *arguments: str) -> None:
    """Joins the group, calls the function, and ends as the command line does."""
    from rcnn.processes import joined

    module, _, function = target.partition(":")
    try:
        with joined("cpu"):
            getattr(importlib.import_module(module), function)(*arguments)
        assert not list(filter(_is_of_group, Path("/proc/self/task").glob("*/comm"))), "a thread of the group is left"
    except (ValueError, OSError) as error:
        print(f"rcnn: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
