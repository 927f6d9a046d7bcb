"""The ways to ask for scores, and to be answered. Change here to speak another.

`/predict` is this service's own, `/invocations` what `mlflow models serve` takes; `serving.v2` has the third.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from pipeline.scoring import Columns
from serving.problems import Answer, Problem
from serving.release import Release
from serving.rows import RowError, check_count, parse_json, shown

INFER, INFER_VERSION = "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"
Source = Literal["model", "challenger", "baseline"]
JSON = b"application/json"
BINARY = b"application/octet-stream"
_JSON_TYPES = {"`str`": "`string`", "`int`": "`integer`", "`float`": "`number`", "`bool`": "`boolean`"}
_PYTHON = re.compile("|".join(_JSON_TYPES))


class Call(Struct):
    """A request, as far as an answer depends on it; `holder` is whose key it came with, `model` what scored it; `alone`
    where no other was under way when it came; `asked` so that 1,000 rows are freed once they are answered, not before.
    """

    id: str
    headers: dict[bytes, bytes]
    body: bytes = b""
    holder: str = ""
    model: str = ""
    alone: bool = False
    asked: "Asked | None" = None


class Asked(Struct):
    """The rows of a request, as they came: one by one, or column by column, where the prediction log has of a column
    what `logged` says: the client's own text, or what the array cannot say. And what else the request wishes."""

    size: int
    rows: Sequence[Any] = ()
    columns: Columns | None = None
    logged: Mapping[str, Any] = {}
    wishes: Any = None

    def entry(self) -> Any:
        """The rows or columns as the prediction log has them."""
        if self.columns is None:
            return self.rows
        return {name: self.logged.get(name) or column.tolist() for name, column in self.columns.items()}


class Scored(Struct):
    """What became of them: scores float64 [n, k] (`values` as JSON has them), the decision per row, which categories
    training never saw, and what scored them."""

    scores: np.ndarray
    values: list[Any]
    labels: list[Any] | None
    unseen: list[tuple[int, str]]
    source: Source


class Form(Protocol):
    """One way to ask, and to be answered."""

    media_types: tuple[bytes, ...]

    def read(self, call: Call) -> Asked: ...

    def write(self, call: Call, asked: Asked, scored: Scored) -> Answer: ...


class ModelName(Struct):
    """Which model answered."""

    name: str
    version: str
    hash: Annotated[str, Meta(description="SHA-256 of the bundle")]


class Unseen(Struct):
    """A category that training never saw: the score knows nothing of it."""

    row: int
    column: str


class Prediction(Struct, omit_defaults=True):
    """What `/predict` answers."""

    model: ModelName
    request_id: str
    scores: Annotated[
        list[float | list[float]],
        Meta(description="A number per row: the probability, or the prediction; of several classes a list"),
    ]
    unseen: list[Unseen]
    source: Annotated[Source, Meta(description="What gave the scores; the baseline does where the model may not")]
    labels: Annotated[list[bool | str] | UnsetType, Meta(description="The decision per row")] = UNSET
    classes: Annotated[list[str] | UnsetType, Meta(description="The class of each score in a row's list")] = UNSET


class Predict:
    """`{"rows": [{...}]}` in, scores and labels out."""

    media_types: tuple[bytes, ...] = (JSON,)

    def __init__(self, release: Release, most: int) -> None:
        self._inputs = release.inputs
        self._most = most
        self._model = ModelName(release.name, release.version, release.hash)
        several = release.contract["task"] == "multiclass"
        self._classes = release.contract["classes"] if several else UNSET

    def read(self, call: Call) -> Asked:
        rows = self._inputs.decode(call.body, self._most)
        return Asked(len(rows), rows)

    def write(self, call: Call, asked: Asked, scored: Scored) -> Answer:  # noqa: ARG002 - a Form takes them
        prediction = Prediction(
            model=self._model,
            request_id=call.id,
            scores=scored.values,
            unseen=[Unseen(row, column) for row, column in scored.unseen],
            source=scored.source,
            labels=UNSET if scored.labels is None else scored.labels,
            classes=self._classes,
        )
        return Answer(200, msgspec.json.encode(prediction))


class Invocations:
    """MLflow's four forms in, `{"predictions": scores}` out, as this project's MLflow model answers."""

    media_types: tuple[bytes, ...] = (JSON,)
    forms = ("dataframe_split", "dataframe_records", "instances", "inputs")

    def __init__(self, release: Release, most: int) -> None:
        self._inputs = release.inputs
        self._most = most

    def read(self, call: Call) -> Asked:
        given = parse_json(call.body)
        named = [name for name in given if name != "params"] if isinstance(given, dict) else []
        if len(named) != 1 or named[0] not in self.forms or given.get("params"):
            raise RowError(f"expected an object with one of {', '.join(self.forms)}, and no params")
        rows = self._inputs.convert(self._records(named[0], given[named[0]]), self._most)
        return Asked(len(rows), rows)

    def _records(self, form: str, given: Any) -> Any:
        if form == "dataframe_split":
            split = converted(given, Split, form)
            check_count(len(split.data), self._most)
            width = len(split.columns)
            ragged = next((row for row, values in enumerate(split.data) if len(values) != width), None)
            if ragged is not None:
                raise RowError(f"dataframe_split: expected {width} values in row {ragged} of data")
            if len(set(split.columns)) != len(split.columns):
                raise RowError("dataframe_split: expected each column once")
            return [dict(zip(split.columns, row, strict=True)) for row in split.data]
        if form == "inputs":
            columns = converted(given, dict[str, list[Any]], form)
            lengths = {name: len(values) for name, values in columns.items()}
            check_count(max(lengths.values(), default=0), self._most)
            if len(set(lengths.values())) > 1:
                raise RowError(f"inputs: expected columns of one length, got {shown(lengths)}")
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return given

    def write(self, call: Call, asked: Asked, scored: Scored) -> Answer:  # noqa: ARG002 - a Form takes them
        return Answer(200, msgspec.json.encode({"predictions": scored.scores.tolist()}))


class Split(Struct):
    """A table as pandas writes it with `orient="split"`."""

    columns: list[str]
    data: list[list[Any]]


def labels(scores: np.ndarray, contract: Mapping[str, Any], threshold: float | None) -> list[Any] | None:
    """The decision per row: true or false at the threshold, the likeliest class, or None for a regression."""
    if contract["task"] == "binary":
        return [score >= threshold for score in scores[:, 0].tolist()]
    if contract["task"] == "multiclass":
        return [contract["classes"][best] for best in scores.argmax(axis=1).tolist()]
    return None


def converted(given: Any, kind: Any, name: str) -> Any:
    """JSON, read or still text, as a type; RowError says where it is of another."""
    try:
        return parse_json(given, kind) if isinstance(given, bytes) else msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise RowError(f"{name}: {_PYTHON.sub(lambda found: _JSON_TYPES[found[0]], str(error))}") from None


def check_media_type(form: Form, headers: Mapping[bytes, bytes]) -> None:
    """Problem where the body is in no form that can be read."""
    came = headers.get(b"content-type", form.media_types[0])
    if came not in form.media_types and came.partition(b";")[0].strip().lower() not in form.media_types:
        expected = b" or ".join(form.media_types).decode()
        raise Problem(415, f"expected the content type {expected}, got {came[:100].decode('latin-1')}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Problem(415, "expected a body without content encoding; send it uncompressed")


def example(release: Release) -> bytes:
    """A body for `/predict`."""
    return msgspec.json.encode({"rows": [release.example]})
