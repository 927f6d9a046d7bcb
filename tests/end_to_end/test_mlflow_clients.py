"""Whatever calls `mlflow models serve` only changes its address: the same requests to MLflow's server and to ours."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.clones import ROOT, Clone, make_clone

SERVING = str(ROOT / "serving/.venv/bin/python")
SAVE = """
import json, sys
from pathlib import Path
import flows
import mlflow.pyfunc
from flows.tracking import _signature
bundle = Path("bundle")
contract, golden = (json.loads((bundle / f"{name}.json").read_text()) for name in ("contract", "golden"))
signature = _signature(contract["inputs"], len(golden["scores"][0]))
mlflow.pyfunc.save_model(
    sys.argv[1], loader_module="flows.model", data_path=str(bundle),
    code_paths=["flows", "src/pipeline", "src/problem"], signature=signature, pip_requirements=[],
)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = make_clone(tmp_path_factory.mktemp("served") / "clone")
    made.dvc("pull", "--quiet", "bundle")
    return made


@contextmanager
def answering(command: list[str], clone: Clone, port: int, **env: str) -> Iterator[httpx.Client]:
    """A server in a process of its own, from when it says that it is well."""
    process = subprocess.Popen(command, cwd=clone.path, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(600):
            try:
                if client.get("/ping").is_success:
                    break
            except httpx.TransportError:
                assert process.poll() is None, f"{command} ended with {process.poll()}"
                time.sleep(0.1)
        yield client
    process.terminate()
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def mlflows(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """`mlflow models serve`."""
    saved, port = tmp_path_factory.mktemp("model") / "model", free_port()
    clone.run(sys.executable, "-c", SAVE, str(saved), PYTHONPATH=".:src")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    with answering([*command, "--model-uri", str(saved)], clone, port) as client:
        yield client


@pytest.fixture(scope="module")
def ours(clone: Clone) -> Iterator[httpx.Client]:
    """This project's service, in its own environment."""
    port = free_port()
    told = {"SERVING_PORT": str(port), "SERVING_INSPECTED": "0", "SERVING_OPEN": "1"}
    with answering([SERVING, "-m", "serving"], clone, port, **told) as client:
        yield client


def bodies(bundle: Path) -> dict[str, Any]:
    """The same rows in each form that MLflow takes."""
    golden = json.loads((bundle / "golden.json").read_text())["rows"]
    columns = {name: values[:50] for name, values in golden.items()}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    split = {"columns": list(columns), "data": rows}
    return {"dataframe_split": split, "dataframe_records": records, "instances": records, "inputs": columns}


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "instances", "inputs"])
def test_the_same_request_gets_the_same_answer(
    form: str, mlflows: httpx.Client, ours: httpx.Client, clone: Clone
) -> None:
    body = {form: bodies(clone.path / "bundle")[form]}
    theirs, own = mlflows.post("/invocations", json=body), ours.post("/invocations", json=body)
    assert (theirs.status_code, own.status_code) == (200, 200), (theirs.text[:500], own.text[:500])
    assert list(own.json()) == list(theirs.json()) == ["predictions"]
    np.testing.assert_allclose(own.json()["predictions"], theirs.json()["predictions"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_the_same_addresses_say_that_it_is_well(path: str, mlflows: httpx.Client, ours: httpx.Client) -> None:
    assert mlflows.get(path).status_code == ours.get(path).status_code == 200
