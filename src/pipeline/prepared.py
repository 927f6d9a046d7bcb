"""The prepared table, which stages hand on: raw columns, features and the target of each row. Change here to hand on
more."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.scoring import Feature, encode

SPLITS = ("train", "validation", "test")
FEATURE = "feature."  # marks the columns that are features, beside the raw ones

# What a histogram gradient boosting of scikit-learn takes; rarer ones count as never seen.
MAX_CATEGORIES = 254


class Inputs(NamedTuple):
    """What a model learns from: its input float64 [n, d], what each column of it is, and the target [n]."""

    matrix: np.ndarray
    spec: tuple[Feature, ...]
    target: np.ndarray


def read_prepared(path: Path) -> pd.DataFrame:
    """A prepared table from its file; InputError where there is none, or it is damaged."""
    try:
        with path.open("rb") as file:
            table = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a prepared table, found none that reads ({error}); run `dvc repro`"
        ) from error
    pa.default_memory_pool().release_unused()  # else as much again as the table
    return table


def features_of(prepared: pd.DataFrame) -> pd.DataFrame:
    """The features of a prepared table, under their own names."""
    chosen = prepared[[name for name in prepared if str(name).startswith(FEATURE)]]
    return chosen.rename(columns=lambda name: str(name).removeprefix(FEATURE))


def as_arrays(features: pd.DataFrame) -> dict[str, np.ndarray]:
    """Features as the arrays that `scoring.encode` takes."""
    return {
        str(name): text_array(values) if values.dtype == "str" else values.to_numpy()
        for name, values in features.items()
    }


def text_array(values: pd.Series) -> np.ndarray:
    """Text as an array of str, with None for missing."""
    texts = values.to_numpy(dtype=object, copy=True)
    texts[values.isna().to_numpy()] = None
    return texts


def feature_spec(features: pd.DataFrame) -> tuple[Feature, ...]:
    """The model's inputs, in order, with the categories of these rows (the most frequent, sorted)."""
    return tuple(Feature.of(str(name), _categories(values)) for name, values in features.items())


def model_inputs(prepared: pd.DataFrame, contract: Contract, spec: tuple[Feature, ...]) -> Inputs:
    """A prepared table as the input and target of a model."""
    kind = object if contract.task == "multiclass" else "float64"
    matrix = encode(as_arrays(features_of(prepared)), spec)
    return Inputs(matrix, spec, prepared[contract.target.name].to_numpy(dtype=kind))


def _categories(values: pd.Series) -> tuple[str, ...] | None:
    if values.dtype != "str":
        return None
    return tuple(sorted(values.value_counts().sort_index().nlargest(MAX_CATEGORIES, keep="first").index))
