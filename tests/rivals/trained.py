"""The model of the bundle as scikit-learn holds it: raw rows in, probabilities out, saved as each rival reads it, and
as a bundle that the service runs on scikit-learn."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import joblib
import mlflow
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder

from pipeline.archive import to_skops
from pipeline.prepared import Inputs, feature_spec, features_of, read_prepared
from pipeline.train import calibrate
from problem.models import CANDIDATES
from problem.schema import CONTRACT
from tests.clones import ROOT
from tests.rivals.raw import to_features


def trained(kinds: dict[str, str]) -> Any:
    """One scikit-learn pipeline, trained and calibrated as the bundle's model was."""
    train, validation = (read_prepared(ROOT / f"prepared/{name}.parquet") for name in ("train", "validation"))
    best = json.loads((ROOT / "tuning/best.json").read_text())
    seed = json.loads((ROOT / "bundle/lineage.json").read_text())["params"]["seed"]
    spec = sorted(feature_spec(features_of(train)), key=lambda feature: feature.codes is None)
    known = {feature.name: [*feature.codes] for feature in spec if feature.codes is not None}
    encoder = OrdinalEncoder(
        categories=list(known.values()), handle_unknown="use_encoded_value", unknown_value=float("nan")
    )
    columns = ColumnTransformer([("categories", encoder, list(known))], remainder="passthrough")
    model = CANDIDATES[best["candidate"]].build(best["params"], spec, CONTRACT.task, seed)
    outcomes, judged = (rows[CONTRACT.target.name].to_numpy("float64") for rows in (train, validation))
    model.fit(columns.fit_transform(features_of(train)), outcomes)
    model = calibrate(model, Inputs(columns.transform(features_of(validation)), tuple(spec), judged), CONTRACT.task)
    return make_pipeline(FunctionTransformer(to_features, kw_args={"kinds": kinds}), columns, model)


def save(model: Any, folder: Path) -> None:
    """Write the model for every rival: `pipeline.joblib`, `mlflow/`, and MLServer's two folders."""
    joblib.dump(model, folder / "pipeline.joblib")
    logging.getLogger("mlflow.sklearn").setLevel("ERROR")  # it warns of pickles that strangers made
    # Without a signature: to check what comes by one would double what MLflow takes for a row.
    mlflow.sklearn.save_model(
        model,
        folder / "mlflow",
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
        pip_requirements=["scikit-learn"],  # else it looks for them, for seconds
    )
    settings = {"name": "model", "implementation": "mlserver_sklearn.SKLearnModel"}
    where = {"parameters": {"uri": str(folder / "pipeline.joblib")}}
    batching = {"max_batch_size": 16, "max_batch_time": 0.001}
    for name, more in (("mlserver", {}), ("mlserver-batching", batching)):
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps({**settings, **where, **more}))
    _save_bundle(model, folder / "bundle")


def _save_bundle(model: Any, folder: Path) -> None:
    _, columns, last = model.steps
    shutil.copytree(ROOT / "bundle", folder, ignore=shutil.ignore_patterns("model.onnx"))
    contract = json.loads((folder / "contract.json").read_text())
    order = [name.split("__")[-1] for name in columns[1].get_feature_names_out()]
    contract["features"].sort(key=lambda feature: order.index(feature["name"]))
    (folder / "contract.json").write_text(json.dumps({**contract, "runtime": "sklearn"}))
    last[1].cv = None  # as in training: skops trusts no splitter
    (folder / "pipeline.skops").write_bytes(to_skops(last[1]))
