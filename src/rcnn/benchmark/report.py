"""What a measurement found: rows for people, JSON for the record."""

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from rcnn import __version__
from rcnn.benchmark.settings import CLASSES, DETECTIONS, Settings
from rcnn.benchmark.timing import Spread, spread

RATES = ("images/s", "GFLOP", "GFLOP/s", "of ceiling", "RoIs", "peak memory", "time / ours")
HEADINGS = ("", "", "median", "half of the runs", *RATES)


@dataclass
class Row:
    """One task of one side."""

    task: str
    side: str
    precision: str
    images: int  # a run
    flops: int  # a run
    rois: int  # a run
    times: list[float] = field(default_factory=list)  # seconds
    ratios: list[float] = field(default_factory=list)  # of this side's time to ours, pair by pair
    peak_bytes: int = 0  # of the process


class Report(NamedTuple):
    """A whole measurement."""

    settings: Settings
    rows: list[Row]
    ceilings: dict[str, float]  # FLOP/s of products, by precision
    runs: int
    facts: dict[str, Any]  # versions, threads, device


def to_dict(report: Report, recipe: str) -> dict[str, Any]:
    """The report as plain JSON values; times in seconds, rates in FLOP/s."""
    settings = {k: v for k, v in asdict(report.settings).items() if k != "recipe"}
    return {
        "rcnn": __version__,
        "commit": find_commit(),
        "date": date.today().isoformat(),
        "machine": {"cpu": cpu_name(), "system": platform.platform(), **report.facts},
        "recipe": recipe,
        **settings,
        "runs": report.runs,
        "ceilings": report.ceilings,
        "rows": [_row_to_dict(row, report.ceilings) for row in report.rows],
    }


def write_json(path: Path, report: Report, recipe: str) -> None:
    """Write the report, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_dict(report, recipe), indent=1) + "\n")


def format_report(report: Report, recipe: str) -> str:
    """The table, with what must be said of it above and below."""
    machine = f"{cpu_name()}, {report.facts['threads']} threads, device {report.facts['device']}"
    versions = ", ".join(f"{name} {version}" for name, version in report.facts["versions"].items())
    settings = report.settings
    lines = [f"{settings.what}, {_size(settings, recipe)}"]
    lines += [f"{machine}; {versions}; commit {find_commit()}", ""]
    lines += _columns([HEADINGS, *(_cells(row, report.ceilings) for row in report.rows)])
    lines += [""] + [f"ceiling {name}: {rate / 1e9:.0f} GFLOP/s" for name, rate in report.ceilings.items()]
    return "\n".join(lines + _warnings(report.rows)).rstrip()


def cpu_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def find_commit() -> str:
    """The commit of the checkout that runs, `-dirty` where it was changed; else the version."""
    if not (Path(__file__).parents[3] / "pyproject.toml").is_file():
        return f"none (version {__version__})"  # installed: any commit found here would be another project's
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found = ""
    return found or f"none (version {__version__})"


def _row_to_dict(row: Row, ceilings: dict[str, float]) -> dict[str, Any]:
    time = spread(row.times)
    return {
        **asdict(row),
        "time": time._asdict(),
        "ratio": spread(row.ratios)._asdict() if row.ratios else None,
        "images_per_second": row.images / time.median,
        "flops_per_second": row.flops / time.median,
        "share_of_ceiling": _share(row, time, ceilings),
    }


def _share(row: Row, time: Spread, ceilings: dict[str, float]) -> float | None:
    return row.flops / time.median / ceilings[row.precision] if row.precision in ceilings else None


def _cells(row: Row, ceilings: dict[str, float]) -> tuple[str, ...]:
    time, share = spread(row.times), _share(row, spread(row.times), ceilings)
    ratio = spread(row.ratios) if row.ratios else None
    return (
        row.task,
        f"{row.side} {row.precision}",
        _milliseconds(time.median),
        f"{_milliseconds(time.quartiles[0])} .. {_milliseconds(time.quartiles[1])}",
        f"{row.images / time.median:.2f}" if row.images else "",
        f"{row.flops / 1e9:.1f}" if row.flops else "",
        f"{row.flops / time.median / 1e9:.0f}" if row.flops else "",
        f"{share:.0%}" if share else "",
        str(row.rois) if row.rois else "",
        f"{row.peak_bytes / 2**20:.0f} MiB" if row.flops else "",
        f"{ratio.median:.2f} ({ratio.low:.2f} .. {ratio.high:.2f})" if ratio else "",
    )


def _size(settings: Settings, recipe: str) -> str:
    if settings.what == "eval":
        return f"{settings.images} images of {DETECTIONS} detections, {len(CLASSES)} classes"
    ours = "".join(f", ours by --{name}" for name in ("winograd", "int8") if getattr(settings, name))
    return f"{recipe}: batch {settings.batch}, {settings.height} x {settings.width}{ours}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.2f} ms"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) if any(column[1:]) else 0 for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)) if w]
        lines.append("  ".join(cells).rstrip())
    return lines


def _warnings(rows: list[Row]) -> list[str]:
    """Sides that did not do the same work: a ratio of times would not mean what it says."""
    ours = {row.task: row for row in rows if row.side == "rcnn"}
    lines = []
    for row in rows:
        own = ours[row.task]
        if row.rois != own.rois or abs(row.flops - own.flops) > 0.02 * own.flops:
            lines.append(
                f"NOT THE SAME WORK: {row.task}, {row.side}: {row.rois} RoIs and {row.flops / 1e9:.1f} GFLOP; "
                f"rcnn: {own.rois} and {own.flops / 1e9:.1f}"
            )
    return lines
