from collections.abc import Callable
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.serving.made import TASKS, Bundle, Service


@pytest.fixture(scope="session")
def page(service: Service) -> Any:
    return service.get("/openapi.json").json()


@pytest.mark.parametrize("task", TASKS)
def test_the_page_is_valid(made: Callable[[str], Bundle], task: str) -> None:
    validate(Service(made(f"{task}-onnx")).get("/openapi.json").json())


def test_the_request_is_described_by_the_contract(page: Any) -> None:
    row = page["components"]["schemas"]["Row"]
    columns = row["properties"]
    assert row["required"] == ["read_at", "site", "cycles", "guarded"]
    assert row["additionalProperties"] is False
    assert columns["cycles"]["type"] == "integer"
    assert (columns["cycles"]["minimum"], columns["cycles"]["maximum"]) == (0, 1000)
    assert columns["site"]["enum"] == ["north", "south"]
    assert columns["maker"]["examples"] == ["acme", "bolt", "core"]
    assert columns["temperature"]["description"] == "Its temperature, C"
    assert {"type": "number", "minimum": -50, "maximum": 150} in columns["temperature"]["anyOf"]
    assert {"type": "null"} in columns["temperature"]["anyOf"]
    assert columns["read_at"]["format"] == "date-time"


def test_every_example_is_answered(service: Service, page: Any) -> None:
    examples = 0
    for path, operations in page["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            examples += 1
            where = path.format(name=service.release.name, version=service.release.version)
            assert service.post(where, json=example["value"]).status_code == 200
    assert examples == 7


def test_errors_are_described_as_problem_documents(page: Any) -> None:
    for path in ("/predict", "/invocations", "/v2/models/{name}/infer"):
        content = page["paths"][path]["post"]["responses"]["422"]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}


def test_the_page_of_documentation_asks_for_nothing_outside(service: Service) -> None:
    text = service.get("/docs").text
    assert "https://" not in text
    scripts = [part.split('"')[0] for part in text.split('src="')[1:] + text.split('href="')[1:]]
    assert scripts
    for script in scripts:
        assert service.get(script).status_code == 200
