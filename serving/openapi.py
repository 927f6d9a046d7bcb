"""What the OpenAPI page says of the routes that score, made from the contract. Change here to describe them better."""

import re
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.problems import ProblemDocument
from serving.protocols import Invocations, Prediction
from serving.release import Release

_REF = "#/components/schemas/"


def predict(release: Release) -> dict[str, Any]:
    """The operation of `/predict`."""
    body = _content(
        {"$ref": _REF + "Rows"}, {"golden row": {"summary": "A golden row", "value": {"rows": [release.example]}}}
    )
    answer = {"description": "Scores", "content": _content({"$ref": _REF + "Prediction"})}
    return _operation("Rows in, scores and labels out", body, answer)


def infer(tensors: dict[str, Any], release: Release) -> dict[str, Any]:
    """The operation of V2's `infer`, for a model with these tensors."""
    inputs = [{**t, "shape": [1], "data": [release.example[t["name"]]]} for t in tensors["inputs"]]
    example = {"golden row": {"summary": "A golden row", "value": {"inputs": inputs}}}
    body = _content({"type": "object"}, example) | {"application/octet-stream": {"schema": {"type": "string"}}}
    answer = {"description": "The tensors " + " and ".join(t["name"] for t in tensors["outputs"])}
    return _operation("Open Inference Protocol, with binary tensors", body, answer)


def invocations(release: Release) -> dict[str, Any]:
    """The operation of `/invocations`."""
    row = release.example
    columns = {name: [value] for name, value in row.items()}
    forms = ({"columns": [*row], "data": [[*row.values()]]}, [row], [row], columns)
    given = {f: {"summary": f, "value": {f: v}} for f, v in zip(Invocations.forms, forms, strict=True)}
    body = _content({"type": "object", "minProperties": 1}, given)
    answer = {"description": '`{"predictions": [[score, ...], ...]}`'}
    return _operation("What `mlflow models serve` takes", body, answer)


def describe(app: FastAPI, release: Release) -> dict[str, Any]:
    """The whole page."""
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    types = [release.inputs.request, Prediction, ProblemDocument]
    _, made = msgspec.json.schema_components(types, ref_template=_REF + "{name}")
    page.setdefault("components", {}).setdefault("schemas", {}).update(_with_integers(made))
    for path, operations in page["paths"].items():
        if named := re.findall(r"{(\w+)}", path):
            operations["parameters"] = [_path_parameter(name, getattr(release, name)) for name in named]
    return page


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    asked = {"required": True, "content": body}
    return {"summary": summary, "requestBody": asked, "responses": {"200": answer, **_problems()}}


def _path_parameter(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}}


def _content(schema: dict[str, Any], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({"examples": examples} if examples else {})}


def _problems() -> dict[str, Any]:
    said = {
        "408": "The body was not there in time",
        "413": "The body or its rows are too many",
        "415": "The body is in a form that is not read",
        "422": "A value is not what the contract allows; `errors` names each",
        "500": "The service failed",
    }
    content = {"application/problem+json": {"schema": {"$ref": _REF + "ProblemDocument"}}}
    return {status: {"description": description, "content": content} for status, description in said.items()}


def _with_integers(schema: Any) -> Any:
    """Multiples of one under the name that JSON Schema has for them."""
    if isinstance(schema, list):
        return [_with_integers(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("multipleOf") == 1:
        schema = {name: value for name, value in schema.items() if name != "multipleOf"} | {"type": "integer"}
    return {name: _with_integers(value) for name, value in schema.items()}
