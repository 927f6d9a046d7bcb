"""The same stages on other problems: only src/problem and params.yaml differ."""

import json
import sys
from textwrap import dedent
from typing import NamedTuple

import pytest

from tests.clones import Clone


class Problem(NamedTuple):
    loader: str
    columns: list[str]
    target: str
    classifier: bool
    metrics: set[str]


PROBLEMS = {
    "binary": Problem(
        "load_breast_cancer",
        ["mean texture", "mean smoothness", "mean symmetry", "mean fractal dimension"],
        'bool = column("Whether the tumour is benign", roles=["target"], known="after")',
        True,
        {
            "roc_auc",
            "pr_auc",
            "log_loss",
            "brier",
            "calibration_error",
            "cost_per_1000",
            "precision",
            "recall",
            "f1",
            "false_positive_rate",
            "selection_rate",
        },
    ),
    "multiclass": Problem(
        "load_wine",
        ["alcohol", "malic_acid", "ash", "magnesium"],
        'str = column("The cultivar", roles=["target"], known="after", isin=["0", "1", "2"])',
        True,
        {"accuracy", "log_loss", "brier", "calibration_error", "macro_roc_auc", "macro_f1"},
    ),
    "regression": Problem(
        "load_diabetes",
        ["age", "bmi", "bp", "s5"],
        'float = column("How the disease progressed", roles=["target"], known="after")',
        False,
        {"rmse", "mae", "bias", "r2"},
    ),
}
MODELS = '''
"""Two candidates."""
from sklearn.ensemble import HistGradientBoosting{kind} as Boosting
from sklearn.linear_model import {linear}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.candidates import Candidate

CANDIDATES = {{
    "linear": Candidate(
        lambda trial: {{"{strength}": trial.suggest_float("{strength}", 0.01, 10, log=True)}},
        lambda settings, spec, task, seed: make_pipeline(StandardScaler(), {linear}(**settings)),
    ),
    "boosting": Candidate(
        lambda trial: {{"max_iter": trial.suggest_int("max_iter", 5, 20)}},
        lambda settings, spec, task, seed: Boosting(**settings, random_state=seed),
    ),
}}
'''
SOURCE = '''
"""One of scikit-learn's bundled tables."""
from sklearn import datasets

NAME = "scikit-learn"


def periods():
    return ["all"]


def read(period, contract):
    data = datasets.{loader}(as_frame=True)
    table = data.data[{columns}].rename(columns=lambda name: name.replace(" ", "_"))
    kind = contract.target.kind
    outcome = data.target.astype({{"boolean": "bool", "category": "str"}}.get(kind, "float64"))
    return table.assign(outcome=outcome)
'''


def replace_problem(clone: Clone, kind_of_problem: str) -> None:
    problem = PROBLEMS[kind_of_problem]
    folder = clone.path / "src/problem"
    columns = [name.replace(" ", "_") for name in problem.columns]
    described = "".join(f'    {name}: float = column("Measured", roles=["feature"])\n' for name in columns)
    (folder / "schema.py").write_text(
        '"""Another contract."""\nimport pandera.pandas as pa\n\nfrom pipeline.contract import Contract, column\n\n\n'
        'class Rows(pa.DataFrameModel):\n    """One row per sample."""\n\n'
        f'{described}    outcome: {problem.target}\n\n\nCONTRACT = Contract.of(Rows, noun="samples")\n'
    )
    (folder / "features.py").write_text(
        f'"""As they are."""\n\n\ndef features(columns):\n    return {{name: columns[name] for name in {columns}}}\n'
    )
    kind, linear, strength = (
        ("Classifier", "LogisticRegression", "C") if problem.classifier else ("Regressor", "Ridge", "alpha")
    )
    (folder / "models.py").write_text(dedent(MODELS).format(kind=kind, linear=linear, strength=strength).lstrip())
    (folder / "source.py").write_text(SOURCE.format(loader=problem.loader, columns=problem.columns).lstrip())
    (clone.path / "docs/problem.md").write_text("# Samples\n\n## The question\n\nWhat is it?\n")
    clone.edit_params(
        preprocess__split={"method": "random", "validation_share": 0.25, "test_share": 0.25, "seed": 1},
        tune__candidates=["linear", "boosting"],
        tune__trials=4,
        train__baseline_keys=[],
        train__costs={"missed": 5.0, "false_alarm": 1.0} if kind_of_problem == "binary" else None,
        evaluate__metric={"binary": "roc_auc", "multiclass": "macro_roc_auc"}.get(kind_of_problem, "rmse"),
        evaluate__resamples=100,
        evaluate__refit_rows=100,
        evaluate__limits={
            "test_rows": 40,
            "single_feature": 0.99,
            "floor": 100.0 if kind_of_problem == "regression" else 0.5,
            "gain_over_naive": 0.0,
            "gain_over_simple": 0.0,
            "slice_floor": 0.5,
            "group_gap": 0.3,
            "calibration": 0.9,
            "changed_by_noise": 0.5,
        },
    )


@pytest.mark.parametrize("kind", PROBLEMS)
def test_every_stage_runs_on_another_problem(clone: Clone, kind: str) -> None:
    problem = PROBLEMS[kind]
    replace_problem(clone, kind)
    clone.run("rm", "-rf", "data.dvc", "dvc.lock", ".dvc/store")
    clone.run(sys.executable, "-m", "flows.ingest", "--from", "all", "--to", "all")
    clone.dvc("repro")
    contract = json.loads((clone.path / "bundle/contract.json").read_text())
    assert (contract["task"], contract["runtime"]) == (kind, "onnx")
    metrics = json.loads((clone.path / "reports/metrics.json").read_text())
    assert set(metrics["model"]) == problem.metrics
    assert all(found["low"] <= found["value"] <= found["high"] for found in metrics["model"].values())
    better = "log_loss" if problem.classifier else "rmse"
    assert metrics["model"][better]["value"] < metrics["naive"][better]["value"]
    assert_logged_model_scores_golden_rows(clone)
    inspected = clone.run(sys.executable, "-m", "flows.inspect")
    assert "AIRWORTHY: bundle" in inspected.stdout
    assert "first: no champion has flown yet" in inspected.stdout
    page = (clone.path / "inspection/index.html").read_text()
    assert "flight" not in page


def assert_logged_model_scores_golden_rows(clone: Clone) -> None:
    store = f"sqlite:///{clone.path}/mlflow.db"
    code = (
        "import json, mlflow, numpy as np; from flows.model import example;"
        f"mlflow.set_tracking_uri({store!r});"
        "runs = mlflow.search_runs(search_all_experiments=True, filter_string=\"tags.`stage.train` != ''\");"
        "model = mlflow.pyfunc.load_model(runs['tags.model'][0]);"
        "golden = json.load(open('bundle/golden.json')); inputs = json.load(open('bundle/contract.json'))['inputs'];"
        "scores = np.asarray(model.predict(example(golden['rows'], inputs)));"
        "print('gap', abs(scores - np.array(golden['scores'])).max() < 1e-9)"
    )
    assert "gap True" in clone.run(str(clone.path / ".venv/bin/python"), "-c", code, PYTHONPATH="src:.").stdout
