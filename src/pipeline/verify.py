"""Rows against the contract: which are wrong, where, and why. Change here to check what pandera cannot say."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from pandera.engines.pandas_engine import Engine

from pipeline.contract import Contract
from pipeline.errors import InputError

LATE = "observed at least"  # begins the reason of what was observed too late
_EDIT_SCHEMA = "fix the source, or describe what it now sends in src/problem/schema.py"


def check_columns(table: pd.DataFrame, contract: Contract, *, source: str) -> None:
    """Refuse a table whose columns or types are not the contract's; `source` names it in the error."""
    if not isinstance(table, pd.DataFrame):  # the source is the team's own code
        raise InputError(f"{source}: expected a pandas DataFrame, got {type(table).__name__}; fix the source")
    expected = [column.name for column in contract.columns]
    missing = [name for name in expected if name not in table]
    extra = [str(name) for name in table if name not in expected]
    if missing or extra:
        renamed = " (renamed?)" if missing and extra else ""
        raise InputError(
            f"{source}: expected the {len(expected)} columns of the contract; "
            f"missing {missing}, not in the contract {extra}{renamed}; {_EDIT_SCHEMA}"
        )
    for column in contract.columns:
        field, came = contract.schema.columns[column.name], table[column.name].dtype
        expected_type = "datetime64[us]" if column.kind == "time" else str(field.dtype)
        fits = str(came) == expected_type if column.kind == "time" else field.dtype.check(Engine.dtype(came))
        if not fits:
            raise InputError(
                f"{source}: expected column '{column.name}' to be of type {expected_type}, got {came}"
                f"{_example(table[column.name])}; {_EDIT_SCHEMA}"
            )


def _example(values: pd.Series) -> str:
    """Of floats the first that is missing or no whole number, which may be why they came as floats."""
    if not pd.api.types.is_float_dtype(values):
        return ""
    odd = (values % 1 != 0).to_numpy()
    row = int(odd.argmax()) if odd.any() else None
    return "" if row is None else f" (row {row}: {values.iloc[row]})"


def violations(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Every value that breaks the contract: one row each, with `row` (its position in the table), `column`, `value`
    and `reason`. The table's columns must be the contract's, its index a plain count."""
    found = [_broken_checks(table, contract), _seen_too_late(table, contract), _repeated_keys(table, contract)]
    return pd.concat(found, ignore_index=True).sort_values(["row", "column"], kind="stable", ignore_index=True)


def describe(found: pd.DataFrame, table: pd.DataFrame, locations: Sequence[tuple[Path, int]]) -> str:
    """Say in one sentence per broken rule what is wrong and where it was first seen.

    `locations` are the files that the table was read from, each with its number of rows.
    """
    sentences = []
    for (column, reason), group in found.groupby(["column", "reason"], sort=False):
        first = group.iloc[0]
        sentences.append(
            f"column '{column}' has {len(group):,} of {len(table):,} values that break the rule '{reason}' "
            f"(first: {_locate(int(first['row']), locations)}, {first['value']})"
        )
    return "; ".join(sentences) + f"; {_EDIT_SCHEMA}"


def _locate(row: int, locations: Sequence[tuple[Path, int]]) -> str:
    for path, rows in locations:
        if row < rows:
            return f"{path} row {row}"
        row -= rows
    return f"row {row}"


def _broken_checks(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    try:
        contract.schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        whole = cases[cases["index"].isna()]
        if len(whole):
            rule, came = whole.iloc[0][["check", "failure_case"]]
            raise InputError(
                f"expected the rule '{rule}' to hold for the whole table, got {came}; {_EDIT_SCHEMA}"
            ) from errors
        return _found(cases["index"], cases["column"], cases["failure_case"], cases["check"])
    return _found([], [], [], [])


def _seen_too_late(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    """Observations made after the moment of prediction, and values without a moment of observation."""
    found = [_found([], [], [], [])]
    for column in contract.having("observed_at"):
        assert contract.time is not None  # noqa: S101 - Contract.of has seen to it
        late = table[column.name] > table[contract.time.name] - contract.lead
        reason = f"{LATE} {contract.lead} before {contract.time.name}"
        found.append(_found(table.index[late], column.name, table.loc[late, column.name], reason))
        for value in (c for c in contract.columns if c.observed_at == column.name):
            unseen = table[column.name].isna() & table[value.name].notna()
            reason = f"{column.name} says when it was observed"
            found.append(_found(table.index[unseen], value.name, table.loc[unseen, value.name], reason))
    return pd.concat(found)


def _repeated_keys(table: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    if not contract.keys:
        return _found([], [], [], [])
    again = table.duplicated(contract.keys)
    values = (" ".join(map(str, key)) for key in table.loc[again, contract.keys].itertuples(index=False))
    return _found(table.index[again], "+".join(contract.keys), values, "each key stands once")


def _found(
    rows: Iterable[Any], column: str | Iterable[str], values: Iterable[Any], reason: str | Iterable[str]
) -> pd.DataFrame:
    positions = [int(row) for row in rows]
    repeated = {"column": column, "reason": reason}
    texts = {
        name: [given] * len(positions) if isinstance(given, str) else list(given) for name, given in repeated.items()
    }
    frame = pd.DataFrame({"row": positions, "value": [str(value) for value in values], **texts})
    return frame.astype({"row": "int64", "value": "str", "column": "str", "reason": "str"})
