from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pytest

from pipeline.contract import Contract, column
from pipeline.errors import InputError
from pipeline.verify import LATE, check_columns, describe, violations
from tests.synthetic import make_contract, make_table

CONTRACT = make_contract()


def found_in(table: pd.DataFrame) -> list[tuple[int, str, str, str]]:
    return list(violations(table, CONTRACT).itertuples(index=False, name=None))


def test_rows_that_keep_the_contract_have_no_violations() -> None:
    table = make_table(100)
    check_columns(table, CONTRACT, source="made")
    assert found_in(table) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda t: t.drop(columns="cycles"), r"made: expected the 11 columns.*missing \['cycles'\].*schema.py"),
        (lambda t: t.assign(colour="red"), r"not in the contract \['colour'\]"),
        (lambda t: t.rename(columns={"cycles": "turns"}), r"missing \['cycles'\], .*\['turns'\] \(renamed\?\)"),
        (lambda t: t.astype({"cycles": "float64"}), r"column 'cycles' to be of type int64, got float64; fix"),
        (lambda t: t.assign(cycles=t["cycles"].where(t.index != 7)), r"of type int64, got float64 \(row 7: nan\)"),
        (lambda t: t.assign(cycles=t["cycles"].where(t.index != 8, 2.5)), r"of type int64, got float64 \(row 8: 2.5\)"),
        (lambda t: t.iloc[:0].astype({"cycles": "float64"}), "got float64; fix"),
        (lambda _t: None, "made: expected a pandas DataFrame, got NoneType; fix the source"),
        (lambda t: t.astype({"read_at": "str"}), "column 'read_at' to be of type datetime64.*, got str"),
        (lambda t: t.assign(maker=1.0), "column 'maker' to be of type string.*, got float64"),
    ],
    ids=["missing", "extra", "renamed", "float", "missing value", "fraction", "no rows", "nothing", "text", "number"],
)
def test_other_columns_than_the_contracts_are_refused(changed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_columns(changed(make_table(20)), CONTRACT, source="made")


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [("cycles", -1, "greater_than_or_equal_to(0)"), ("temperature", 151.0, "less_than_or_equal_to(150)")],
)
def test_a_value_out_of_range_is_found(column: str, value: float, rule: str) -> None:
    table = make_table(20)
    table.loc[3, column] = value
    assert found_in(table) == [(3, str(value), column, rule)]


def test_a_missing_value_is_found_where_none_may_be() -> None:
    table = make_table(20)
    table.loc[4, "site"] = None
    assert [row[0:1] + row[2:] for row in found_in(table)] == [(4, "site", "not_nullable")]


def test_an_unknown_value_is_found_in_a_closed_category_and_kept_in_an_open_one() -> None:
    table = make_table(20)
    table.loc[2, "site"] = "west"
    table.loc[3, "maker"] = "dune"
    assert found_in(table) == [(2, "west", "site", "isin(['north', 'south'])")]


def test_a_repeated_key_is_found_from_its_second_row_on() -> None:
    table = make_table(20)
    table.loc[[7, 8], ["read_at", "machine"]] = table.loc[6, ["read_at", "machine"]].tolist()
    table.loc[[7, 8], "measured_at"] = table.loc[6, "measured_at"]
    rows = found_in(table)
    assert [(row[0], *row[2:]) for row in rows] == [(r, "read_at+machine", "each key stands once") for r in (7, 8)]
    assert table.loc[6, "machine"] in rows[0][1]


def test_an_observation_made_after_the_moment_of_prediction_is_found() -> None:
    table = make_table(20)
    table.loc[1, "measured_at"] = table.loc[1, "read_at"] - pd.Timedelta("1h")
    table.loc[2, "measured_at"] = table.loc[2, "read_at"] - pd.Timedelta("59min")
    late = [(2, "measured_at", f"{LATE} 1:00:00 before read_at")]
    assert [(row[0], *row[2:]) for row in found_in(table)] == late


def test_only_the_reason_of_what_came_too_late_begins_as_such() -> None:
    table = make_table(20)
    table.loc[1, "measured_at"] = table.loc[1, "read_at"]
    table.loc[2, ["measured_at", "temperature"]] = [None, 20.0]
    table.loc[3, ["read_at", "machine"]] = table.loc[0, ["read_at", "machine"]].tolist()
    table.loc[[4, 5], ["cycles", "site"]] = [-1, "west"]
    reasons = violations(table, CONTRACT)["reason"]
    assert reasons.nunique() == 5
    assert reasons[reasons.str.startswith(LATE)].unique().tolist() == ["observed at least 1:00:00 before read_at"]


def test_a_value_without_the_time_of_its_observation_is_found() -> None:
    table = make_table(20)
    table.loc[4, ["measured_at", "temperature"]] = [None, 20.0]
    table.loc[5, ["measured_at", "temperature"]] = [None, None]
    assert found_in(table) == [(4, "20.0", "temperature", "measured_at says when it was observed")]


def test_a_contract_without_keys_repeats_what_it_likes() -> None:
    class Plain(pa.DataFrameModel):
        """One row."""

        y: float = column("Y", roles=["target"])

    assert violations(pd.DataFrame({"y": [1.0, 1.0]}), Contract.of(Plain, noun="rows")).empty


def test_a_rule_of_the_whole_table_is_never_passed_over() -> None:
    class Balanced(pa.DataFrameModel):
        """One row."""

        y: float = column("Y", roles=["target"])

        @pa.dataframe_check
        def adds_up(cls, table: pd.DataFrame) -> bool:
            return bool(table["y"].sum() == 0)

    contract = Contract.of(Balanced, noun="rows")
    assert violations(pd.DataFrame({"y": [1.0, -1.0]}), contract).empty
    with pytest.raises(InputError, match="expected the rule 'adds_up' to hold for the whole table, got False"):
        violations(pd.DataFrame({"y": [1.0, 1.0]}), contract)


def test_the_description_names_file_row_column_value_and_remedy() -> None:
    table = make_table(20)
    table.loc[[13, 15], "cycles"] = -4
    locations = [(Path("data/2020-01.parquet"), 10), (Path("data/2020-02.parquet"), 10)]
    assert describe(violations(table, CONTRACT), table, locations) == (
        "column 'cycles' has 2 of 20 values that break the rule 'greater_than_or_equal_to(0)' "
        "(first: data/2020-02.parquet row 3, -4); "
        "fix the source, or describe what it now sends in src/problem/schema.py"
    )


def test_rows_of_no_known_file_are_named_by_number() -> None:
    table = make_table(20)
    table.loc[13, "cycles"] = -4
    assert "(first: row 13, -4)" in describe(violations(table, CONTRACT), table, [])


def test_a_time_of_another_unit_is_refused() -> None:
    contract, rows = make_contract(), make_table()
    time = contract.time
    assert time is not None
    with pytest.raises(InputError, match=r"to be of type datetime64\[us\], got datetime64\[ns\]"):
        check_columns(rows.astype({time.name: "datetime64[ns]"}), contract, source="x.parquet")
