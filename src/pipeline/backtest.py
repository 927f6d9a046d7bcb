"""What waiting costs, and whether a simpler model would do: candidates refitted on part of the past. Change here to
look back otherwise."""

import json
from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.archive import sklearn_scores
from pipeline.candidates import Candidate
from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.metrics import Judged, draws, gain
from pipeline.prepared import Inputs
from pipeline.resamples import Bootstrap, Draws, blocks_of, estimate, times_drawn

_SCORED = 5000  # rows of a period that are scored: its ROC AUC is then known to a point, and differences are paired
_PERIODS = 12  # at most: of a longer past, a period is several months

Settings = Mapping[str, Any]


class Past(NamedTuple):
    """What candidates are refitted on and judged by: of the rows of all splits the columns that say what belongs
    together, the model's input and the truth (the scores are still to come); how many rows to fit, the metric, and how
    sure to be."""

    rows: pd.DataFrame
    inputs: Inputs
    unscored: Judged
    contract: Contract
    candidates: Mapping[str, Candidate]
    metric: str
    fitted: int
    how: Bootstrap

    def refitted(self, name: str, settings: Settings, fit: np.ndarray, asked: np.ndarray) -> np.ndarray | None:
        """The scores [m, k] of the rows `asked`, by a candidate fitted on a sample of the rows `fit`, uncalibrated;
        None where the sample lacks a class."""
        sample = np.sort(np.random.default_rng(self.how.seed).permutation(fit)[: self.fitted])
        truth = self.unscored.truth
        if self.contract.task != "regression" and len(np.unique(truth[sample])) < len(np.unique(truth)):
            return None
        estimator = self.candidates[name].build(settings, self.inputs.spec, self.contract.task, self.how.seed)
        estimator.fit(self.inputs.matrix[sample], self.inputs.target[sample])
        return sklearn_scores(estimator, self.inputs.matrix[asked])

    def drawn(self, asked: np.ndarray, scores: np.ndarray | None) -> Draws | None:
        """The metric of rows and their scores; None where it is not defined, or nothing can be drawn from them."""
        if scores is None:
            return None
        try:
            blocks, _ = blocks_of(self.rows.iloc[asked], self.contract)
        except InputError:
            return None
        judged = self.unscored.at(asked)._replace(scores=scores)
        return draws(judged, blocks, times_drawn(blocks, self.how), only=[self.metric]).get(self.metric)


def backtest(past: Past, best: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The best candidate trained as of each month and scored on the months after it: a row per model and month
    (`trained_until`, `scored`, `age_months`, the metric), and per age the mean `loss` against the freshest model on the
    same rows, with its interval. Both are empty without a time column, or with one month alone."""
    scored: list[tuple[str, str, int, float]] = []
    losses: dict[int, list[Draws]] = {}
    period, names, length = _periods(past)
    random, fresh = np.random.default_rng(past.how.seed), dict[int, Draws]()
    asked = [np.sort(random.permutation(np.flatnonzero(period == p))[:_SCORED]) for p in range(len(names))]
    for cut in range(len(names) - 1, 0, -1):  # the freshest first: what the others are compared with
        later = np.concatenate(asked[cut:])
        scores = past.refitted(best["candidate"], best["params"], np.flatnonzero(period < cut), later)
        if scores is None:
            continue
        ends = np.cumsum([len(rows) for rows in asked[cut:]])[:-1]
        for age, (rows, said) in enumerate(zip(asked[cut:], np.split(scores, ends), strict=True)):
            values = past.drawn(rows, said)
            if values is not None:
                baseline = fresh.setdefault(cut + age, values)
                scored.append((names[cut], names[cut + age], length * (age + 1), float(values[0])))
                losses.setdefault(length * (age + 1), []).append(gain(past.metric, baseline, values))
    curve = [(age, *estimate(np.mean(found, axis=0), past.how.confidence)) for age, found in sorted(losses.items())]
    models = pd.DataFrame(sorted(scored), columns=["trained_until", "scored", "age_months", past.metric])
    return models, pd.DataFrame(curve, columns=["age_months", "loss", "low", "high"])


def _periods(past: Past) -> tuple[np.ndarray, list[str], int]:
    """The period of each row, the names of the periods, and how many months each is long."""
    if past.contract.time is None:
        return np.zeros(len(past.rows), dtype="int64"), ["all"], 1
    moments = past.rows[past.contract.time.name]
    months = moments.dt.year.to_numpy() * 12 + moments.dt.month.to_numpy() - 1
    first = int(months.min())
    length = ceil((int(months.max()) - first + 1) / _PERIODS)
    period = (months - first) // length
    starts = [first + length * p for p in range(int(period.max()) + 1)]
    return period, [f"{start // 12}-{start % 12 + 1:02}" for start in starts], length


def simpler(
    past: Past, best: Settings, trials: pd.DataFrame, fit: np.ndarray, test: np.ndarray, margin: float
) -> pd.DataFrame:
    """Each candidate that the problem lists before the chosen one, at its best settings, both fitted on the same
    sample of the rows `fit`: the `gain` of the chosen one on the rows `test` with its interval, and whether the simpler
    one is `as_good`, which is to lose less than the margin."""
    chosen = past.drawn(test, past.refitted(best["candidate"], best["params"], fit, test))
    found = []
    for name in list(past.candidates)[: list(past.candidates).index(best["candidate"])]:
        tried = trials[trials["candidate"] == name].sort_values("score", kind="stable")
        if len(tried) and chosen is not None:
            values = past.drawn(test, past.refitted(name, json.loads(tried["params"].iloc[0]), fit, test))
            if values is not None:
                ahead = estimate(gain(past.metric, chosen, values), past.how.confidence)
                found.append((name, float(values[0]), *ahead, ahead.high <= margin))
    return pd.DataFrame(found, columns=["candidate", past.metric, "gain", "low", "high", "as_good"])
