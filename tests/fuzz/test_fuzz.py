"""The short run of the fuzzer; `make fuzz` is the long one."""

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

CASES = 200
NEVER_REFUSES = {"cache of sizes"}  # a damaged one is as good as none


def test_every_reader_reads_or_refuses_a_few_hundred_hostile_files(checkout: Path) -> None:
    """In a process of its own, whose memory can be limited."""
    command = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--here"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF", "PYTHONPATH": "src"}
    run = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, "\n".join(line for line in run.stderr.splitlines() if "FINDING" in line) or run.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines() if line.startswith("|")
    ]
    assert [row[0] for row in rows] == [target.name for target in TARGETS]
    for name, cases, read, refused, *_ in rows:
        assert int(cases) == CASES, name
        assert int(refused) > CASES // 20 or name in NEVER_REFUSES, f"{name}: the cases hurt nothing"
        assert int(read) > 0, f"{name}: no case gets through"
