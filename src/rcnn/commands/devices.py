"""`--devices N`: the same command line in N processes of this machine, started by torchrun's launcher."""

import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence

ASKED = (signal.SIGINT, signal.SIGTERM)  # a process that one of these ended is not missed


def must_start(devices: int) -> bool:
    """Whether this process has to start the others.

    Raises:
        ValueError: there can be no such number of processes, or torchrun started another number.
    """
    from rcnn.processes import started

    if devices < 0:
        raise ValueError(f"--devices {devices}: give the number of processes, 1 or more")
    if not started():
        return devices > 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if devices not in (0, here):
        raise ValueError(f"--devices {devices}: torchrun started {here} processes on this machine; leave --devices out")
    return False


def start(
    verb: str, argv: Sequence[str], devices: int, *, restarts: int = 0, saved: Callable[[], object] = lambda: None
) -> int:
    """Run the verb in so many processes; returns the status of the one that failed first, or 0.

    Args:
        restarts: where a process is killed, all are started anew, as often as this in a row.
        saved: what they have saved so far; when that changes the count begins again.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the processes speak for themselves
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    job, tries, before = secrets.token_hex(8), 0, saved()
    while True:
        status, killed = _launch(job, devices, "-m", "rcnn", verb, *argv)
        if not killed:
            return status
        now = saved()
        tries, before = tries + 1 if now == before else 1, now
        if tries > restarts:
            gave_up = f"; {restarts} restarts brought no new checkpoint (--restarts)" if restarts else ""
            print(f"rcnn: {killed}{gave_up}", file=sys.stderr)
            return status
        print(f"rcnn: {killed}; starting all {devices} anew from what is saved", file=sys.stderr, flush=True)


def _launch(job: str, devices: int, *argv: str) -> tuple[int, str]:
    """Start the processes and wait for them: their status, and which of them was killed if one was."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=job, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)(*argv)
    except ChildFailedError as error:
        status = max(1, error.get_first_failure()[1].exitcode)
        killed = [rank for rank, each in error.failures.items() if each.exitcode < 0 and -each.exitcode not in ASKED]
        if killed:
            return status, f"process {killed[0]} of {devices} was killed ({error.failures[killed[0]].signal_name()})"
        return status, ""
    except SignalException:
        return 1, ""
    return 0, ""
