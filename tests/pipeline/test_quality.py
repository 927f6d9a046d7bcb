from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.quality import quality_report
from tests.synthetic import make_contract, make_table

CONTRACT = make_contract()


def report(table: pd.DataFrame, task: str = "binary", *, timed: bool = True, test: pd.DataFrame | None = None) -> Any:
    known = table.dropna(subset="outcome").astype({"outcome": "float64" if task != "multiclass" else "str"})
    tested = known.iloc[70:80] if test is None else test
    splits = {"train": known.iloc[:50], "validation": known.iloc[50:70], "test": tested}
    return quality_report(table, make_contract(task, timed=timed), splits, {"2020-01": {}, "2020-02": {"bad": 2}})


def test_rows_are_counted() -> None:
    found = report(make_table(100))
    assert (found["rows"], found["rows_without_outcome"], found["rows_outside_the_splits"]) == (100, 2, 18)
    assert (found["duplicated_rows"], found["quarantined"]) == (0, {"2020-02": {"bad": 2}})


def test_numbers_have_edges_and_outliers() -> None:
    table = make_table(100).assign(cycles=np.append(np.arange(10).repeat(10)[:-1], 900))
    assert report(table)["columns"]["cycles"] == {
        "kind": "integer",
        "null_share": 0.0,
        "minimum": 0.0,
        "median": 4.5,
        "maximum": 900.0,
        "outlier_share": 0.01,
    }


def test_a_column_of_one_value_has_no_outliers() -> None:
    assert report(make_table(100).assign(cycles=3))["columns"]["cycles"]["outlier_share"] == 0.0


def test_categories_times_and_booleans_are_described() -> None:
    columns = report(make_table(100))["columns"]
    assert columns["site"]["distinct"] == 2
    assert sum(columns["site"]["most"].values()) == 100
    assert columns["machine"] == {"kind": "category", "null_share": 0.0, "distinct": 35}  # an entity: none is named
    assert columns["read_at"]["first"] == "2020-01-01T00:00:00"
    assert set(columns["outcome"]["most"]) == {"False", "True"}
    assert columns["outcome"]["null_share"] == 0.02


def test_columns_that_are_missing_together_are_a_pattern() -> None:
    table = make_table(100).assign(temperature=1.0, maker="acme", repair_cost=1.0, outcome=True)
    table.loc[:9, ["temperature", "measured_at"]] = None
    table.loc[90:92, "maker"] = None
    assert report(table)["null_patterns"] == [
        {"missing": [], "rows": 87},
        {"missing": ["measured_at", "temperature"], "rows": 10},
        {"missing": ["maker"], "rows": 3},
    ]


def test_splits_have_their_span_and_balance() -> None:
    train = report(make_table(100))["splits"]["train"]
    assert (train["rows"], train["first"]) == (50, "2020-01-01T00:00:00")
    assert sum(train["class_balance"].values()) == pytest.approx(1)
    assert set(train["class_balance"]) == {"0.0", "1.0"}


def test_splits_of_a_regression_have_mean_and_deviation() -> None:
    train = report(make_table(100, "regression"), "regression", timed=False)["splits"]["train"]
    assert set(train) == {"rows", "target_mean", "target_deviation"}


def test_values_that_training_never_had_are_counted() -> None:
    table = make_table(100)
    test = table.iloc[:10].assign(maker=["dune"] * 3 + [None] + ["acme"] * 6, outcome=1.0)
    assert report(table, test=test)["unseen_categories"] == {"maker": {"validation": 0, "test": 3}}


def test_whole_rows_are_compared_where_no_key_is_declared() -> None:
    contract = make_contract()
    keyless = type(contract)(
        contract.grain,
        contract.noun,
        contract.lead,
        tuple(type(c)(**{**vars(c), "roles": tuple(r for r in c.roles if r != "key")}) for c in contract.columns),
        contract.schema,
    )
    table = pd.concat([make_table(100), make_table(100).head(2)], ignore_index=True)
    splits = {name: table.iloc[:20].assign(outcome=1.0) for name in ("train", "validation", "test")}
    assert quality_report(table, keyless, splits, {})["duplicated_rows"] == 2
