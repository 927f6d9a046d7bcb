from datetime import datetime
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from fairlearn import metrics as fair
from sklearn import metrics as theirs

from pipeline.contract import Contract, column
from pipeline.decisions import Costs
from pipeline.metrics import Decision, Judged
from pipeline.resamples import Bootstrap, blocks_of, times_drawn
from pipeline.slices import judge_groups, judge_slices, labels, slices_of

HOW = Bootstrap(resamples=100, confidence=0.9, seed=3)
COSTS = Costs(missed=3.0, false_alarm=1.0)


class Visits(pa.DataFrameModel):
    """One row per visit."""

    at: datetime = column("When", roles=["time"])
    shop: str = column("Where", roles=["slice", "sensitive"], open_categories=True, nullable=True)
    shop_town: str = column("The town of the shop", roles=["slice"], open_categories=True)
    minute: int = column("When in the day", roles=["slice"], spans={"night": 0, "day": 360, "evening": 1080})
    age: float = column("How old", roles=["slice", "sensitive"], nullable=True)
    weekday: int = column("Which day", roles=["slice"])
    member: bool = column("A member", roles=["sensitive"])
    bought: pd.BooleanDtype = column("Bought something", roles=["target"], known="after")


CONTRACT = Contract.of(Visits, noun="visits")
COLUMNS = {c.name: c for c in CONTRACT.columns}


def visits(rows: int = 800, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    shop = random.choice(["a", "b", "c"], rows, p=[0.6, 0.3, 0.1])
    moments = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(rows) % 40, unit="D")
    return pd.DataFrame(
        {
            "at": moments.astype("datetime64[us]"),
            "shop": pd.Series(shop, dtype="str").mask(random.random(rows) < 0.05),
            "shop_town": pd.Series(np.where(shop == "a", "upper", "lower"), dtype="str"),
            "minute": random.integers(0, 1440, rows),
            "age": np.where(random.random(rows) < 0.1, np.nan, random.integers(15, 90, rows)),
            "weekday": random.integers(0, 7, rows),
            "member": random.random(rows) < 0.4,
        }
    )


def judged_of(table: pd.DataFrame, seed: int = 0) -> Judged:
    """Scores that rank the truth everywhere as well, but for shop b, where they say nothing."""
    random = np.random.default_rng(1000 + seed)  # other draws than those of the visits
    truth = (random.random(len(table)) < 0.4).astype("float64")
    told = np.where(table["shop"] == "b", 0, truth)
    scores = 1 / (1 + np.exp(-random.normal(1.5 * told - 0.5)))
    return Judged(truth, scores[:, None], Decision(0.5, COSTS))


def judge(table: pd.DataFrame, judged: Judged, metric: str = "roc_auc", least: int = 60, **given: Any) -> pd.DataFrame:
    contract = given.get("contract", CONTRACT)
    return judge_slices(table, judged, contract, metric, least, blocks_of(table, contract)[0], HOW)


def judged_groups(
    table: pd.DataFrame, judged: Judged, metric: str = "roc_auc", least: int = 60, how: Bootstrap = HOW
) -> pd.DataFrame:
    return judge_groups(table, judged, CONTRACT, metric, least, blocks_of(table, CONTRACT)[0], how)


def counted(name: str, values: list[Any]) -> dict[str, int]:
    return labels(pd.Series(values), COLUMNS[name]).value_counts().to_dict()


def test_a_category_a_boolean_and_a_number_of_few_values_are_slices_by_themselves() -> None:
    assert counted("shop", ["a", "b", None, "a"]) == {"a": 2, "b": 1, "missing": 1}
    assert counted("member", [True, False, True]) == {"True": 2, "False": 1}
    assert counted("weekday", [3, 3, 0]) == {"3": 2, "0": 1}
    assert counted("age", [30.0, np.nan, 30.5]) == {"30.0": 1, "30.5": 1, "missing": 1}


