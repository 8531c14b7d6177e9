"""Two machines, simulated, that train together as docs/distributed.md says, and what may happen to one of them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcnn.data.shapes import write_shapes
from tests import hosts
from tests.commands.test_devices import NO_LOGS, SMALL
from tests.commands.test_kill import metrics, steps
from tests.hosts import Host

LOOP = 'until "$@"; do sleep 1; done'
TIMEOUT = 8  # seconds; those of torch's agents are a minute and more
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def simulated() -> None:
    if why := hosts.lacking():
        pytest.skip(why)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with hosts.two_hosts(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=24, test=2, seed=0)
    return root


def verb(shapes: Path, run: Path) -> list[str]:
    """Four epochs of some twelve steps of two images."""
    command = ["train", "r18_custom", "--data.root", str(shapes), "--run", str(run), *SMALL, "--train.batch", "1"]
    return [*command, "--train.epochs", "4", "--train.save-every", "0.25", "--train.log-every", "1"]


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed, by two processes of one machine."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    command = [sys.executable, "-m", "rcnn", *verb(shapes, run), "--devices", "2"]
    subprocess.run(command, check=True, capture_output=True, timeout=150)
    return run


def start(host: Host, shapes: Path, run: Path, timeout: float) -> subprocess.Popen[bytes]:
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", *NO_LOGS, "--rdzv-backend", "c10d"]
    options += ["--rdzv-id", "mine", "--rdzv-endpoint", "host-a:29500", "-m", "rcnn", "--", *verb(shapes, run)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
    return host.start(
        ["sh", "-c", LOOP, "loop", *torchrun], host.folder / "log", **ENVIRONMENT, RCNN_TIMEOUT=str(timeout)
    )


def disturb(
    pair: tuple[Host, Host],
    shapes: Path,
    runs: tuple[Path, Path],
    act: Callable[[], list[Host]],
    timeout: float = TIMEOUT,
) -> str:
    """Both train; in the middle of the second epoch something happens, after which some hosts must be started.

    Returns:
        What they said.
    """
    started = {host: start(host, shapes, run, timeout) for host, run in zip(pair, runs, strict=True)}
    wait_for(lambda: steps(runs[0])[-1:] >= [18], 90, pair)
    for host in act():
        started[host].wait(20)
        started[host] = start(host, shapes, runs[pair.index(host)], timeout)
    wait_for(lambda: all(process.poll() is not None for process in started.values()), 150, pair)
    assert [process.wait() for process in started.values()] == [0, 0], told(pair)
    return told(pair)


def told(pair: tuple[Host, Host]) -> str:
    return "\n".join((host.folder / "log").read_text() for host in pair)


def wait_for(what: Callable[[], bool], seconds: float, pair: tuple[Host, Host]) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, told(pair)[-6000:]
        time.sleep(0.02)


def assert_same(whole: Path, run: Path) -> None:
    """Bit for bit: two numbers have one sum, whatever the order."""
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(run) == metrics(whole) and steps(run) == list(range(1, len(steps(whole)) + 1))


def beginnings(said: str) -> int:
    return said.count(" steps of 2 images on cpu, by 2 processes")


def cut_off(host: Host, until: Callable[[], None]) -> list[Host]:
    host.cut()
    until()
    host.mend()
    return []


def switch_off(host: Host, seconds: float) -> list[Host]:
    """Nobody is told that it ends; then it is switched on, and the command given again."""
    host.cut()
    host.die()
    time.sleep(seconds)
    host.mend()
    return [host]


def test_a_cable_that_is_soon_plugged_in_again_is_waited_for(
    pair: tuple[Host, Host], shapes: Path, whole: Path
) -> None:
    runs = (pair[0].folder / "run", pair[1].folder / "run")
    said = disturb(pair, shapes, runs, lambda: cut_off(pair[1], lambda: time.sleep(2)), timeout=60)
    assert beginnings(said) == 1 and "rcnn:" not in said
    assert_same(whole, runs[0])
    assert not (runs[1] / "model.safetensors").exists()


@pytest.mark.parametrize(("which", "shared"), [(0, False), (1, True)], ids=["rendezvous", "other, shared storage"])
def test_a_host_that_is_cut_off_comes_back(
    pair: tuple[Host, Host], shapes: Path, whole: Path, tmp_path: Path, which: int, shared: bool
) -> None:
    own = (pair[0].folder / "run", pair[1].folder / "run")
    runs = (tmp_path / "run", tmp_path / "run") if shared else own
    waited = f" of 2: waited {TIMEOUT} s for another process while at step "

    def both_have_noticed() -> bool:
        first, second = ((host.folder / "log").read_text() for host in pair)
        here = (
            f"process 0{waited}" in first and "process 1 on host-b does not answer (killed, frozen, cut off?)" in first
        )
        return here and f"process 1{waited}" in second and ", and the group's store at host-a:" in second

    said = disturb(pair, shapes, runs, lambda: cut_off(pair[which], lambda: wait_for(both_have_noticed, 60, pair)))
    assert beginnings(said) >= 2
    assert_same(whole, runs[0])


@pytest.mark.parametrize("which", [0, 1], ids=["rendezvous", "other"])
def test_a_host_that_died_is_started_again(pair: tuple[Host, Host], shapes: Path, whole: Path, which: int) -> None:
    runs = (pair[0].folder / "run", pair[1].folder / "run")
    said = disturb(pair, shapes, runs, lambda: switch_off(pair[which], 2))
    assert beginnings(said) >= 2
    assert_same(whole, runs[0])
