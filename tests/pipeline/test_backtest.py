from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score, root_mean_squared_error

from pipeline.backtest import Past, backtest, simpler
from pipeline.candidates import Candidate
from pipeline.contract import Contract
from pipeline.decisions import Costs
from pipeline.metrics import Decision, Judged
from pipeline.prepared import Inputs
from pipeline.resamples import Bootstrap
from pipeline.scoring import Feature
from tests.synthetic import make_contract

HOW = Bootstrap(resamples=200, confidence=0.9, seed=2)
DECISION = Decision(0.5, Costs(missed=3.0, false_alarm=1.0))
BEST: dict[str, Any] = {"candidate": "all", "params": {"C": 1.0}}


class Looking(LogisticRegression):
    """A logistic regression that looks at some of the columns, and tells how many rows it was fitted on."""

    fitted: list[int] = []  # noqa: RUF012 - one list for all

    def __init__(self, columns: tuple[int, ...] = (0, 1), C: float = 1.0) -> None:
        super().__init__(C=C)
        self.columns = columns

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Looking":
        self.fitted.append(len(X))
        return super().fit(X[:, self.columns], y)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(super().predict_proba(X[:, self.columns]))


def build(columns: tuple[int, ...]) -> Any:
    def built(settings: Any, _spec: Any, task: str, _seed: int) -> BaseEstimator:
        return LinearRegression() if task == "regression" else Looking(columns, **settings)

    return built


CANDIDATES = {
    "none": Candidate(lambda _trial: {}, build((2,))),  # a column of noise
    "first": Candidate(lambda _trial: {}, build((0,))),
    "all": Candidate(lambda _trial: {}, build((0, 1))),
    "later": Candidate(lambda _trial: {}, build((0, 1))),
}
TRIALS = pd.DataFrame(
    {
        "candidate": ["first", "none", "first", "all", "later"],
        "score": [0.7, 0.8, 0.6, 0.5, 0.4],
        "params": ['{"C": 1e-06}', '{"C": 1.0}', '{"C": 1.0}', '{"C": 1.0}', '{"C": 1.0}'],
    }
)


