import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from pipeline import gates
from pipeline.duel import Duel, duel
from pipeline.errors import InputError
from pipeline.featurize import raw_columns
from pipeline.resamples import Estimate, blocks_of, times_drawn
from pipeline.scoring import Scorer
from tests.synthetic import evaluate_params, features, make_contract, make_scorer, prepared


def lineage(
    train: str = "2020-03-31T23:59:00", validation: str = "2020-05-09T20:00:00", **files: str
) -> dict[str, Any]:
    """What is known of where a model comes from: the ends of its rows, and the hashes of its files."""
    rows = {"train": {"rows": 300, "last": train}, "validation": {"rows": 130, "last": validation}}
    return {"rows": rows, "files": {"prepared/train.parquet": "1", "prepared/validation.parquet": "2"} | files}


def fight(challenger: Scorer | None = None, champion: Scorer | None = None, task: str = "binary", **given: Any) -> Duel:
    lineages = given.pop("lineages", (lineage(), lineage()))
    return duel(
        given.pop("test", prepared(task).test),
        contract=given.pop("contract", make_contract(task)),
        challenger=(challenger or make_scorer(task), lineages[0]),
        champion=(champion or make_scorer(task), lineages[1]),
        name="model/v3",
        params=evaluate_params(task, **given),
    )


def worse(scorer: Scorer, share: float) -> Scorer:
    """The scorer, with a share of noise in its scores."""

    def model(matrix: np.ndarray) -> np.ndarray:
        scores = scorer.model(matrix)
        return (1 - share) * scores + share * np.random.default_rng(5).random(scores.shape)

    return replace(scorer, model=model)


@pytest.mark.parametrize(
    ("task", "metric"), [("binary", "roc_auc"), ("multiclass", "log_loss"), ("regression", "rmse")]
)
def test_a_model_against_itself_gains_exactly_nothing(task: str, metric: str) -> None:
    found = fight(task=task, metric=metric)
    assert found.gain == Estimate(0.0, 0.0, 0.0)
    assert (found.champion, found.metric, found.rows) == ("model/v3", metric, 165)
    assert found.figures["challenger"] == found.figures["champion"]
    assert gates.champion(found, 0.0).value == 0


def test_the_gain_is_the_difference_on_the_same_resamples() -> None:
    test, scorer, params = prepared().test, make_scorer(), evaluate_params()
    other = worse(scorer, 0.5)
    found = fight(scorer, other)
    truth, blocks = test["outcome"], blocks_of(test, make_contract())[0]
    scores = [each.score(raw_columns(test, make_contract()))[:, 0] for each in (scorer, other)]
    drawn = [
        roc_auc_score(truth, scores[0], sample_weight=weight) - roc_auc_score(truth, scores[1], sample_weight=weight)
        for weight in times_drawn(blocks, params.bootstrap)[:, blocks]
    ]
    assert found.gain == pytest.approx((drawn[0], *np.quantile(drawn[1:], [0.05, 0.95])))
    assert found.gain.value > 0
    assert found.figures["challenger"]["roc_auc"] == pytest.approx(roc_auc_score(truth, scores[0]), rel=1e-5)
    assert found.figures["champion"]["roc_auc"] == pytest.approx(roc_auc_score(truth, scores[1]), rel=1e-5)
    mirrored = fight(other, scorer).gain
    assert mirrored == pytest.approx((-found.gain.value, -found.gain.high, -found.gain.low))


def test_a_smaller_error_is_a_gain() -> None:
    off = replace(make_scorer("regression"), model=lambda matrix: make_scorer("regression").model(matrix) + 2)
    assert fight(None, off, "regression").gain.low > 0 > fight(off, None, "regression").gain.high


def test_a_challenger_passes_to_the_margin_and_no_further() -> None:
    found = fight(worse(make_scorer(), 0.3), make_scorer())
    assert found.gain.low < 0
    for margin, passed in ((-found.gain.low, True), (np.nextafter(-found.gain.low, 0), False), (0.0, False)):
        verdict = gates.judge({"champion": lambda margin=margin: gates.champion(found, margin)}, {})[0]
        assert verdict.passed is passed
        assert verdict.reason.endswith("against model/v3, on 165 rows that neither has seen")


LATE, LATER = "2020-05-20T00:00:00", "2020-06-01T00:00:00"


@pytest.mark.parametrize(
    ("lineages", "seen"),
    [
        ((lineage(), lineage(validation=LATER)), LATER),
        ((lineage(validation=LATER), lineage()), LATER),
        ((lineage(validation=LATE), lineage(train=LATER)), LATER),
        ((lineage(validation=LATE), lineage(validation=LATE)), LATE),
    ],
    ids=["champion", "challenger", "champion's training", "both"],
)
def test_rows_count_only_after_all_that_either_has_seen(lineages: tuple[Any, Any], seen: str) -> None:
    test = prepared().test
    unseen = test[test["read_at"] > seen]
    assert 0 < len(unseen) < len(test)
    found = fight(make_scorer(), worse(make_scorer(), 0.5), lineages=lineages)
    assert found.rows == len(unseen)
    again = fight(make_scorer(), worse(make_scorer(), 0.5), test=unseen.reset_index(drop=True))
    assert found == again


