from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest

from pipeline.contract import Contract, column
from pipeline.errors import InputError
from pipeline.verify import check_columns, violations
from tests.synthetic import make_contract, make_table


def contract_of(**given: Any) -> Contract:
    """A contract of the named columns, each a type and what `column` made of its description."""
    made = {
        TARGET: lambda: (pd.BooleanDtype, column("What happened", roles=["target"], known="after")),
        TIME: lambda: (datetime, column("When", roles=["time"])),
    }
    columns = {name: made[short]() if isinstance(short, str) else short for name, short in given.items()}
    body: dict[str, Any] = {name: described for name, (_, described) in columns.items()}
    body["__annotations__"] = {name: kind for name, (kind, _) in columns.items()}
    body["__doc__"] = "One row."
    return Contract.of(type("Made", (pa.DataFrameModel,), body), noun="rows")


TARGET, TIME = "target", "time"  # short for a column of that role


def test_contract_says_what_each_column_is() -> None:
    contract = make_contract()
    assert (contract.grain, contract.noun, contract.lead) == (
        "One row per reading of a machine.",
        "readings",
        timedelta(hours=1),
    )
    kinds = {c.name: c.kind for c in contract.columns}
    assert kinds == {
        "read_at": "time",
        "machine": "category",
        "site": "category",
        "maker": "category",
        "measured_at": "time",
        "temperature": "number",
        "cycles": "integer",
        "guarded": "boolean",
        "repair_cost": "number",
        "serial": "integer",
        "outcome": "boolean",
    }
    temperature = next(c for c in contract.columns if c.name == "temperature")
    assert (temperature.minimum, temperature.maximum, temperature.unit) == (-50, 150, "C")
    assert temperature.nullable
    assert temperature.observed_at == "measured_at"
    site, maker = contract.columns[2:4]
    assert (site.categories, maker.categories) == (("north", "south"), None)


def test_columns_are_found_by_role() -> None:
    contract = make_contract()
    assert contract.time is not None
    assert (contract.target.name, contract.time.name, contract.keys) == ("outcome", "read_at", ["read_at", "machine"])
    assert [c.name for c in contract.having("entity")] == ["machine"]
    assert [c.name for c in contract.having("sensitive")] == ["guarded"]
    assert [c.name for c in contract.inputs] == [
        "read_at",
        "site",
        "maker",
        "measured_at",
        "temperature",
        "cycles",
        "guarded",
    ]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_target_says_the_task(task: str) -> None:
    assert make_contract(task).task == task


def test_whole_numbers_are_a_regression_too() -> None:
    contract = contract_of(y=(np.uint8, column("Count", roles=["target"])))
    assert (contract.task, contract.target.kind, contract.time, contract.keys) == ("regression", "integer", None, [])


def test_spans_are_kept_as_they_were_given() -> None:
    spans = {"night": 0, "day": 360.5}
    minute = contract_of(minute=(int, column("When", roles=["slice"], spans=spans)), y=TARGET).columns[0]
    assert minute.spans == spans
    assert all(described.spans is None for described in make_contract().columns)


def test_a_rule_for_the_whole_table_is_not_asked_of_some_of_its_columns() -> None:
    contract, table = make_contract(), make_table(20)
    ruled = replace(contract, schema=contract.schema.update_columns({}))
    ruled.schema.checks = [pa.Check(lambda rows: rows["outcome"].notna().all())]
    assert violations(table.drop(columns="outcome"), ruled.only(table.columns.drop("outcome"))).empty
    assert len(ruled.schema.checks) == 1


def test_a_contract_for_some_of_the_columns_asks_for_these_alone() -> None:
    contract, table = make_contract(), make_table(20)
    kept = ["read_at", "machine", "cycles", "outcome"]
    some = contract.only(kept)
    assert [c.name for c in some.columns] == list(some.schema.columns) == kept
    assert (some.grain, some.noun, some.lead) == (contract.grain, contract.noun, contract.lead)
    assert (some.target, some.time, some.keys) == (contract.target, contract.time, contract.keys)
    assert [c.name for c in some.inputs] == ["read_at", "cycles"]
    assert some.having("observed_at") == ()
    assert violations(table[kept], some).empty
    with pytest.raises(InputError, match="missing \\['cycles'\\], not in the contract \\['site'\\]"):
        check_columns(table[["read_at", "machine", "site", "outcome"]], some, source="made")
    assert len(contract.schema.columns) == len(contract.columns) == 11


def test_limits_of_text_are_no_limits_of_values() -> None:
    described = column("Code", roles=["feature"], open_categories=True, str_length={"min_value": 2, "max_value": 2})
    code = contract_of(code=(str, described), y=TARGET).columns[0]
    assert (code.minimum, code.maximum) == (None, None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": (float, pa.Field()), "y": TARGET}, "'x' has no description or role"),
        ({"x": (float, column("", roles=["feature"])), "y": TARGET}, "'x' has no description or role"),
        ({"x": (float, column("X", roles=[])), "y": TARGET}, "'x' has no description or role"),
        ({"x": (float, column("X", roles=["featur"])), "y": TARGET}, r"'x' has the unknown role \['featur'\]"),
        ({"x": (float, column("X", roles=["feature"], known="later")), "y": TARGET}, "'x' is known 'later'"),
        ({"x": (pd.Timedelta, column("X", roles=["feature"])), "y": TARGET}, "'x' is of type timedelta64"),
        ({"x": (str, column("X", roles=["feature"])), "y": TARGET}, "'x': expected either closed"),
        (
            {"x": (str, column("X", roles=["feature"], open_categories=True, isin=["a"])), "y": TARGET},
            "'x': expected either closed",
        ),
        ({"x": TIME}, r"one column with the role 'target', found \[\]"),
        ({"x": TARGET, "y": TARGET}, r"one column with the role 'target', found \['x', 'y'\]"),
        ({"x": TIME, "z": TIME, "y": TARGET}, r"at most one column with the role 'time', found \['x', 'z'\]"),
        ({"x": (float, column("X", roles=["time"])), "y": TARGET}, "'x' has the role time: expected it to hold times"),
        ({"x": (float, column("X", roles=["feature"], known="after")), "y": TARGET}, "'x' is the target, or known"),
        ({"y": (float, column("Y", roles=["target", "feature"]))}, "'y' is the target, or known only"),
        ({"x": (datetime, column("X", roles=["observed_at"])), "y": TARGET}, "'x' has the role observed_at"),
        ({"x": (float, column("X", roles=["observed_at"])), "t": TIME, "y": TARGET}, "'x' has the role observed_at"),
        (
            {"x": (float, column("X", roles=["feature"], observed_at="t")), "t": TIME, "y": TARGET},
            "'x' is observed_at 't', which no column",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contract_of(**columns)
