"""Tries every reader of foreign bytes: python -m tests.fuzz --cases 10000 prints the table of docs/security.md."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import Tally, Target, limit_addresses, run


def main() -> int:
    """Each reader in a process of its own, so that a crash is a finding too; returns how many have findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the reader's name")
    parser.add_argument("--keep", type=Path, help="a folder for the files of the findings")
    parser.add_argument("--exact", action="store_true", help="its whole name")
    parser.add_argument("--here", action="store_true", help="in this process, without the heading of the table")
    options = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    chosen = [t for t in TARGETS if options.only in t.name and not (options.exact and options.only != t.name)]
    if options.here:
        limit_addresses()
        return sum(_here(target, options) for target in chosen)
    print("| reader | cases | read | refused | kinds of refusal | slowest, s | memory, MiB |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    return sum(_apart(target.name, options) for target in chosen)


def _apart(name: str, options: argparse.Namespace) -> int:
    keep = ["--keep", str(options.keep)] if options.keep else []
    counts = ["--cases", str(options.cases), "--seed", str(options.seed)]
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--exact", "--only", name, *counts, *keep]
    code = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "OFF"}).returncode
    if code < 0:
        print(f"{name}: killed by signal {-code}", file=sys.stderr)
    return int(code != 0)


def _here(target: Target, options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return _report(target, run(target, Path(folder), cases=options.cases, seed=options.seed), options.keep)


def _report(target: Target, tally: Tally, keep: Path | None) -> int:
    print(
        f"| {target.name} | {tally.cases} | {tally.accepted} | {tally.cases - tally.accepted} | {tally.kinds} | "
        f"{tally.slowest:.2f} | {tally.memory >> 20} |",
        flush=True,
    )
    for number, (fault, content) in enumerate(tally.findings):
        print(f"  FINDING {target.name}: {fault[:400]}", file=sys.stderr)
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{target.name.replace('/', '_').replace(' ', '_')}-{number}").write_bytes(content)
    return len(tally.findings)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
