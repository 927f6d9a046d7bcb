"""A bundle that scores: raw columns in, scores out, by numpy and onnxruntime. Change here to run another kind."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

TOLERANCE = 1e-9  # between the trained pipeline and the bundle: rounding of doubles, and nothing more

Columns = Mapping[str, np.ndarray]
Features = Callable[[Columns], dict[str, np.ndarray]]
Model = Callable[[np.ndarray], np.ndarray]


class Feature(NamedTuple):
    """One input of the model: a number, or a category with the code of each value that training knew."""

    name: str
    codes: Mapping[str, float] | None = None

    @classmethod
    def of(cls, name: str, categories: Sequence[str] | None) -> "Feature":
        """A feature with these categories in the order of their codes, or none: a number."""
        return cls(name, None if categories is None else {value: float(code) for code, value in enumerate(categories)})


def encode(features: Mapping[str, np.ndarray], spec: Sequence[Feature]) -> np.ndarray:
    """The model's input, float64 [n, len(spec)]: numbers as they are, categories as their code; NaN where a number is
    missing, or a category missing or never seen in training."""
    if len(features[spec[0].name]) == 1:  # soonest done without columns
        values = [
            features[name].item() if codes is None else codes.get(features[name].item(), np.nan) for name, codes in spec
        ]
        return np.array([values], dtype="float64")
    columns = [
        features[name] if codes is None else [*map(codes.get, features[name].tolist(), repeat(np.nan))]
        for name, codes in spec
    ]
    return np.ascontiguousarray(np.array(columns, dtype="float64").T)


def parse_columns(given: Mapping[str, Sequence[Any]], inputs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """JSON values, column by column, as the arrays that `features` takes; null is missing."""
    return {entry["name"]: parse_column(given[entry["name"]], entry["kind"]) for entry in inputs}


def parse_column(values: Sequence[Any], kind: str) -> np.ndarray:
    """JSON values of one kind (number, integer, boolean, category, time) as an array."""
    if kind == "category":
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    if kind == "time":
        return np.array(["NaT" if value is None else value for value in values], dtype="datetime64[us]")
    return np.array([np.nan if value is None else value for value in values], dtype="float64")


def onnx_model(graph: bytes) -> Model:
    """An ONNX graph (input `X` float64 [n, d], output `scores` [n, k]) as a function. On one thread: with
    more, onnxruntime sums the trees in another order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    run = session._sess.run  # what `session.run` checks before in Python takes a lone row a twentieth of its time
    return lambda matrix: np.asarray(run(["scores"], {"X": matrix}, None)[0])


def _sklearn_model(data: bytes) -> Model:
    # Only here, so that a service whose bundles run on ONNX needs no scikit-learn.
    from pipeline.archive import from_skops, sklearn_scores

    pipeline = from_skops(data)
    return lambda matrix: sklearn_scores(pipeline, matrix)


@dataclass(frozen=True)
class Scorer:
    """A loaded bundle."""

    contract: Mapping[str, Any]
    features: Features
    spec: tuple[Feature, ...]
    model: Model

    @classmethod
    def load(cls, bundle: Path, features: Features) -> "Scorer":
        """Load the bundle in a directory; `features` is the function that it was trained with."""
        contract = json.loads((bundle / "contract.json").read_text())
        onnx = contract["runtime"] == "onnx"
        make, name = (onnx_model, "model.onnx") if onnx else (_sklearn_model, "pipeline.skops")
        spec = tuple(Feature.of(each["name"], each["categories"]) for each in contract["features"])
        return cls(contract, features, spec, make((bundle / name).read_bytes()))

    def score(self, columns: Columns, tell: Callable[[], object] = lambda: None) -> np.ndarray:
        """Scores, float64 [n, k]: the probability of the positive class (k = 1), of each class, or the prediction.
        `tell` is called just before the model, which may work without Python's lock."""
        matrix = encode(self.features(columns), self.spec)
        tell()
        return self.model(matrix)

    def golden_gap(self, golden: Mapping[str, Any]) -> float:
        """The largest difference between the scores of `golden.json` and those that its rows get here; of a prediction
        relative to max(1, its size). Beyond `TOLERANCE`, no service may use the bundle."""
        expected = np.array(golden["scores"], dtype="float64")
        made = self.score(parse_columns(golden["rows"], self.contract["inputs"]))
        scale = np.maximum(1, np.abs(expected)) if self.contract["task"] == "regression" else 1.0
        return float(np.max(np.abs(made - expected) / scale))
