"""How the scores bear what data does in the field: noise, gaps, values never seen. Change here to try something
else."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from pipeline.contract import Contract
from pipeline.featurize import raw_columns
from pipeline.resamples import Floats
from pipeline.scoring import Scorer

_SAMPLE = 10_000  # rows: a share of changed decisions is then known to half a point (95%)
_MOVED = 0.1  # standard deviations of the predictions: a number that moves further counts as another decision

Columns = Mapping[str, np.ndarray]


def judge_stability(
    test: pd.DataFrame, scorer: Scorer, contract: Contract, *, noise: float, share: float, seed: int
) -> pd.DataFrame:
    """A row per disturbance of the raw inputs: `disturbance`, `size`, `changed_decisions` (share of rows), and the
    `mean_move` and `largest_move` of a score; NaN where a score is no longer finite.

    `noise` is in standard deviations of each number, `share` that of the values that go missing, or are never seen.
    """
    rows = test.iloc[:: max(1, len(test) // _SAMPLE)]
    raw = raw_columns(rows, contract)
    before = scorer.score(raw)
    found = []
    for name, size, columns in _disturbed(raw, contract, noise, share, np.random.default_rng(seed)):
        after = scorer.score(columns)
        move = np.abs(after - before).max(axis=1) if np.isfinite(after).all() else np.full(len(rows), np.nan)
        changed = np.where(
            np.isnan(move), np.nan, _decisions(after, before, scorer) != _decisions(before, before, scorer)
        )
        found.append((name, size, changed.mean(), move.mean(), move.max()))
    return pd.DataFrame(found, columns=["disturbance", "size", "changed_decisions", "mean_move", "largest_move"])


def _decisions(scores: Floats, before: Floats, scorer: Scorer) -> np.ndarray:
    """The decision that each score makes; for a regression, whether it has moved far from what it was."""
    if scores.shape[1] > 1:
        return np.asarray(scores.argmax(axis=1))
    if scorer.contract["threshold"] is not None:
        return np.asarray(scores[:, 0] >= scorer.contract["threshold"])
    return np.asarray(np.abs(scores - before)[:, 0] > _MOVED * before.std())


def _disturbed(
    raw: Columns, contract: Contract, noise: float, share: float, random: np.random.Generator
) -> Iterator[tuple[str, float, Columns]]:
    numbers = {}
    for column in contract.inputs:
        if column.kind in ("number", "integer"):
            values = raw[column.name]
            moved = values + random.normal(scale=noise * pd.Series(values).std(ddof=0), size=len(values))
            moved = np.clip(moved, column.minimum, column.maximum)
            # A whole number moves by one as often as keeps the noise's size; rounding would swallow what is small.
            numbers[column.name] = np.floor(moved + random.random(len(moved))) if column.kind == "integer" else moved
    yield "noise on every number", noise, {**raw, **numbers}
    gaps = {c.name: _replaced(raw[c.name], None, share, random) for c in contract.inputs if c.nullable}
    yield "values gone missing", share, {**raw, **gaps}
    opened = [c.name for c in contract.inputs if c.kind == "category" and c.categories is None]
    unseen = {name: _replaced(raw[name], "~", share, random) for name in opened}
    yield "categories never seen", share, {**raw, **unseen}


def _replaced(values: np.ndarray, value: str | None, share: float, random: np.random.Generator) -> np.ndarray:
    chosen, changed = random.random(len(values)) < share, values.copy()
    missing = {"f": np.nan, "M": np.datetime64("NaT")}.get(values.dtype.kind)
    changed[chosen] = missing if value is None and missing is not None else value
    return changed
