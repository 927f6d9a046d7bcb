import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from pipeline.errors import InputError
from pipeline.leaks import check_single_features, single_feature_scores

RANDOM = np.random.default_rng(0)
N = 2_000
NUMBER = pd.Series(RANDOM.normal(size=N))
TARGETS = {
    "binary": (NUMBER > 1).astype("float64"),
    "multiclass": pd.Series(np.array(["low", "middle", "high"])[np.digitize(NUMBER, [-1, 1])], dtype="str"),
    "regression": NUMBER,
}
HONEST = pd.Series(NUMBER + RANDOM.normal(size=N))
TEXT = pd.Series(RANDOM.choice(["a", "b"], N), dtype="str")


@pytest.mark.parametrize("task", TARGETS)
def test_honest_features_pass(task: str) -> None:
    check_single_features(pd.DataFrame({"honest": HONEST, "text": TEXT}), TARGETS[task], task, 0.99)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TARGETS)
def test_the_target_under_another_name_is_named(task: str) -> None:
    leaking = pd.DataFrame({"honest": HONEST, "billed": np.exp(NUMBER).where(NUMBER > -2)})
    with pytest.raises(InputError, match=r"'billed' alone scores (0\.99|1\.0).*preprocess\.suspicious_score = 0\.95"):
        check_single_features(leaking, TARGETS[task], task, 0.95)  # type: ignore[arg-type]


def test_the_target_as_text_is_named() -> None:
    leaking = pd.DataFrame({"state": pd.Series(np.where(TARGETS["binary"] == 1, "yes", None), dtype="str")})
    with pytest.raises(InputError, match=r"'state' alone scores 1\.0000"):
        check_single_features(leaking, TARGETS["binary"], "binary", 0.99)


def test_a_leak_of_rare_positives_is_found_in_many_rows() -> None:
    rare = pd.Series(np.zeros(60_000))
    rare[[100, 20_001, 40_003, 50_007]] = 1.0
    with pytest.raises(InputError, match="'copy' alone scores"):
        check_single_features(pd.DataFrame({"copy": rare}), rare, "binary", 0.99)


def test_one_positive_alone_accuses_nobody() -> None:
    single = pd.Series(np.eye(1, N)[0])
    check_single_features(pd.DataFrame({"honest": HONEST}), single, "binary", 0.99)


def test_a_category_of_many_values_and_a_sawtooth_that_give_the_target_away_are_named() -> None:
    generator = np.random.default_rng(1)
    codes = generator.integers(0, 300, 6_000)
    outcome = pd.Series((codes % 2).astype("float64"))
    ticket = pd.Series([f"ticket {code}" for code in codes], dtype="str")
    for leak in (ticket, pd.Series(codes.astype("float64"))):
        with pytest.raises(InputError, match="'leak' alone scores"):
            check_single_features(pd.DataFrame({"leak": leak}), outcome, "binary", 0.99)


@pytest.mark.parametrize("task", TARGETS)
def test_a_feature_scores_what_a_tree_of_scikit_learn_does_on_rows_that_it_did_not_see(task: str) -> None:
    target = TARGETS[task].to_numpy()
    classes = [np.arange(N)] if task == "regression" else [np.flatnonzero(target == k) for k in np.unique(target)]
    fit, asked = (np.concatenate([rows[start::2] for rows in classes]) for start in (0, 1))
    column = HONEST.to_numpy()[:, None]
    kind = DecisionTreeRegressor if task == "regression" else DecisionTreeClassifier
    tree = kind(random_state=0).fit(column[fit], target[fit])
    expected = {
        "binary": lambda: roc_auc_score(target[asked], tree.predict_proba(column[asked])[:, 1]),
        "multiclass": lambda: balanced_accuracy_score(target[asked], tree.predict(column[asked])),
        "regression": lambda: r2_score(target[asked], tree.predict(column[asked])),
    }[task]()
    found = single_feature_scores(pd.DataFrame({"honest": HONEST}), TARGETS[task], task)  # type: ignore[arg-type]
    assert found == pytest.approx({"honest": expected})


@pytest.mark.parametrize(("task", "chance"), [("binary", 0.5), ("multiclass", 1 / 3), ("regression", -1.0)])
def test_every_feature_is_scored_in_its_order_from_chance_to_certainty(task: str, chance: float) -> None:
    noise = pd.Series(np.random.default_rng(5).normal(size=N))
    table = pd.DataFrame({"noise": noise, "told": NUMBER, "honest": HONEST, "text": TEXT, "none": np.nan})
    found = single_feature_scores(table, TARGETS[task], task)  # type: ignore[arg-type]
    assert list(found) == ["noise", "told", "honest", "text", "none"]
    assert found["noise"] == pytest.approx(chance, abs=0.12)
    assert found["told"] > 0.99 > 0.9 > found["honest"] > found["noise"]
    nothing = {"binary": 0.5, "multiclass": 1 / 3, "regression": 0.0}[task]
    assert found["text"] == pytest.approx(nothing, abs=0.05)
    assert found["none"] == pytest.approx(nothing, abs=0.01)
