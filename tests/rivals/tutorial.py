"""The service that tutorials teach: pydantic rows, a DataFrame, the trained scikit-learn pipeline. Its function is
async, although it never waits: with one worker that is faster than a pool of threads."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, create_model

KINDS = {"number": float, "integer": int, "boolean": bool, "category": str, "time": datetime}
PIPELINE = joblib.load(os.environ["PIPELINE"])
INPUTS = json.loads(Path("bundle/contract.json").read_text())["inputs"]
FIELDS: dict[str, Any] = {
    c["name"]: (KINDS[c["kind"]] | None, None) if c["nullable"] else (KINDS[c["kind"]], ...) for c in INPUTS
}
Row = create_model("Row", **FIELDS)


class Rows(BaseModel):
    """What is sent."""

    rows: list[Row]  # type: ignore[valid-type]


app = FastAPI()


@app.post("/predict")
async def predict(asked: Rows) -> dict[str, list[float]]:
    """Score rows."""
    raw = pd.DataFrame([row.model_dump() for row in asked.rows])  # type: ignore[attr-defined]
    return {"scores": PIPELINE.predict_proba(raw)[:, 1].tolist()}
