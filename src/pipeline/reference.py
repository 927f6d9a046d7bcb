"""The distributions that later data is compared with. Change here to keep finer or coarser ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_BINS = 10


def reference(features: Mapping[str, np.ndarray], scores: np.ndarray, classes: list[str] | None) -> dict[str, Any]:
    """Per feature of the training rows, and for scores [n, k] of rows that the model was not fitted to: shares of rows
    per bin (numbers: up to each edge, a decile or one of few values) or per category, and of missing ones."""
    columns = classes if classes and scores.shape[1] > 1 else ["score"]
    return {
        "rows": len(next(iter(features.values()))),
        "features": {name: _distribution(values) for name, values in features.items()},
        "scores": {str(name): _numbers(scores[:, i]) for i, name in enumerate(columns)},
    }


def _distribution(values: np.ndarray) -> dict[str, Any]:
    return _categories(values) if values.dtype == object else _numbers(values)


def _categories(values: np.ndarray) -> dict[str, Any]:
    present = np.array([value for value in values if value is not None], dtype="str")
    names, counts = np.unique(present, return_counts=True)
    shares = {str(n): float(c) / len(values) for n, c in zip(names, counts, strict=True)}
    return {"kind": "category", "missing": 1 - len(present) / len(values), "shares": shares}


def _numbers(values: np.ndarray) -> dict[str, Any]:
    present = values[~np.isnan(values)]
    edges = np.unique(present)
    if len(edges) > _BINS:
        edges = np.unique(np.quantile(present, np.linspace(0, 1, _BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, present), minlength=len(edges) + 1)
    return {
        "kind": "number",
        "missing": 1 - len(present) / len(values),
        "edges": edges.tolist(),
        "shares": (counts / len(values)).tolist(),
    }
