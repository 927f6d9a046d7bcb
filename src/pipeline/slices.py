"""The model judged slice by slice, and group by group. Change here to cut the rows otherwise."""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import Column, Contract
from pipeline.metrics import LESS_IS_BETTER, Judged, draws, summarised
from pipeline.resamples import Blocks, Bootstrap, Estimate, estimate, times_drawn

_FEW_VALUES = 12  # a number with more is cut into spans
_FEWEST_OF_A_CLASS = 20  # fewer of one outcome say nothing of its ranking
_SAME = 0.95  # a pair with more of a slice's rows says nothing new
GAPS = ("selection_rate", "recall", "false_positive_rate", "roc_auc")  # beside the main metric


class Slice(NamedTuple):
    """Some of the test rows, by the value of one column or of two."""

    name: str
    rows: NDArray[np.intp]


def labels(values: pd.Series, column: Column) -> pd.Series:
    """The value of each row as a slice calls it: itself, its span, or which quarter of the numbers it is in."""
    text = values.astype("str").fillna("missing")
    if column.kind not in ("number", "integer") or (column.spans is None and values.nunique() <= _FEW_VALUES):
        return text
    if column.spans is not None:
        edges, names = [-np.inf, *column.spans.values(), np.inf], [f"below {next(iter(column.spans))}", *column.spans]
        parts = pd.cut(values, edges, right=False, labels=names)
    else:
        edges = [-np.inf, *np.unique(values.quantile([0.25, 0.5, 0.75])), np.inf]
        parts = pd.cut(values, edges, right=False)  # rounds the edges as far as they stay apart
        parts = parts.cat.rename_categories([f"{p.left:.12g} to below {p.right:.12g}" for p in parts.cat.categories])
    return pd.Series(parts, dtype="str").fillna("missing")


def slices_of(test: pd.DataFrame, contract: Contract, least_rows: int) -> Iterator[Slice]:
    """Every value of every slice column, and each pair of values that has rows enough and is not all but one of them
    under a longer name."""
    named = {c.name: labels(test[c.name], c) for c in contract.having("slice")}
    single = {name: test.groupby(values).indices for name, values in named.items()}
    for name, parts in single.items():
        yield from (Slice(f"{_say(name)} {value}", np.asarray(rows)) for value, rows in parts.items())
    for one, other in combinations(named, 2):
        for pair, rows in test.groupby([named[one], named[other]]).indices.items():
            first, second = map(str, pair) if isinstance(pair, tuple) else (pair, "")
            smaller = min(len(single[one][first]), len(single[other][second]))
            if len(rows) >= least_rows and len(rows) < _SAME * smaller:
                yield Slice(f"{_say(one)} {first}, {_say(other)} {second}", np.asarray(rows))


def _say(column: str) -> str:
    return column.replace("_", " ")


def judge_slices(
    test: pd.DataFrame, judged: Judged, contract: Contract, metric: str, least_rows: int, blocks: Blocks, how: Bootstrap
) -> pd.DataFrame:
    """A row per slice, the worst first: `slice`, `rows`, `judged` (whether it has rows enough, and enough of each
    outcome), and each metric with its interval. A slice that the main metric cannot judge is reported as such."""
    times = times_drawn(blocks, how)
    found = []
    for part in slices_of(test, contract, least_rows):
        inside = judged.at(part.rows)
        rare = np.unique(inside.truth, return_counts=True)[1]
        estimates = summarised(draws(inside, blocks[part.rows], times), how.confidence)
        enough = len(part.rows) >= least_rows and metric in estimates
        if inside.decision is not None:
            enough = enough and len(rare) == 2 and bool(rare.min() >= _FEWEST_OF_A_CLASS)
        columns = {
            f"{name}{suffix}": value
            for name, each in estimates.items()
            for suffix, value in zip(("", "_low", "_high"), each, strict=True)
        }
        found.append({"slice": part.name, "rows": len(part.rows), "judged": enough, **columns})
    least = ["slice", "rows", "judged", metric, f"{metric}_low", f"{metric}_high"]
    table = pd.DataFrame(found, columns=[*dict.fromkeys(least + [name for each in found for name in each])])
    return table.sort_values(
        ["judged", metric], ascending=[False, metric not in LESS_IS_BETTER], kind="stable", ignore_index=True
    )


def judge_groups(
    test: pd.DataFrame, judged: Judged, contract: Contract, metric: str, least_rows: int, blocks: Blocks, how: Bootstrap
) -> pd.DataFrame:
    """For each sensitive column and figure: `column`, `figure`, what each group with rows enough has as text, and the
    `gap` between the highest and the lowest with its interval; NaN where two groups cannot be compared.

    The figures are those of fairlearn: selection rate, true positive rate (recall), false positive rate, and the main
    metric in each group.
    """
    times, found = times_drawn(blocks, how), []
    for column in contract.having("sensitive"):
        parts = test.groupby(labels(test[column.name], column)).indices
        groups = {str(name): np.asarray(rows) for name, rows in parts.items() if len(rows) >= least_rows}
        figures = {name: draws(judged.at(rows), blocks[rows], times) for name, rows in groups.items()}
        for figure in dict.fromkeys((*(GAPS if judged.decision else ()), metric)):
            values = {name: each[figure] for name, each in figures.items() if figure in each}
            gap = Estimate(np.nan, np.nan, np.nan)
            if len(values) > 1:
                stacked = np.stack(list(values.values()))
                gap = estimate(stacked.max(axis=0) - stacked.min(axis=0), how.confidence, centred=True)
            said = [f"{name} {each[0]:.4g}" for name, each in values.items()]
            said += [f"{name} too few ({len(rows)})" for name, rows in parts.items() if len(rows) < least_rows]
            found.append((column.name, figure, ", ".join(said), *gap))
    return pd.DataFrame(found, columns=["column", "figure", "groups", "gap", "gap_low", "gap_high"])
