"""The problem's feature function, run under guard. Change here to widen or narrow what a feature may read."""

import inspect
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from pipeline.contract import Column, Contract
from pipeline.errors import InputError
from pipeline.prepared import text_array
from pipeline.scoring import Features


class Guarded(Mapping[str, np.ndarray]):
    """The columns of a raw table, of which only inputs of the contract can be read: the leak guard."""

    def __init__(self, columns: Mapping[str, np.ndarray], contract: Contract) -> None:
        self._columns = columns
        self._contract = contract

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._columns:
            return self._columns[name]
        caller = inspect.stack(context=0)[1]
        where = f"{caller.function} (line {caller.lineno} of {caller.filename.rpartition('/')[2]})"
        raise InputError(f"{where} reads the column '{name}', {self._why_not(name)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def _why_not(self, name: str) -> str:
        column = next((c for c in self._contract.columns if c.name == name), None)
        if column is None:
            return "which the contract does not have; describe it in src/problem/schema.py"
        if column.known == "after":
            return "which is known only after the moment of prediction: a leak; remove it from the features"
        return f"whose roles are {list(column.roles)}; give it the role 'feature' in src/problem/schema.py"


def raw_columns(table: pd.DataFrame, contract: Contract) -> dict[str, np.ndarray]:
    """The inputs of the contract as the arrays that a feature function takes."""
    return {column.name: _array(table[column.name], column) for column in contract.inputs}


def _array(values: pd.Series, column: Column) -> np.ndarray:
    if column.kind == "category":
        return text_array(values)
    if column.kind == "time":
        return values.to_numpy(dtype="datetime64[us]")
    return values.to_numpy(dtype="float64", na_value=np.nan)


def featurize(table: pd.DataFrame, contract: Contract, features: Features) -> pd.DataFrame:
    """Run the feature function over a raw table of n rows: n rows of features, text as `str`, the rest as float64."""
    made = features(Guarded(raw_columns(table, contract), contract))
    return pd.DataFrame({name: _feature(name, values, table.index) for name, values in made.items()}, index=table.index)


def _feature(name: str, values: np.ndarray, index: pd.Index) -> pd.Series:
    if np.shape(values) != index.shape:
        raise InputError(
            f"feature '{name}': expected {len(index)} values, got shape {np.shape(values)}; correct the features"
        )
    if values.dtype.kind in "OU" and pd.api.types.infer_dtype(values, skipna=True) in ("string", "empty"):
        return pd.Series(values, index, dtype="str")
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"feature '{name}': expected numbers, or text with None, got {values.dtype}; correct the features"
        )
    numbers = values.astype("float64")
    if np.isinf(numbers).any():
        row = int(np.flatnonzero(np.isinf(numbers))[0])
        raise InputError(
            f"feature '{name}': expected finite numbers or NaN, got {numbers[row]} in row {index[row]} of the table; "
            "guard it"
        )
    return pd.Series(numbers, index)