def test_a_span_begins_where_the_contract_says() -> None:
    found = labels(pd.Series([0, 359, 360, 1079, 1080, 99_999]), COLUMNS["minute"])
    assert found.tolist() == ["night", "night", "day", "day", "evening", "evening"]
    assert labels(pd.Series([-1.0, np.nan]), COLUMNS["minute"]).tolist() == ["below night", "missing"]


def test_a_number_of_many_values_is_cut_into_its_quarters() -> None:
    values = pd.Series([*np.arange(100.0), np.nan])
    found = labels(values, COLUMNS["age"])
    assert found.value_counts(sort=False).to_dict() == {
        "-inf to below 24.75": 25,
        "24.75 to below 49.5": 25,
        "49.5 to below 74.25": 25,
        "74.25 to below inf": 25,
        "missing": 1,
    }
    assert found[25] == "24.75 to below 49.5"


def test_quarters_of_numbers_that_lie_close_together_keep_names_of_their_own() -> None:
    assert labels(pd.Series(1e9 + np.arange(100.0)), COLUMNS["age"]).value_counts().tolist() == [25] * 4
    assert labels(pd.Series(1e-6 * np.arange(100.0)), COLUMNS["age"]).value_counts().tolist() == [25] * 4


def test_a_number_that_is_mostly_one_value_has_fewer_parts() -> None:
    values = pd.Series([0.0] * 80 + list(range(1, 21)))
    assert labels(values, COLUMNS["age"]).value_counts().to_dict() == {"0 to below inf": 100}


def test_slices_are_every_value_and_the_pairs_with_rows_enough() -> None:
    table = visits()
    named = {c.name.replace("_", " "): labels(table[c.name], c) for c in CONTRACT.having("slice")}
    values = [(f"{name} {value}", of == value) for name, of in named.items() for value in sorted(of.unique())]
    expected = {name: np.flatnonzero(inside).tolist() for name, inside in values}
    singles = len(expected)
    for (one, here), (other, there) in combinations(values, 2):
        if 60 <= (here & there).sum() < 0.95 * min(here.sum(), there.sum()):
            expected[f"{one}, {other}"] = np.flatnonzero(here & there).tolist()
    assert {part.name: part.rows.tolist() for part in slices_of(table, CONTRACT, 60)} == expected
    assert singles + 10 < len(expected) < singles + 120


def test_a_pair_that_is_all_but_one_of_its_values_is_left_out() -> None:
    names = [part.name for part in slices_of(visits(), CONTRACT, 1)]
    assert "shop a" in names
    assert "shop town upper" in names
    assert "shop a, shop town upper" not in names
    assert "shop missing, shop town upper" in names
    assert "shop a, weekday 3" in names


def test_figures_of_a_slice_are_those_of_its_rows_under_the_resamples_of_all_rows() -> None:
    table = visits()
    judged, blocks = judged_of(table), blocks_of(table, CONTRACT)[0]
    found = judge(table, judged).set_index("slice")
    times = times_drawn(blocks, HOW)[1:]
    for name, rows in (("shop c", table["shop"] == "c"), ("minute night", table["minute"] < 360)):
        inside = judged.at(np.flatnonzero(rows))
        weights = times[:, blocks[rows]]
        drawn = [theirs.roc_auc_score(inside.truth, inside.scores[:, 0], sample_weight=weight) for weight in weights]
        expected = (theirs.roc_auc_score(inside.truth, inside.scores[:, 0]), *np.quantile(drawn, [0.05, 0.95]))
        assert tuple(found.loc[name, ["roc_auc", "roc_auc_low", "roc_auc_high"]]) == pytest.approx(expected)
        assert found.loc[name, "rows"] == rows.sum()
        assert found.loc[name, "brier"] == pytest.approx(np.mean((inside.scores[:, 0] - inside.truth) ** 2))


