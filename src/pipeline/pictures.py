"""The pictures of the report. Change here to draw something else."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import AutoLocator, MaxNLocator

from pipeline.plots import svg_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.evaluate import Evaluation
    from pipeline.resamples import Floats

_WIDTH, _HEIGHT = 330, 240  # points; the page stretches them
_SHOWN = 12  # features in a picture
_COLUMNS = 90  # that the points of a feature are stacked in
_ROLES = ("ink", "faint", "line", "accent", "other", "shade-0", "shade-1", "shade-2", "shade-3", "shade-4")
_INK, _FAINT, _LINE, _ACCENT, _OTHER, *_SHADES = (f"#01{number:02x}fe" for number in range(len(_ROLES)))
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _FAINT,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
    "savefig.facecolor": "none",
    "text.color": _FAINT,
    "text.parse_math": False,
    "xtick.color": _LINE,
    "xtick.labelcolor": _FAINT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _FAINT,
    "ytick.major.size": 0,
}
_SPELT = {"roc": "ROC", "pr": "PR", "auc": "AUC", "f1": "F1", "r2": "R²", "rmse": "RMSE", "mae": "MAE"}

Paint = Callable[["Axes"], None]


def words(name: str) -> str:
    """The name of a metric, a column or a gate as people read it."""
    return " ".join(_SPELT.get(word, word) for word in name.split("_"))


def report_plots(found: "Evaluation", described: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of an evaluation by name, as SVG elements for one HTML page: their colours are the page's CSS
    variables, their text is text, and their ids do not clash. `described` is the bundle's contract."""
    metric, tables = words(found.metric), found.tables
    painted = _curves(found, described["threshold"])
    chosen = tables["importance"].head(_SHOWN)
    features = {feature["name"]: number for number, feature in enumerate(described["features"])}
    order = [features[name] for name in chosen["feature"]]
    named = [described["features"][number]["categories"] is not None for number in order]
    values, rows = (each[:, order] for each in found.shap)
    painted["importance"] = partial(_importance, table=chosen, metric=metric)
    painted["shap"] = partial(_beeswarm, values=values, rows=rows, features=list(chosen["feature"]), categories=named)
    if len(tables["waiting"]) and found.age_days is not None:
        painted["waiting"] = partial(_waiting, curve=tables["waiting"], metric=metric, age=found.age_days / 30.44)
        painted["backtest"] = partial(_backtest, models=tables["backtest"], metric=metric)
    heights = dict.fromkeys(("importance", "shap"), 50 + 20 * len(chosen))
    return {name: _inline(name, paint, heights.get(name, _HEIGHT)) for name, paint in painted.items()}


def _curves(found: "Evaluation", threshold: float | None) -> dict[str, Paint]:
    curves, model = found.curves, {name: each.value for name, each in found.metrics["model"].items()}
    painted: dict[str, Paint] = {}
    if "roc" in curves:
        caught, right = model.get("recall", np.nan), model.get("precision", np.nan)
        rate, nobody = curves["confusion"]["actual"].mean(), found.metrics["no_model"]["cost_per_1000"].value
        lines = {
            "roc": ((model.get("false_positive_rate", np.nan), caught), (0, 1), "chance"),
            "precision_recall": ((caught, right), (rate, rate), "chance"),
            "cost": ((threshold, model["cost_per_1000"]), (nobody, nobody), "no model"),
        }
        for name, (here, without, called) in lines.items():
            painted[name] = partial(_curve, curve=curves[name], here=here, without=without, called=called)
    if "calibration" in curves:
        painted["calibration"] = partial(_agreement, curve=curves["calibration"], joined=True)
    if "residuals" in curves:
        painted["residuals"] = partial(_agreement, curve=curves["residuals"], joined=False)
    return painted


def _curve(
    axes: "Axes", *, curve: pd.DataFrame, here: tuple[Any, Any], without: tuple[float, float], called: str
) -> None:
    """A curve, where the model stands on it, and a dashed line of what one would have without the model."""
    across, up = map(str, curve.columns[:2])
    axes.plot([0, 1], without, "--", color=_FAINT, linewidth=1, label=called)
    axes.plot(curve[across], curve[up], color=_ACCENT)
    axes.plot(*here, "o", color=_OTHER, markersize=7, label="this model")
    axes.legend(frameon=False, handlelength=1.4)
    axes.set(xlabel=words(across), ylabel=words(up.replace("1000", "1,000")), xlim=(-0.01, 1.01))


def _agreement(axes: "Axes", *, curve: pd.DataFrame, joined: bool) -> None:
    """What was said against what was true, and the line where both agree."""
    across, up = curve.columns[:2]
    ends = [curve[[across, up]].to_numpy().min(), curve[[across, up]].to_numpy().max()]
    axes.plot(ends, ends, "--", color=_FAINT, linewidth=1)
    axes.plot(curve[across], curve[up], "o-" if joined else "o", color=_ACCENT, markersize=6 if joined else 3)
    axes.set(xlabel=words(str(across)), ylabel=words(str(up)))


