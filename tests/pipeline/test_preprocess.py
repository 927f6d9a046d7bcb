from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.canonical import parquet_bytes
from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.preprocess import Prepared, PreprocessParams, preprocess
from tests.synthetic import BY_TIME, TASKS, features, make_contract, make_table, prepared

DRAWN = {"validation_share": 0.2, "test_share": 0.2, "seed": 3}


def run(table: pd.DataFrame, contract: Contract | None = None, made: Any = features, **split: Any) -> Prepared:
    if split:
        params = PreprocessParams.model_validate({"split": split, "suspicious_score": 0.99})
    return preprocess(
        table,
        contract=contract or make_contract(),
        features=made,
        params=params if split else BY_TIME,
        locations=[(Path("data/2020-01.parquet"), 100), (Path("data/2020-02.parquet"), 500)],
        quarantined={},
    )


def by_time(**edges: str) -> dict[str, Any]:
    return BY_TIME.split.model_dump() | edges


def parts(result: Prepared) -> list[pd.DataFrame]:
    return [result.train, result.validation, result.test]


def test_each_split_by_time_ends_where_the_next_begins() -> None:
    edges = pd.to_datetime(["2020-01", "2020-04", "2020-05-10", "2020-07"], format="ISO8601")
    for rows, start, end in zip(parts(prepared()), edges, edges[1:], strict=False):
        assert rows["read_at"].between(start, end, inclusive="left").all()
        assert rows["read_at"].is_monotonic_increasing
    assert sum(map(len, parts(prepared()))) == 588


def test_rows_outside_the_periods_belong_to_no_split() -> None:
    result = run(make_table(), **by_time(train_from="2020-02", test_until="2020-06"))
    assert result.train["read_at"].min() >= pd.Timestamp("2020-02")
    assert result.test["read_at"].max() < pd.Timestamp("2020-06")
    assert result.quality["rows_outside_the_splits"] == 588 - sum(map(len, parts(result)))


def test_edges_in_another_zone_are_moved_to_utc() -> None:
    plain, zoned = (run(make_table(), **by_time(test_from=t)) for t in ("2020-05-10", "2020-05-10T02:00+02:00"))
    assert len(plain.test) == len(zoned.test)


def test_a_random_split_keeps_the_balance_of_classes() -> None:
    for task in ("binary", "multiclass"):
        result = run(make_table(task=task), make_contract(task, timed=False), method="random", **DRAWN)
        assert [len(rows) for rows in parts(result)] == [352, 118, 118]
        shares = [rows["outcome"].value_counts(normalize=True).sort_index().to_numpy() for rows in parts(result)]
        assert np.ptp(shares, axis=0).max() < 0.02


def test_a_random_split_of_numbers_needs_no_classes() -> None:
    result = run(make_table(task="regression"), make_contract("regression"), method="random", **DRAWN)
    assert sorted(pd.concat(parts(result))["serial"]) == sorted(set(range(600)) - set(range(7, 600, 50)))


def test_a_split_by_group_parts_no_group() -> None:
    result = run(make_table(), method="group", **DRAWN)
    machines = [set(rows["machine"]) for rows in parts(result)]
    assert set.union(*machines) == {f"m{i:02}" for i in range(40)}
    assert sum(map(len, machines)) == 40
    assert all(machines)


