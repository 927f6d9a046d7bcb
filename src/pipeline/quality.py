"""The data quality report: what came, how complete and how odd it is. Change here to report more of the data."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline.contract import Column, Contract

_PATTERNS = 10
_TUKEY = 3.0  # whiskers of "far out" values: Tukey, Exploratory Data Analysis, 1977


def quality_report(
    table: pd.DataFrame,
    contract: Contract,
    splits: Mapping[str, pd.DataFrame],
    quarantined: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Describe the verified raw table and its splits; shares are of rows, in 0 to 1."""
    target = contract.target.name
    return {
        "rows": len(table),
        "rows_without_outcome": int(table[target].isna().sum()),
        "rows_outside_the_splits": int(table[target].notna().sum()) - sum(len(rows) for rows in splits.values()),
        # A key that stands twice has failed the verification.
        "duplicated_rows": 0 if contract.keys else int(table.duplicated().sum()),
        "quarantined": {period: dict(reasons) for period, reasons in quarantined.items() if reasons},
        "columns": {c.name: _describe(table[c.name], c) for c in contract.columns},
        "null_patterns": _null_patterns(table),
        "splits": {name: _describe_split(rows, contract) for name, rows in splits.items()},
        "unseen_categories": _unseen(splits, contract),
    }


def _describe(values: pd.Series, column: Column) -> dict[str, Any]:
    kind = column.kind
    described: dict[str, Any] = {"kind": kind, "null_share": _round(values.isna().mean())}
    if "entity" in column.roles:  # a report names nobody
        return described | {"distinct": int(values.nunique())}
    if kind in ("number", "integer"):
        low, middle, high = np.nanquantile(values.to_numpy(dtype="float64"), [0.25, 0.5, 0.75])
        reach = _TUKEY * (high - low)
        outliers = ((values < low - reach) | (values > high + reach)).mean() if reach else 0.0
        edges = {"minimum": _round(values.min()), "median": _round(middle), "maximum": _round(values.max())}
        return described | edges | {"outlier_share": _round(outliers)}
    if kind == "time":
        return described | {"first": values.min().isoformat(), "last": values.max().isoformat()}
    counts = values.value_counts().sort_index(kind="stable").nlargest(5, keep="first")
    return described | {"distinct": int(values.nunique()), "most": {str(k): int(v) for k, v in counts.items()}}


def _null_patterns(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Which columns are missing together, the most frequent combinations first."""
    nulls = table.isna()
    names = [str(name) for name in nulls if nulls[name].any()][:62]
    bits = np.zeros(len(table), dtype="int64")
    for position, name in enumerate(names):
        bits |= nulls[name].to_numpy().astype("int64") << position
    patterns, counts = np.unique(bits, return_counts=True)
    order = np.lexsort((patterns, -counts))[:_PATTERNS]
    return [
        {"missing": [n for p, n in enumerate(names) if patterns[i] >> p & 1], "rows": int(counts[i])} for i in order
    ]


def _describe_split(rows: pd.DataFrame, contract: Contract) -> dict[str, Any]:
    target = rows[contract.target.name]
    described: dict[str, Any] = {"rows": len(rows)}
    if contract.time is not None:
        moments = rows[contract.time.name]
        described |= {"first": moments.min().isoformat(), "last": moments.max().isoformat()}
    if contract.task == "regression":
        return described | {"target_mean": _round(target.mean()), "target_deviation": _round(target.std())}
    balance = target.value_counts(normalize=True).sort_index()
    return described | {"class_balance": {str(k): _round(v) for k, v in balance.items()}}


def _unseen(splits: Mapping[str, pd.DataFrame], contract: Contract) -> dict[str, dict[str, int]]:
    """Per open category, the rows of validation and test whose value no training row has."""
    found = {}
    for column in contract.inputs:
        if column.kind == "category" and column.categories is None:
            known = splits["train"][column.name].unique()
            others = {n: r[column.name] for n, r in splits.items() if n != "train"}
            found[column.name] = {n: int((v.notna() & ~v.isin(known)).sum()) for n, v in others.items()}
    return found


def _round(value: Any) -> float:
    return float(f"{float(value):.6g}")
