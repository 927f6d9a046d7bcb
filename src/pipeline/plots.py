"""Pictures, as SVG that is the same for the same figures. Change here to draw something else."""

from collections.abc import Mapping
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def trials_plot(trials: pd.DataFrame, metric: str) -> bytes:
    """The score of every trial in order, a colour per candidate, and the best so far as a line."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, rows in trials.groupby("candidate"):
        axes.plot(rows["number"], rows["score"], "o", label=str(name).replace("_", " "))
    axes.plot(trials["number"], trials["score"].cummin(), drawstyle="steps-post", color="0.4", label="best so far")
    axes.set(xlabel="trial", ylabel=f"{metric.replace('_', ' ')} (lower is better)")
    axes.legend()
    return _svg(figure)


def curves_plot(curves: Mapping[str, pd.DataFrame]) -> bytes:
    """Each curve in a panel of its own: its first column across, its second one up."""
    drawn = {name: curve for name, curve in curves.items() if name != "confusion"}
    figure = Figure(figsize=(5 * len(drawn), 4), layout="constrained")
    for axes, (name, curve) in zip(np.ravel(figure.subplots(1, len(drawn))), drawn.items(), strict=True):
        across, up = curve.columns[:2]
        axes.plot(curve[across], curve[up], "o" if name in ("calibration", "residuals") else "-", markersize=4)
        if name in ("calibration", "roc", "residuals"):  # what agreement, or chance, looks like
            ends = [curve[across].min(), curve[across].max()]
            axes.plot(ends, ends, "--", color="0.6")
        axes.set(title=name.replace("_", " "), xlabel=across.replace("_", " "), ylabel=up.replace("_", " "))
    return _svg(figure)


def _svg(figure: Figure) -> bytes:
    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fixed", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