def _importance(axes: "Axes", *, table: pd.DataFrame, metric: str) -> None:
    """A bar per feature with its interval, the most important on top; faint where it does not surely help."""
    colours = np.where(table["says"] == "helps", _ACCENT, _FAINT)
    down = -np.arange(len(table))
    axes.barh(down, table["importance"], color=colours, height=0.6, alpha=0.85)
    axes.hlines(down, table["low"], table["high"], color=_INK, linewidth=1)
    _features(axes, table["feature"])
    axes.set(xlabel=f"{metric} lost where the feature is shuffled")


def _features(axes: "Axes", names: "pd.Series[str] | list[str]") -> None:
    axes.set_yticks(-np.arange(len(names)), [name if len(name) < 28 else f"{name[:26]}…" for name in names])
    axes.axvline(0, color=_FAINT, linewidth=0.8, zorder=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(-len(names) + 0.4, 0.6)


def _beeswarm(axes: "Axes", *, values: "Floats", rows: "Floats", features: list[str], categories: list[bool]) -> None:
    """A point per row and feature: how far it moves the score, coloured by the feature's own value; stacked where many
    fall together."""
    edges = np.linspace(values.min(), values.max() + 1e-12, _COLUMNS + 1)
    for line, (moved, value, category) in enumerate(zip(values.T, rows.T, categories, strict=True)):
        column = np.digitize(moved, edges)
        nth = pd.Series(column).groupby(column).cumcount().to_numpy()
        aside = (nth + 1) // 2 * np.where(nth % 2, 1, -1)
        up = -line + aside * min(0.07, 0.42 / max(1, np.abs(aside).max()))
        shade = pd.Series(value).rank(pct=True).mul(len(_SHADES) - 1).round()
        shade = pd.Series(-1.0, index=shade.index) if category else shade.fillna(-1)
        for number in np.unique(shade):
            chosen = np.flatnonzero(shade == number)
            _points(axes, moved[chosen], up[chosen], _FAINT if number < 0 else _SHADES[int(number)])
    _features(axes, features)
    axes.set(xlabel="moves the score by", xlim=(edges[0] - np.ptp(edges) / 40, edges[-1] + np.ptp(edges) / 40))


def _points(axes: "Axes", across: "Floats", up: "Floats", colour: str) -> None:
    """Dots as one path of strokes of no length with round ends: a tenth of the bytes that as many markers take."""
    corners = np.repeat(np.stack([across, up], axis=1), 2, axis=0)
    path = Path(corners, np.tile(np.array([Path.MOVETO, Path.LINETO]), len(across)))
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, linewidth=3.6, capstyle="round"))


def _waiting(axes: "Axes", *, curve: pd.DataFrame, metric: str, age: float) -> None:
    """What is lost by age, with its band, and how old this model's data was when it was tested."""
    axes.fill_between(curve["age_months"], curve["low"], curve["high"], color=_ACCENT, alpha=0.18, linewidth=0)
    axes.plot(curve["age_months"], curve["loss"], "o-", color=_ACCENT, markersize=4)
    axes.axhline(0, color=_FAINT, linewidth=1)
    axes.axvline(age, color=_OTHER, linestyle="--", linewidth=1.2)
    side, space = ("right", "{} ") if age > curve["age_months"].mean() else ("left", " {}")
    axes.text(age, 1, space.format("this model"), color=_OTHER, ha=side, transform=axes.get_xaxis_transform())
    axes.set(xlabel="months after the end of training", ylabel=f"{metric} lost to the freshest model")


def _backtest(axes: "Axes", *, models: pd.DataFrame, metric: str) -> None:
    """A line per model over the months that it scored, the older the fainter; a point where it was the freshest."""
    months, until = sorted(set(models["scored"])), sorted(set(models["trained_until"]))
    place = {month: number for number, month in enumerate(months)}
    for number, (_, lines) in enumerate(models.groupby("trained_until")):
        shown = 0.25 + 0.6 * number / max(1, len(until) - 1)
        axes.plot(lines["scored"].map(place), lines[models.columns[-1]], color=_ACCENT, alpha=shown, linewidth=1.5)
    fresh = models.loc[models.groupby("scored")["age_months"].idxmin()]
    axes.plot(fresh["scored"].map(place), fresh[models.columns[-1]], "o", color=_OTHER, markersize=5)
    every = -(-len(months) // 6)
    axes.set_xticks(range(0, len(months), every), months[::every])
    axes.set(xlabel="month that was scored", ylabel=metric)


def _inline(name: str, paint: Paint, height: float) -> str:
    with mpl.style.context(["default", _STYLE]):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), AutoLocator):
                axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        svg = svg_bytes(figure).decode()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns[:\w]*="[^"]*"| version="1.1"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)  # the page's own
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda said: re.sub(r"(\.\d\d)\d+", r"\1", said[0]), svg)
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><").replace("xlink:href", "href")
    svg = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", svg)
    for role, colour in zip(_ROLES, (_INK, _FAINT, _LINE, _ACCENT, _OTHER, *_SHADES), strict=True):
        svg = svg.replace(colour, f"var(--{role})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(words(name))}" ', 1)
