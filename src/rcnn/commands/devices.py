"""`--devices N`: the same command line in N processes of this machine, started by torchrun's launcher."""

import logging
import os
import secrets
import sys
from collections.abc import Sequence


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


def start(verb: str, argv: Sequence[str], devices: int) -> int:
    """Run the verb in so many processes; returns the status of the one that failed first, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=secrets.token_hex(8), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "rcnn", verb, *argv)
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        if first.exitcode < 0:
            print(f"rcnn: process {rank} of {devices} was killed ({first.signal_name()})", file=sys.stderr)
        return max(1, first.exitcode)
    except SignalException:
        return 1
    return 0
