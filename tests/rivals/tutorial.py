"""The service that tutorials teach: pydantic rows, a DataFrame, the trained scikit-learn pipeline."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import create_model

from problem.features import features

KINDS = {"number": float, "integer": int, "boolean": bool, "category": str, "time": datetime}
PIPELINE = joblib.load(os.environ["PIPELINE"])
INPUTS = json.loads(Path("bundle/contract.json").read_text())["inputs"]
FIELDS: dict[str, Any] = {
    c["name"]: (KINDS[c["kind"]] | None, None) if c["nullable"] else (KINDS[c["kind"]], ...) for c in INPUTS
}
Row = create_model("Row", **FIELDS)
app = FastAPI()


@app.post("/predict")
def predict(row: Row) -> dict[str, float]:  # type: ignore[valid-type]
    """Score a row."""
    raw = pd.DataFrame([row.model_dump()])  # type: ignore[attr-defined]
    for column in INPUTS:
        if column["kind"] in ("number", "integer"):
            raw[column["name"]] = raw[column["name"]].astype("float64")
        elif column["kind"] == "time":
            raw[column["name"]] = pd.to_datetime(raw[column["name"]]).astype("datetime64[us]")
    columns = {name: raw[name].to_numpy() for name in raw}
    return {"score": float(PIPELINE.predict_proba(pd.DataFrame(features(columns)))[0, 1])}
