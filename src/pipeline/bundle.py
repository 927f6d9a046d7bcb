"""The bundle: the files that are a model, each as bytes. Change here to ship something more with every model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.contract import Column, Contract

_GOLDEN_ROWS = 50


def input_entries(contract: Contract, train: pd.DataFrame) -> list[dict[str, Any]]:
    """What a client must send, one entry per input column, with the values that training saw as `categories`."""
    return [_input_entry(column, train[column.name]) for column in contract.inputs]


def _input_entry(column: Column, seen: pd.Series) -> dict[str, Any]:
    entry = {
        "name": column.name,
        "kind": column.kind,
        "description": column.description,
        "unit": column.unit,
        "nullable": column.nullable,
        "minimum": column.minimum,
        "maximum": column.maximum,
        "observed_at": column.observed_at,
    }
    if column.kind != "category":
        return entry
    categories = list(column.categories or sorted(seen.dropna().unique()))
    return entry | {"categories": categories, "open": column.categories is None}


def golden_positions(rows: int) -> np.ndarray:
    """Which of so many rows become golden rows."""
    return np.unique(np.linspace(0, rows - 1, _GOLDEN_ROWS).astype("int64"))


def golden_rows(chosen: pd.DataFrame, inputs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Raw input rows, column by column as JSON: those given, and rows made from the first of them with each value
    missing (with what was observed then), at its limits, or never seen before, as far as the contract allows it."""
    columns = {entry["name"]: _json_values(chosen[entry["name"]], entry) for entry in inputs}
    for odd in inputs:
        for value in _odd_values(odd):
            for entry in inputs:
                values = columns[entry["name"]]
                unseen = value is None and entry["observed_at"] == odd["name"]
                values.append(value if entry is odd else None if unseen else values[0])
    return columns


def _json_values(values: pd.Series, entry: Mapping[str, Any]) -> list[Any]:
    if entry["kind"] == "time":
        return [None if pd.isna(value) else value.isoformat() for value in values]
    return [None if pd.isna(value) else value for value in values.tolist()]


def _odd_values(entry: Mapping[str, Any]) -> list[Any]:
    odd = [entry["minimum"], entry["maximum"]]
    if entry.get("open") and entry["categories"]:
        odd.append("~" * len(entry["categories"][0]))
    return [None] * entry["nullable"] + [value for value in odd if value is not None]