@pytest.mark.parametrize("method", ["random", "group"])
def test_a_draw_depends_on_its_seed_alone(method: str) -> None:
    one, same, other = (
        run(make_table(), **{**DRAWN, "method": method, "seed": seed}).test["serial"].tolist() for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.parametrize("task", TASKS)
def test_the_same_table_gives_the_same_bytes(task: str) -> None:
    again = run(make_table(task=task), make_contract(task))
    assert [parquet_bytes(rows) for rows in parts(again)] == [parquet_bytes(rows) for rows in parts(prepared(task))]
    assert again.quality == prepared(task).quality


def test_rows_carry_raw_columns_features_and_outcome_but_nothing_known_only_after() -> None:
    train = prepared().train
    assert "repair_cost" not in train
    assert train["outcome"].dtype == "float64"
    assert train["feature.temperature"].equals(train["temperature"].rename("feature.temperature"))
    assert list(train)[-1] == "outcome"


def test_unknown_outcomes_are_left_out_and_counted() -> None:
    assert prepared().quality["rows_without_outcome"] == 12
    assert not any(set(rows["serial"]) & set(range(7, 600, 50)) for rows in parts(prepared()))


def test_a_row_that_breaks_the_contract_is_named() -> None:
    table = make_table()
    table.loc[117, "cycles"] = -4
    with pytest.raises(InputError, match=r"'cycles' has 1 of 600 .*\(first: data/2020-02\.parquet row 17, -4\)"):
        run(table)


def test_a_column_without_a_value_is_refused() -> None:
    with pytest.raises(InputError, match=r"\['temperature'\] has none in all 600 rows"):
        run(make_table().assign(temperature=np.nan))


def test_a_feature_that_gives_the_target_away_is_named() -> None:
    table = make_table()
    table["cycles"] = table["outcome"].fillna(value=False).astype("int64") * 100 + table["cycles"] // 100
    with pytest.raises(InputError, match="feature 'cycles' alone scores"):
        run(table)


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected rows in every split, got \{'train': 296, .*'test': 0\}; move"):
        run(make_table(), **by_time(test_from="2020-07", test_until="2020-08"))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"train split: expected at least two classes .*\(\[0\.0\]\), got \[0\.0\]"):
        run(make_table().assign(outcome=pd.array([False] * 600, dtype="boolean")))


@pytest.mark.parametrize(
    ("split", "start", "end"),
    [("train", "2020-01", "2020-04"), ("validation", "2020-04", "2020-05-10"), ("test", "2020-05-10", "2020-07")],
)
def test_a_class_that_one_split_lacks_is_refused(split: str, start: str, end: str) -> None:
    table = make_table(task="multiclass")
    here = table["read_at"].between(pd.Timestamp(start), pd.Timestamp(end), inclusive="left")
    table.loc[here & (table["outcome"] == "broken"), "outcome"] = "worn"
    with pytest.raises(InputError, match=rf"the {split} split: .*\['broken', 'fine', 'worn'\].*got \['fine', 'worn'\]"):
        run(table, make_contract("multiclass"))


def test_a_category_of_two_classes_is_to_be_declared_boolean() -> None:
    table = make_table(task="multiclass")
    table.loc[table["outcome"] == "broken", "outcome"] = "worn"
    with pytest.raises(InputError, match=r"three classes of 'outcome' \(a target of two is declared boolean\)"):
        run(table, make_contract("multiclass"))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (by_time(test_from="soon"), "expected months or dates such as '2013-01', got .*soon"),
        (by_time(test_from="2020-03"), "expected each period to begin after the one before"),
        ({"method": "random", **DRAWN, "test_share": 0.8}, "expected shares that leave rows to train on"),
        ({"method": "random", **DRAWN, "test_share": 0.001}, r"expected rows enough for all splits, got 588 \("),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(split: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"preprocess\.split: {message}"):
        run(make_table(), **split)


def test_a_split_by_time_needs_a_time() -> None:
    with pytest.raises(InputError, match="no column has the role 'time'; choose 'random' or 'group'"):
        run(make_table(), make_contract(timed=False))


def test_a_split_by_group_needs_an_entity() -> None:
    with pytest.raises(InputError, match=r"one column with the role 'entity', found \[\]"):
        run(make_table(), make_contract(entity=False), method="group", **DRAWN)


def test_a_feature_without_a_value_in_training_is_named() -> None:
    table = make_table()
    early = table["read_at"] < pd.Timestamp("2020-04")
    table["temperature"] = table["temperature"].mask(early)
    with pytest.raises(
        InputError, match=r"the train split: expected values of every feature, got none of \['temperature"
    ):
        run(table)