def test_the_row_that_training_ended_with_is_seen() -> None:
    moments = prepared().test["read_at"]
    last = moments.iloc[-60].isoformat()
    assert fight(lineages=(lineage(), lineage(validation=last))).rows == 59


def test_where_no_row_is_left_there_is_no_duel() -> None:
    end = prepared().test["read_at"].max()
    with pytest.raises(InputError, match=f"expected test rows after {end}, .* found none; move the test to a later"):
        fight(lineages=(lineage(), lineage(validation=end.isoformat())))


def test_where_few_rows_are_left_there_is_no_duel() -> None:
    last = prepared().test["read_at"].iloc[-50].isoformat()
    with pytest.raises(InputError, match=r"expected 50 rows or more .*, found 49; widen the test"):
        fight(lineages=(lineage(), lineage(validation=last)))


def test_a_wrong_decision_costs_the_champion_what_it_costs_the_challenger() -> None:
    cheap = make_scorer()
    dear = replace(cheap, contract={**cheap.contract, "costs": {"missed": 30.0, "false_alarm": 10.0}})
    assert fight(cheap, dear, metric="cost_per_1000").gain == (0.0, 0.0, 0.0)


def test_where_one_outcome_is_left_there_is_no_figure() -> None:
    test = prepared().test.assign(outcome=0.0)
    with pytest.raises(InputError, match=r"expected a roc_auc of model/v3 on 165 rows, which leave it undefined"):
        fight(test=test)
    assert fight(test=test, metric="log_loss").gain.value == 0


def test_a_champion_of_another_kind_is_refused() -> None:
    other = make_scorer("regression")
    with pytest.raises(InputError, match="expected a roc_auc of model/v3 on 165 rows"):
        fight(None, other)


def test_a_champion_that_tells_other_classes_apart_is_refused() -> None:
    scorer = make_scorer("multiclass")
    other = replace(scorer, contract={**scorer.contract, "classes": ["broken", "fine", "old"]})
    with pytest.raises(
        InputError, match=r"expected model/v3 to tell the same classes apart, got \['broken', 'fine', 'old'"
    ):
        fight(scorer, other, "multiclass")


@pytest.mark.parametrize(
    "changed",
    [
        {"features": lambda columns: {**features(columns), "humidity": columns["humidity"]}},
        {"features": lambda columns: {k: v for k, v in features(columns).items() if k != "maker"}},
    ],
    ids=["a column of the table", "a feature of the model"],
)
def test_a_champion_that_needs_a_column_that_is_gone_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected model/v3 to score today's rows, .* lack: '(humidity|maker)'; keep"):
        fight(None, replace(make_scorer(), **changed))


def test_a_champion_that_scores_no_number_is_refused() -> None:
    broken = replace(make_scorer(), model=lambda matrix: np.full((len(matrix), 1), np.nan))
    with pytest.raises(InputError, match="expected finite scores"):
        fight(None, broken)


def test_each_decides_by_its_own_threshold() -> None:
    shy = replace(make_scorer(), contract={**make_scorer().contract, "threshold": 2.0})
    found = fight(None, shy, metric="recall")
    assert found.figures["champion"]["recall"] == 0
    assert found.gain.value == pytest.approx(found.figures["challenger"]["recall"], rel=1e-5)


def test_without_a_time_column_both_must_come_from_the_same_splits() -> None:
    contract = make_contract(timed=False)
    ends, tuned = {"train": "2021-01-01T00:00:00"}, {"tuning/best.json": "another"}  # which have no say here
    assert fight(contract=contract, lineages=(lineage(**ends), lineage(**ends, **tuned))).rows == 165
    for split in ("train", "validation"):
        other = {**lineage(), "files": {**lineage()["files"], f"prepared/{split}.parquet": "another"}}
        with pytest.raises(InputError, match="from the same splits, and these were not; declare a time column"):
            fight(contract=contract, lineages=(lineage(), other))


def test_a_duel_can_be_written_down() -> None:
    found = fight(make_scorer(), worse(make_scorer(), 0.5))
    assert json.loads(json.dumps(found._asdict()))["figures"] == found.figures
    assert all(float(f"{v:.6g}") == v for side in found.figures.values() for v in side.values())


def test_the_rows_given_are_left_as_they_are() -> None:
    test = prepared().test.copy()
    fight(test=test, lineages=(lineage(), lineage(validation=LATE)))
    pd.testing.assert_frame_equal(test, prepared().test)
