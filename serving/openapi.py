"""What the OpenAPI page says of the routes that score, made from the contract. Change here to describe them better."""

import re
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.problems import ProblemDocument
from serving.protocols import INFER, INFER_VERSION, Invocations, Prediction
from serving.service import Because, Service

_REF = "#/components/schemas/"
_PROBLEM = {"application/problem+json": {"schema": {"$ref": _REF + "ProblemDocument"}}}


def describe(app: FastAPI, service: Service) -> dict[str, Any]:
    """The whole page, as the release that is served now has it."""
    release = service.live.release
    said = f"Scores of the model `{release.name}`, version {release.version}, bundle `{release.hash}`."
    page = get_openapi(title=app.title, version=app.version, description=said, routes=app.routes)
    feedback = service.feedback_form.request
    types = [release.inputs.request, Prediction, ProblemDocument, feedback, Because]
    _, made = msgspec.json.schema_components(types, ref_template=_REF + "{name}")
    page.setdefault("components", {}).setdefault("schemas", {}).update(_with_integers(made))
    for path, described in _operations(service, feedback.__name__).items():
        page["paths"][path]["post"].update(described)
    for path, operations in page["paths"].items():
        for operation in operations.values():
            operation["responses"].setdefault("default", {"description": "What went wrong", "content": _PROBLEM})
        if named := re.findall(r"{(\w+)}", path):
            operations["parameters"] = [_path_parameter(name, getattr(release, name)) for name in named]
    if service.settings.keys_file:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        page["security"] = [{"key": []}]
    return page


def _operations(service: Service, feedback: str) -> dict[str, dict[str, Any]]:
    """What FastAPI cannot know of the routes that take a body."""
    release = service.live.release
    row = release.example
    rows = _content(_ref("Rows"), {"golden row": {"summary": "A golden row", "value": {"rows": [row]}}})
    scores = {"description": "Scores", "content": _content(_ref("Prediction"))}
    columns = {name: [value] for name, value in row.items()}
    forms = ({"columns": [*row], "data": [[*row.values()]]}, [row], [row], columns)
    given = {f: {"summary": f, "value": {f: v}} for f, v in zip(Invocations.forms, forms, strict=True)}
    invoked = {"description": '`{"predictions": [[score, ...], ...]}`'}
    tensors = service.live.tensors
    inputs = [{**t, "shape": [1], "data": [row[t["name"]]]} for t in tensors["inputs"]]
    binary = {"application/octet-stream": {"schema": {"type": "string"}}}
    asked = _content({"type": "object"}, {"golden row": {"summary": "A golden row", "value": {"inputs": inputs}}})
    told = {"description": "The tensors " + " and ".join(t["name"] for t in tensors["outputs"])}
    infer = _operation("Open Inference Protocol, with binary tensors", asked | binary, told)
    kept = {"description": "They are kept"}
    html = {"text/html": {"schema": {"type": "string"}}}
    shown = {"200": {"description": "The page, with the score", "content": html}}
    shown["default"] = {
        "description": "What went wrong; of what was filled in, on the page",
        "content": html | _PROBLEM,
    }
    filled = {"content": {"application/x-www-form-urlencoded": {"schema": {"type": "object"}}}}
    return {
        "/predict": _operation("Rows in, scores and labels out", rows, scores),
        "/invocations": _operation(
            "What `mlflow models serve` takes", _content({"type": "object", "minProperties": 1}, given), invoked
        ),
        **dict.fromkeys((INFER, INFER_VERSION), infer),
        "/": {"summary": "The page's form, filled in", "requestBody": filled, "responses": shown},
        "/feedback": _operation("True outcomes of earlier predictions", _content(_ref(feedback)), kept),
        "/admin/kill": _operation("Let the baseline answer", _content(_ref("Because")), {"description": "It does"}),
    }


def _operation(summary: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    asked = {"required": True, "content": body}
    return {"summary": summary, "requestBody": asked, "responses": {"200": answer, **_problems()}}


def _path_parameter(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": [value]}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}


def _content(schema: dict[str, Any], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"application/json": {"schema": schema} | ({"examples": examples} if examples else {})}


def _problems() -> dict[str, Any]:
    said = {
        "401": "No key came, or a wrong one",
        "403": "The key may not do this",
        "408": "The body was not there in time",
        "413": "The body or its rows are too many",
        "415": "The body is in a form that is not read",
        "422": "A value is not what the contract allows; `errors` names each",
        "500": "The service failed",
        "503": "More requests are under way than the service takes; ask again",
    }
    return {status: {"description": description, "content": _PROBLEM} for status, description in said.items()}


def _with_integers(schema: Any) -> Any:
    """Multiples of one under the name that JSON Schema has for them."""
    if isinstance(schema, list):
        return [_with_integers(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("multipleOf") == 1:
        schema = {name: value for name, value in schema.items() if name != "multipleOf"} | {"type": "integer"}
    return {name: _with_integers(value) for name, value in schema.items()}