def test_the_worst_slice_stands_first_and_those_that_are_not_judged_last() -> None:
    table = visits(2000)
    found = judge(table, judged_of(table), least=150)
    split = int(found["judged"].sum())
    assert 0 < split < len(found)
    assert found["judged"].tolist() == [True] * split + [False] * (len(found) - split)
    assert found["roc_auc"][:split].is_monotonic_increasing
    assert found["slice"].head(2).str.contains("shop b").all()
    assert found["roc_auc"][0] < 0.55 < 0.75 < found["roc_auc"][split - 1]


def test_where_less_is_better_the_largest_error_stands_first() -> None:
    table = visits()
    truth = np.random.default_rng(0).normal(size=len(table))
    off = np.where(table["shop"] == "b", 2.0, 0.5)
    found = judge(table, Judged(truth, (truth + off)[:, None], None), "rmse")
    assert found["rmse"][found["judged"]].is_monotonic_decreasing
    assert found["slice"].head(3).str.contains("shop b").all()
    only_b = found[found["slice"] == "shop b"].iloc[0]
    assert tuple(only_b[["rmse", "rmse_low", "rmse_high"]]) == pytest.approx((2.0, 2.0, 2.0))


def test_a_slice_with_few_rows_is_reported_and_not_judged() -> None:
    table = visits()
    rows = int((table["shop"] == "c").sum())
    for least, judged in ((rows, True), (rows + 1, False)):
        found = judge(table, judged_of(table), least=least).set_index("slice").loc["shop c"]
        assert (found["rows"], found["judged"]) == (rows, judged)
        assert np.isfinite(found["roc_auc"])


