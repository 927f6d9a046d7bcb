"""A bundle as MLflow loads it: a table of raw columns in, scores out. Change here to let MLflow serve it otherwise."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.scoring import Scorer, parse_column
from problem.features import features


class ScoredTable:
    """What `mlflow.pyfunc` calls: `predict` scores a table that has the columns of the contract."""

    def __init__(self, bundle: Path) -> None:
        self._inputs = json.loads((bundle / "contract.json").read_text())["inputs"]
        self._scorer = Scorer.load(bundle, features)

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """Scores, float64 [n, k], as `pipeline.scoring.Scorer.score` gives them."""
        return self._scorer.score({c["name"]: _array(table[c["name"]], c["kind"]) for c in self._inputs})


def example(rows: Mapping[str, Sequence[Any]], inputs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """JSON values, column by column, as the table that `predict` takes; null is missing."""
    return pd.DataFrame({entry["name"]: _series(rows[entry["name"]], entry) for entry in inputs})


def _series(values: Sequence[Any], entry: Mapping[str, Any]) -> pd.Series:
    if entry["kind"] == "boolean":
        return pd.Series(values, dtype=object if entry["nullable"] else bool)
    if entry["kind"] == "integer" and not entry["nullable"]:
        return pd.Series(values, dtype="int64")
    return pd.Series(parse_column(values, entry["kind"]))


def _array(column: pd.Series, kind: str) -> np.ndarray:
    if kind == "category":
        return column.astype(object).where(column.notna(), None).to_numpy()
    if kind == "time":
        return column.to_numpy("datetime64[us]")
    return column.to_numpy("float64", na_value=np.nan)


def _load_pyfunc(path: str) -> ScoredTable:
    return ScoredTable(Path(path))
