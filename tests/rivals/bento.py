"""The pipeline as BentoML serves it, request by request and in batches of its own making. Its functions are async,
although they never wait: with one worker that is faster than a thread."""

import os
from typing import Any

import bentoml
import joblib
import pandas as pd

Rows = list[dict[str, Any]]


@bentoml.service(workers=1)
class Served:
    """The pipeline, behind two routes."""

    def __init__(self) -> None:
        self.pipeline = joblib.load(os.environ["PIPELINE"])

    @bentoml.api
    async def predict(self, rows: Rows) -> list[float]:
        """Score rows."""
        return self.pipeline.predict_proba(pd.DataFrame(rows))[:, 1].tolist()

    # A DataFrame would be the natural form of the rows; BentoML 1.4.39 hangs on batches of them.
    @bentoml.api(batchable=True, max_batch_size=1000)
    async def batched(self, rows: Rows) -> list[float]:
        """Score rows, together with those of other requests."""
        return self.pipeline.predict_proba(pd.DataFrame(rows))[:, 1].tolist()