@pytest.mark.parametrize(("positives", "judged"), [(20, True), (19, False), (1, False), (0, False)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_slice_with_few_of_one_outcome_is_reported_and_not_judged(positives: int, judged: bool, turned: bool) -> None:
    table = visits()
    given = judged_of(table)
    rows = np.flatnonzero(table["shop"] == "c")
    given.truth[rows] = 0
    given.truth[rows[:positives]] = 1
    given.truth[:] = 1 - given.truth if turned else given.truth
    found = judge(table, given, "brier").set_index("slice").loc["shop c"]
    assert found["judged"] == judged
    assert np.isfinite(found["brier"])
    assert np.isnan(found["roc_auc"]) == (positives == 0)


def test_a_slice_that_the_metric_cannot_judge_is_reported_as_such() -> None:
    table = visits()
    truth = np.where(table["shop"] == "b", 1.0, np.random.default_rng(0).normal(size=len(table)))
    found = judge(table, Judged(truth, np.zeros((len(table), 1)), None), "r2").set_index("slice")
    assert not found.loc["shop b", "judged"]
    assert np.isnan(found.loc["shop b", "r2"])
    assert found.loc["shop a", "judged"]


def test_a_metric_that_no_slice_allows_leaves_all_of_them_unjudged() -> None:
    class Told(pa.DataFrameModel):
        """One row."""

        side: bool = column("The outcome again", roles=["slice"])
        y: pd.BooleanDtype = column("The outcome", roles=["target"], known="after")

    truth = np.arange(100) % 2.0
    table = pd.DataFrame({"side": truth == 1})
    found = judge(table, Judged(truth, truth[:, None], Decision(0.5, COSTS)), contract=Contract.of(Told, noun="rows"))
    assert found["slice"].tolist() == ["side False", "side True"]
    assert found["judged"].tolist() == [False, False]
    assert found[["roc_auc", "roc_auc_low", "roc_auc_high"]].isna().all(axis=None)


def test_without_a_slice_column_there_is_no_slice() -> None:
    class Plain(pa.DataFrameModel):
        """One row."""

        y: float = column("Y", roles=["target"])

    table = pd.DataFrame({"y": np.arange(10.0)})
    judged = Judged(table["y"].to_numpy(), np.ones((10, 1)), None)
    found = judge(table, judged, "rmse", contract=Contract.of(Plain, noun="rows"))
    assert found.empty
    assert list(found) == ["slice", "rows", "judged", "rmse", "rmse_low", "rmse_high"]


@pytest.mark.parametrize("name", ["shop", "member"])
def test_gaps_between_groups_are_those_of_fairlearn(name: str) -> None:
    table = visits()
    judged = judged_of(table)
    called = judged.scores[:, 0] >= 0.5
    metrics = {
        "selection_rate": fair.selection_rate,
        "recall": fair.true_positive_rate,
        "false_positive_rate": fair.false_positive_rate,
    }
    groups = labels(table[name], COLUMNS[name])
    frame = fair.MetricFrame(metrics=metrics, y_true=judged.truth, y_pred=called, sensitive_features=groups)
    ranked = fair.MetricFrame(
        metrics=theirs.roc_auc_score, y_true=judged.truth, y_pred=judged.scores[:, 0], sensitive_features=groups
    )
    by_group = frame.by_group.assign(roc_auc=ranked.by_group)
    found = judged_groups(table, judged, least=1)
    found = found[found["column"] == name].set_index("figure")
    assert list(found.index) == ["selection_rate", "recall", "false_positive_rate", "roc_auc"]
    expected = {**frame.difference(), "roc_auc": ranked.difference()}
    assert found["gap"].to_dict() == pytest.approx(expected)
    for figure, said in found["groups"].items():
        assert said == ", ".join(f"{group} {value:.4g}" for group, value in by_group[figure].items())


def test_a_gap_that_was_made_is_sure_and_one_by_chance_is_not() -> None:
    sure = {"shop": 0, "member": 0}
    for seed in range(20):
        table = visits(seed=seed)
        found = judged_groups(table, judged_of(table, seed), how=HOW._replace(confidence=0.95))
        ranked = found[found["figure"] == "roc_auc"].set_index("column")
        assert (ranked["gap_low"] <= ranked["gap"]).all()
        for name in sure:
            sure[name] += ranked.loc[name, "gap_low"] > 0.02
    assert sure["shop"] == 20
    assert sure["member"] <= 3


def test_groups_with_few_rows_are_left_out_of_the_gap() -> None:
    table = visits()
    smallest = int(labels(table["shop"], COLUMNS["shop"]).value_counts().min())
    with_all, without = (judged_groups(table, judged_of(table), least=least) for least in (smallest, smallest + 1))
    assert with_all["groups"][0].split(", ")[-1].startswith("missing ")
    *compared, left_out = without["groups"][0].split(", ")
    assert [said.split()[0] for said in compared] == ["a", "b", "c"]
    assert left_out == f"missing too few ({smallest})"


def test_groups_that_cannot_be_compared_have_no_gap() -> None:
    table = visits()
    most = int((table["shop"] == "a").sum())
    found = judged_groups(table, judged_of(table), least=most).set_index(["column", "figure"])
    assert found.loc[("shop", "recall"), "groups"].startswith("a ")
    assert "too few (" in found.loc[("shop", "recall"), "groups"]
    assert found.loc[("age", "recall"), "groups"].count("too few (") == 5
    assert found.loc[["shop", "age"], ["gap", "gap_low", "gap_high"]].isna().all(axis=None)


def test_numbers_are_compared_by_their_error_alone_and_the_main_metric_stands_once() -> None:
    table = visits()
    truth = np.random.default_rng(0).normal(size=len(table))
    scores = (truth + np.where(table["member"], 3.0, 1.0))[:, None]
    found = judged_groups(table, Judged(truth, scores, None), "rmse").set_index("column")
    assert found["figure"].tolist() == ["rmse"] * 3
    assert tuple(found.loc["member", ["gap", "gap_low", "gap_high"]]) == pytest.approx((2.0, 2.0, 2.0))
    assert found.loc["member", "groups"] == "False 1, True 3"
    figures = judged_groups(table, judged_of(table), "recall")["figure"]
    assert figures.tolist() == ["selection_rate", "recall", "false_positive_rate", "roc_auc"] * 3
