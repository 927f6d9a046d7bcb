"""What any model must beat, and what answers when the model may not. Change here to compare with something better."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PRIOR_ROWS = 20  # a group's rate is pulled to the overall one as if by so many rows of it


def fit_baseline(features: Mapping[str, np.ndarray], outcomes: np.ndarray, keys: Sequence[str]) -> dict[str, Any]:
    """The historical mean of `outcomes` [n, k] per combination of the features `keys`, shrunk to the overall mean
    (an m-estimate: Cestnik, 1990). With no key it is the naive baseline, the overall mean."""
    overall = outcomes.mean(axis=0)
    groups = _groups(features, keys, len(outcomes))
    names, codes = np.unique(groups, return_inverse=True)
    counts = np.bincount(codes)[:, None]
    sums = np.stack([np.bincount(codes, weights=column) for column in outcomes.T], axis=1)
    means = (sums + _PRIOR_ROWS * overall) / (counts + _PRIOR_ROWS)
    table = {str(name): mean.tolist() for name, mean in zip(names, means, strict=True)} if keys else {}
    return {"keys": list(keys), "overall": overall.tolist(), "groups": table}


def baseline_scores(baseline: Mapping[str, Any], features: Mapping[str, np.ndarray]) -> np.ndarray:
    """The baseline's scores [n, k]; a combination never seen in training gets the overall mean."""
    rows = len(next(iter(features.values())))
    groups = _groups(features, baseline["keys"], rows)
    table, overall = baseline["groups"], baseline["overall"]
    return np.array([table.get(group, overall) for group in groups], dtype="float64").reshape(rows, len(overall))


def _groups(features: Mapping[str, np.ndarray], keys: Sequence[str], rows: int) -> np.ndarray:
    if not keys:
        return np.full(rows, "", dtype="U1")
    combinations = list(zip(*(features[key] for key in keys), strict=True))
    names = {row: "|".join(map(_text, row)) for row in set(combinations)}
    return np.array([names[row] for row in combinations])


def _text(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