def past(
    moments: pd.DatetimeIndex,
    *,
    turns: float = 0.0,
    second: float = 1.0,
    task: str = "binary",
    metric: str = "roc_auc",
    fitted: int = 100_000,
    contract: Contract | None = None,
) -> Past:
    """Rows at these moments; what makes the outcome turns by an angle a month, of which a model knows two columns."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(len(moments), 3))
    angle = turns * (moments.year * 12 + moments.month).to_numpy()
    harm = 2 * (np.cos(angle) * matrix[:, 0] + second * np.cos(angle + 0.5) * matrix[:, 1]) + random.logistic(
        size=len(moments)
    )
    truth = {
        "binary": (harm > 0).astype("float64"),
        "multiclass": np.digitize(harm, [-1, 1]).astype("float64"),
        "regression": harm,
    }[task]
    target = np.array(["a", "b", "c"], dtype=object)[truth.astype(int)] if task == "multiclass" else truth
    rows = pd.DataFrame({"read_at": moments.astype("datetime64[us]"), "machine": "m"})
    inputs = Inputs(matrix, tuple(Feature(f"x{i}") for i in range(3)), target)
    unscored = Judged(truth, np.zeros((len(rows), 1)), DECISION if task == "binary" else None)
    return Past(rows, inputs, unscored, contract or make_contract(task), CANDIDATES, metric, fitted, HOW)


def months(count: int, rows_a_month: int = 600, start: str = "2019-11") -> pd.DatetimeIndex:
    starts = pd.date_range(start, periods=count, freq="MS")
    return pd.DatetimeIndex([m + pd.Timedelta(days=27 * i / rows_a_month) for m in starts for i in range(rows_a_month)])


def test_every_month_is_scored_by_a_model_of_each_month_before_it() -> None:
    models, waiting = backtest(past(months(4, 100)), BEST)
    assert list(models) == ["trained_until", "scored", "age_months", "roc_auc"]
    assert models.iloc[:, :3].to_numpy().tolist() == [
        ["2019-12", "2019-12", 1],
        ["2019-12", "2020-01", 2],
        ["2019-12", "2020-02", 3],
        ["2020-01", "2020-01", 1],
        ["2020-01", "2020-02", 2],
        ["2020-02", "2020-02", 1],
    ]
    assert waiting["age_months"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("task", "metric", "theirs"),
    [
        ("binary", "roc_auc", lambda truth, model, asked: roc_auc_score(truth, model.predict_proba(asked)[:, 1])),
        ("multiclass", "accuracy", lambda truth, model, asked: accuracy_score(truth, model.predict(asked))),
        ("regression", "rmse", lambda truth, model, asked: root_mean_squared_error(truth, model.predict(asked))),
    ],
)
def test_figures_are_those_of_a_model_fitted_on_the_months_before(task: str, metric: str, theirs: Any) -> None:
    given = past(months(3), task=task, metric=metric)
    models, _ = backtest(given, BEST)
    month = np.arange(3).repeat(600)
    matrix = given.inputs.matrix[:, : 3 if task == "regression" else 2]
    for row, (cut, asked) in enumerate([(1, 1), (1, 2), (2, 2)]):
        kind = LinearRegression() if task == "regression" else LogisticRegression()
        known = kind.fit(matrix[month < cut], given.inputs.target[month < cut])
        expected = theirs(given.inputs.target[month == asked], known, matrix[month == asked])
        assert models[metric][row] == pytest.approx(expected)


def test_the_cost_of_waiting_grows_where_the_world_turns() -> None:
    models, waiting = backtest(past(months(6), turns=0.4), BEST)
    assert waiting.loc[0, ["loss", "low", "high"]].tolist() == [0, 0, 0]
    assert waiting["loss"].is_monotonic_increasing
    assert (waiting["low"][1:] > 0).all()
    assert waiting["loss"].iloc[-1] > 0.1
    mean = models.pivot_table(index="scored", columns="age_months", values="roc_auc")
    assert waiting["loss"][4] == pytest.approx(mean.loc["2020-04", 1] - mean.loc["2020-04", 5])
    second = [mean.loc[m, 1] - mean.loc[m, 2] for m in ("2020-01", "2020-02", "2020-03", "2020-04")]
    assert waiting["loss"][1] == pytest.approx(np.mean(second))


def test_waiting_costs_nothing_where_nothing_changes() -> None:
    _, waiting = backtest(past(months(6)), BEST)
    assert waiting["loss"].abs().max() < 0.005
    assert (waiting["low"] <= waiting["loss"]).all()
    assert (waiting["loss"] <= waiting["high"]).all()


def test_where_less_is_better_an_error_that_grows_is_a_cost_too() -> None:
    _, waiting = backtest(past(months(5), turns=0.4, task="regression", metric="rmse"), BEST)
    assert waiting["loss"].is_monotonic_increasing
    assert waiting["low"].iloc[-1] > 0.2


def test_of_a_longer_past_a_period_is_several_months() -> None:
    year, _ = backtest(past(months(12, 30)), BEST)
    assert sorted(set(year["scored"])) == [str(p) for p in pd.period_range("2019-12", "2020-10", freq="M")]
    longer, waiting = backtest(past(months(13, 30)), BEST)
    assert sorted(set(longer["scored"])) == ["2020-01", "2020-03", "2020-05", "2020-07", "2020-09", "2020-11"]
    assert waiting["age_months"].tolist() == [2, 4, 6, 8, 10, 12]
    assert longer["trained_until"].min() == "2020-01"


@pytest.mark.parametrize(
    "given",
    [past(months(4, 50), contract=make_contract(timed=False)), past(months(1, 200))],
    ids=["without a time column", "with one month alone"],
)
def test_without_time_there_is_no_looking_back(given: Past) -> None:
    models, waiting = backtest(given, BEST)
    assert models.empty
    assert waiting.empty
    assert list(models) == ["trained_until", "scored", "age_months", "roc_auc"]
    assert list(waiting) == ["age_months", "loss", "low", "high"]


def test_months_without_rows_or_of_one_day_are_passed_over() -> None:
    whole = months(5, 100)
    kept = whole[(whole.month != 1) & ~((whole.month == 2) & (whole.day > 1))]
    models, waiting = backtest(past(kept), BEST)
    assert set(models["scored"]) == {"2019-12", "2020-03"}
    assert models[models["scored"] == "2020-03"]["age_months"].tolist() == [4, 3, 2, 1]
    assert waiting["age_months"].tolist() == [1, 2, 3, 4]


def test_a_month_that_leaves_the_metric_undefined_is_passed_over() -> None:
    given = past(months(3, 100))
    given.unscored.truth[100:200] = 1
    models, _ = backtest(given, BEST)
    assert models.iloc[:, :2].to_numpy().tolist() == [["2019-12", "2020-01"], ["2020-01", "2020-01"]]


@pytest.mark.parametrize(("task", "metric"), [("binary", "roc_auc"), ("multiclass", "accuracy")])
def test_a_past_that_lacks_a_class_trains_no_model(task: str, metric: str) -> None:
    given = past(months(4, 100), task=task, metric=metric)
    lacking = given.unscored.truth[:200] == 1
    given.unscored.truth[:200][lacking] = 0
    given.inputs.target[:200][lacking] = 0 if task == "binary" else "a"
    models, waiting = backtest(given, BEST)
    assert models["trained_until"].tolist() == ["2020-02"]
    assert waiting["age_months"].tolist() == [1]
    assert simpler(given, BEST, TRIALS, np.arange(200), np.arange(300, 400), 0.01).empty


def test_a_model_is_fitted_on_a_sample_of_the_past_always_the_same_one() -> None:
    Looking.fitted.clear()
    one, _ = backtest(past(months(4, 200), fitted=300), BEST)
    assert Looking.fitted == [300, 300, 200]
    again, _ = backtest(past(months(4, 200), fitted=300), BEST)
    pd.testing.assert_frame_equal(one, again)


def test_a_month_of_many_rows_is_scored_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backtest._SCORED", 150)
    given, asked = past(months(3, 400)), []
    monkeypatch.setattr(Past, "drawn", lambda _past, rows, _scores: asked.append(rows))
    backtest(given, BEST)
    assert [len(rows) for rows in asked] == [150] * 3
    assert [sorted(set(rows // 400)) for rows in asked] == [[2], [1], [2]]
    assert asked[0].max() - asked[0].min() > 300
    np.testing.assert_array_equal(asked[0], asked[2])


FIT, TEST = np.arange(4000), np.arange(4000, 8000)


def compared(margin: float = 0.01, best: Any = BEST, trials: pd.DataFrame = TRIALS, **given: Any) -> pd.DataFrame:
    return simpler(past(months(8, 1000), **given), best, trials, FIT, TEST, margin).set_index("candidate")


def test_a_simpler_candidate_that_is_as_good_is_named() -> None:
    found = compared(second=0.0)
    assert found.index.tolist() == ["none", "first"]
    assert found["as_good"].tolist() == [False, True]
    assert found.loc["first", "high"] <= 0.01
    assert found.loc["none", "roc_auc"] == pytest.approx(0.5, abs=0.03)


def test_a_simpler_candidate_that_is_worse_is_not() -> None:
    found = compared()
    assert found["as_good"].tolist() == [False, False]
    assert 0.01 < found.loc["first", "low"] < found.loc["first", "gain"] < found.loc["first", "high"]


def test_as_good_is_what_surely_loses_no_more_than_the_margin() -> None:
    high = compared().loc["first", "high"]
    assert compared(margin=high).loc["first", "as_good"]
    assert not compared(margin=np.nextafter(high, 0)).loc["first", "as_good"]


def test_candidates_are_compared_at_their_best_settings_on_the_same_rows() -> None:
    given = past(months(8, 1000))
    found = compared(metric="log_loss").loc["first"]
    losses = {}
    for width, strength in ((1, 1.0), (1, 1e-6), (2, 1.0)):
        model = LogisticRegression(C=strength).fit(given.inputs.matrix[FIT, :width], given.inputs.target[FIT])
        said = model.predict_proba(given.inputs.matrix[TEST, :width])
        losses[width, strength] = log_loss(given.inputs.target[TEST], said)
    assert losses[1, 1e-6] > losses[1, 1.0] + 0.05
    assert found["log_loss"] == pytest.approx(losses[1, 1.0])
    assert found["gain"] == pytest.approx(losses[1, 1.0] - losses[2, 1.0])


def test_a_number_is_compared_by_how_much_smaller_its_error_is() -> None:
    found = compared(task="regression", metric="rmse").loc["first"]
    assert found[["gain", "low", "high"]].tolist() == [0, 0, 0]
    assert found["as_good"]


def test_only_candidates_that_were_tried_and_are_listed_before_the_chosen_one_are_compared() -> None:
    assert compared(trials=TRIALS[TRIALS["candidate"] != "none"]).index.tolist() == ["first"]
    assert compared(best={"candidate": "later", "params": {}}).index.tolist() == ["none", "first", "all"]
    first = compared(best={"candidate": "none", "params": {}})
    assert first.empty
    assert list(first) == ["roc_auc", "gain", "low", "high", "as_good"]


def test_where_the_test_leaves_the_metric_undefined_nothing_is_compared() -> None:
    given = past(months(8, 1000))
    given.unscored.truth[TEST] = 1
    assert simpler(given, BEST, TRIALS, FIT, TEST, 0.01).empty
