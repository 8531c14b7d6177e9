"""Precision-recall curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rcnn.evaluation.voc import Curve

CURVES_A_PANEL = 10  # the number of colours in matplotlib's cycle


def plot_precision_recall(curves: Mapping[str, Curve], path: str | Path, *, title: str = "") -> None:
    """Draw the curve of each class that has ground truth, ten to a panel; the suffix of `path` is the format.

    Raises:
        ValueError: if no class has ground truth.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = [(name, curve) for name, curve in curves.items() if curve.num_gt]
    if not present:
        raise ValueError("precision-recall curves: no class has ground truth in this set; evaluate on another set")
    panels = [present[start : start + CURVES_A_PANEL] for start in range(0, len(present), CURVES_A_PANEL)]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.5 + 4.5 * columns, 0.3 + 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw_panel(axes, panel: Sequence[tuple[str, Curve]]) -> None:
    for name, curve in panel:
        first = curve.precision[:1]  # a curve starts at recall 0; one without detections has no point
        recall, precision = np.append(0 * first, curve.recall), np.append(first, curve.precision)
        axes.plot(recall, precision, label=f"{name} ({curve.num_gt})", lw=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left", title="class (ground truths)", title_fontsize=7)
