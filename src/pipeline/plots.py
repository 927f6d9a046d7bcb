"""Pictures as SVG that is the same for the same figures, and that of the search. Change here to draw the search
otherwise."""

from io import BytesIO

import matplotlib as mpl
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
    return svg_bytes(figure)


def svg_bytes(figure: Figure) -> bytes:
    """A figure as SVG: no date, fixed ids, text as text."""
    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fixed", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
