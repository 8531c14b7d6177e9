import subprocess
import sys
from pathlib import Path

import pytest

from rcnn.benchmark.process import Worker
from rcnn.benchmark.settings import Side
from tests.benchmark.small import settings

SOURCE = Path(__file__).resolve().parents[2] / "src"


def test_a_worker_answers_until_it_is_closed() -> None:
    side = Side("ours", environment={"RCNN_KERNELS": "reference", "OMP_NUM_THREADS": "1"})
    with Worker(side, settings("infer")) as worker:
        assert worker.tasks == {"infer": {"precision": "fp32", "images": 1}}
        assert worker.ask("count", task="infer")["rois"] == 10
        assert worker.time("infer") > 0
        (process,) = worker._processes
    assert process.returncode == 0


def test_several_processes_take_a_step_together() -> None:
    side = Side("ours", environment={"OMP_NUM_THREADS": "1"}, processes=2)
    with Worker(side, settings("train")) as worker:
        assert worker.tasks["train"]["images"] == 2
        assert worker.ask("count", task="train")["rois"] > 0
        assert worker.time("train") > 0
        processes = worker._processes
        assert len(processes) == 2
    assert [process.returncode for process in processes] == [0, 0]


def test_a_workers_refusal_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data-root .*no pictures there"):
        Worker(Side("ours"), settings("data", data_root=str(tmp_path)))


def test_a_worker_that_dies_is_named() -> None:
    with Worker(Side("ours"), settings("ops")) as worker:
        worker._processes[0].kill()
        with pytest.raises(RuntimeError, match="ours: the worker process ended with status -9"):
            worker.ask("memory")


def test_asking_needs_no_torch() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); import rcnn.benchmark.measure; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
