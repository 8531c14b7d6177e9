"""Curves as pictures: precision against recall, and a training run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rcnn.evaluation.voc import Curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES_A_PANEL = 10  # the number of colours in matplotlib's cycle


def plot_precision_recall(curves: Mapping[str, Curve], path: str | Path, *, title: str = "") -> None:
    """Draw the curve of each class that has ground truth, ten to a panel; the suffix of `path` is the format.

    Raises:
        ValueError: if no class has ground truth.
    """
    present = [(name, curve) for name, curve in curves.items() if curve.num_gt]
    if not present:
        raise ValueError("precision-recall curves: no class has ground truth in this set; evaluate on another set")
    panels = [present[start : start + CURVES_A_PANEL] for start in range(0, len(present), CURVES_A_PANEL)]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _figure(0.5 + 4.5 * columns, 0.3 + 4.2 * rows)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_training(metrics: str | Path, path: str | Path) -> None:
    """Draw the losses and the learning rate of a run from its metrics.jsonl; the suffix of `path` is the format."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    steps = [row["step"] for row in rows]
    figure = _figure(9.5, 4.0)
    losses, rate = figure.subplots(1, 2, width_ratios=(2, 1))
    for name in ("loss", "rpn_cls", "rpn_box", "head_cls", "head_box"):
        if any(row[name] is not None for row in rows):  # a phase trains RPN or head alone
            losses.plot(steps, [row[name] for row in rows], label=name, lw=1.2)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    rate.plot(steps, [row["lr"] for row in rows], lw=1.2)
    rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axes in (losses, rate):
        axes.grid(alpha=0.3)
    losses.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(axes, panel: Sequence[tuple[str, Curve]]) -> None:
    for name, curve in panel:
        first = curve.precision[:1]  # a curve starts at recall 0; one without detections has no point
        recall, precision = np.append(0 * first, curve.recall), np.append(first, curve.precision)
        axes.plot(recall, precision, label=f"{name} ({curve.num_gt})", lw=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", title="class (ground truths)", title_fontsize=7)
