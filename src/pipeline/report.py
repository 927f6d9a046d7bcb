"""An evaluation as files that people read: figures, verdicts, one HTML page, a model card. Change here to hand them
more; words and layout stand in report.html and card.md.

The page asks for nothing beyond itself, and the same release gives the same bytes."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from pipeline.canonical import csv_bytes, json_bytes
from pipeline.contract import Contract
from pipeline.duel import Duel
from pipeline.evaluate import Evaluation
from pipeline.metrics import LESS_IS_BETTER
from pipeline.pictures import words
from pipeline.resamples import Estimate, rounded

_TILES = ("cost_per_1000", "calibration_error", "mae", "r2", "bias")  # shown large, after the main metric


class Release(NamedTuple):
    """All that a report is made from: the evaluation and its pictures, its verdicts as `gates.as_json` gives them, the
    contract, the bundle's own description and lineage, the data's quality, the problem in words and the project's name;
    the duel, where one was held; and whether this is the whole inspection or the verdict on the bundle alone."""

    evaluation: Evaluation
    plots: Mapping[str, str]
    verdict: Mapping[str, Any]
    contract: Contract
    described: Mapping[str, Any]
    lineage: Mapping[str, Any]
    quality: Mapping[str, Any]
    problem: str
    name: str
    duel: Duel | None = None
    inspected: bool = False


def report_files(release: Release) -> dict[str, bytes]:
    """A release as files: figures and verdicts as JSON, a summary, the page, the model card, and a CSV per table and
    per curve."""
    found = release.evaluation
    metrics: dict[str, Any] = {name: rounded(each) for name, each in found.metrics.items()}
    metrics["gain"] = {name: rounded(each) for name, each in found.gains.items()}
    alone = pd.DataFrame(found.single_features.items(), columns=["feature", "score"])
    tables = found.tables | {"single_features": alone.sort_values("score", ascending=False, kind="stable")}
    return {
        "metrics.json": json_bytes(metrics),
        "gates.json": json_bytes(release.verdict),
        "summary.md": summary(found, release.contract).encode(),
        "index.html": page(release),
        "card.md": card(release),
        **{f"tables/{name}.csv": csv_bytes(table) for name, table in tables.items()},
        **{f"curves/{name}.csv": csv_bytes(curve) for name, curve in found.curves.items()},
    }


def summary(evaluation: Evaluation, contract: Contract) -> str:
    """The figures as a Markdown table: a row per metric, a column per judged model."""
    judged = list(evaluation.metrics)
    lines = [
        f"# `{contract.target.name}` on {evaluation.rows:,} {contract.noun} that the model never saw",
        "",
        "| metric | " + " | ".join(name.replace("_", " ") for name in judged) + " |",
        "| --- |" + " --- |" * len(judged),
    ]
    for metric in evaluation.metrics["model"]:
        cells = [_estimate(evaluation.metrics[name].get(metric)) for name in judged]
        lines.append(f"| {title(metric, contract.noun)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"In brackets: {evaluation.intervals}."]) + "\n"


def page(release: Release) -> bytes:
    """The report as one HTML page."""
    return _rendered("report.html", release)


def card(release: Release) -> bytes:
    """The model card (Mitchell et al., 2019) as Markdown."""
    return _rendered("card.md", release)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (short, full, words, title, cell, escaped, demoted)
    environment.filters |= {each.__name__: each for each in filters}
    environment.globals |= {"at": at, "reach": reach}
    return environment


def _rendered(template: str, release: Release) -> bytes:
    found, gates = release.evaluation, release.verdict["gates"]
    shown = [found.metric, found.proper, *_TILES]
    known = {
        "tables": {name: table.to_dict("records") for name, table in found.tables.items()},
        "gates": {gate["gate"]: gate for gate in gates},
        "failed": [gate for gate in gates if not (gate["passed"] or gate["waived"])],
        "waived": [gate for gate in gates if gate["waived"]],
        "tiles": [name for name in dict.fromkeys(shown) if name in found.metrics["model"]][:4],
        "less": found.metric in LESS_IS_BETTER,
        "confusion": _confusion(found, release.described["classes"]),
    }
    return _templates().get_template(template).render(release._asdict() | known).encode()


def _confusion(found: Evaluation, classes: list[str] | None) -> pd.DataFrame | None:
    """How many rows of each class (or outcome) were called what."""
    if "confusion" not in found.curves:
        return None
    pairs, labels = found.curves["confusion"], pd.Index(classes) if classes else pd.Index([0, 1])
    counts = pd.crosstab(pairs["actual"], pairs["predicted"])
    return counts.reindex(index=labels, columns=labels, fill_value=0)


def title(metric: str, noun: str) -> str:
    """The name of a metric with its unit."""
    return words(metric.replace("per_1000", f"per_1,000_{noun}"))


def short(value: float | None) -> str:
    """A figure as one reads it: three decimals, fewer where it is large."""
    if value is None or not np.isfinite(value):
        return "n/a"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    size = abs(value)
    decimals = 1 if size >= 10 else 3 if size >= 0.001 else 4
    return f"{value:.{decimals}f}" if size >= 0.0001 else f"{value:.2g}"


def full(value: float) -> str:
    """A figure as the files hold it: six significant digits."""
    return f"{value:.6g}"


def cell(value: Any) -> str:
    """A value of a table, as its CSV file holds it."""
    if isinstance(value, pd.Timestamp):
        return value.isoformat(" ", "minutes")
    return "" if pd.isna(value) else full(value) if isinstance(value, float) else str(value)


def reach(values: Iterable[float]) -> tuple[float, float]:
    """Where a scale that shows these values begins and ends."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return 0.0, 1.0
    room = 0.04 * (np.ptp(known) or 1.0)
    return float(known.min() - room), float(known.max() + room)


def at(value: float, scale: tuple[float, float]) -> str:
    """The place of a value on a scale, as CSS; a missing one stands at its beginning."""
    share = (value - scale[0]) / (scale[1] - scale[0]) if np.isfinite(value) else 0.0
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def escaped(text: object) -> str:
    """Text for one cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def demoted(text: str) -> str:
    """The sections of a Markdown page, without what stands before the first one, each a level lower."""
    start = re.search(r"^## ", text, flags=re.MULTILINE)
    return re.sub(r"^(#+ )", r"#\1", text[start.start() if start else 0 :], flags=re.MULTILINE).strip()


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"
