"""The service and its rivals: how each is started, what it is asked, where its scores are. Change here to add a rival,
and its packages in a file beside this one: `uv pip compile --universal --no-emit-index-url --no-header --no-annotate`
with the versions of numpy, pandas, scipy and scikit-learn that requirements.lock has."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.clones import ROOT

Rows = list[dict[str, Any]]
TENSORS = {"category": "BYTES", "time": "BYTES", "integer": "INT64", "boolean": "BOOL", "number": "FP64"}


class Server(NamedTuple):
    """A server with one worker. `home` is the folder of its environment, or the name of the file of its packages; in
    `command` and `environment`, {port} and the like are filled in when it starts."""

    home: str
    command: str
    path: str
    body: Callable[[Rows], Any] | None = None
    scores: Callable[[Any], list[float]] = lambda answer: answer["scores"]
    environment: dict[str, str] = {}  # noqa: RUF012 - nobody writes to it
    headers: dict[str, str] = {}  # noqa: RUF012


def servers(folder: Path, inputs: Rows) -> dict[str, Server]:
    """Every server by name, in the form that serves it best; `folder` holds the saved model."""
    make_key = [str(ROOT / "serving/.venv/bin/python"), "-m", "serving.access", "bench", "predict"]
    made = subprocess.run(make_key, cwd=ROOT, check=True, capture_output=True, text=True)
    key = re.findall(r"^key_\S+$", made.stderr, re.MULTILINE)[0]
    (folder / "keys.toml").write_text(made.stdout)
    name = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    # What production has, the rest of which is on by default.
    production = {"SERVING_KEYS_FILE": f"{folder}/keys.toml", "SERVING_DATA_DIR": "{data}"}
    ours = {"SERVING_PORT": "{port}", "SERVING_INSPECTED": "0", **production}
    pipeline = {"PIPELINE": f"{folder}/pipeline.joblib"}
    uvicorn = "{bin}/uvicorn --no-access-log --log-level warning --loop uvloop --http httptools --port {port}"
    bentoml = "{bin}/bentoml serve tests.rivals.bento:Served --host 127.0.0.1 --port {port}"
    mlflow = f"{{bin}}/mlflow models serve --env-manager local --workers 1 --model-uri {folder}/mlflow --port {{port}}"
    ports = {"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "{grpc}", "MLSERVER_METRICS_PORT": "{metrics}"}
    # By default the model has a process besides that of the server: it answers fewer requests, in more memory.
    settings = {"MLSERVER_PARALLEL_WORKERS": "0", "MLSERVER_HOST": "127.0.0.1", **ports}

    def mlserver(models: str) -> Server:
        return Server(
            "mlserver",
            f"{{bin}}/mlserver start {folder}/{models}",
            "/v2/models/model/infer",
            lambda rows: as_mlserver(in_tensors(rows, inputs)),
            lambda answer: answer["outputs"][0]["data"][1::2],
            settings,
        )

    return {
        "service": Server(
            "serving/.venv",
            "{bin}/python -m serving",
            "/predict",
            in_rows,
            environment=ours,
            headers={"Authorization": f"Bearer {key}"},
        ),
        "service-tensors": Server(
            "serving/.venv",
            "{bin}/python -m serving",
            f"/v2/models/{name}/infer",
            lambda rows: in_tensors(rows, inputs),
            lambda answer: answer["outputs"][0]["data"],
            ours,
            {"Authorization": f"Bearer {key}"},
        ),
        "service-sklearn": Server(
            "serving/.venv-sklearn",
            "{bin}/python -m serving",
            "/predict",
            in_rows,
            environment={**ours, "SERVING_MODEL_DIR": f"{folder}/bundle"},
            headers={"Authorization": f"Bearer {key}"},
        ),
        "hello": Server("serving/.venv", f"{uvicorn} tests.rivals.hello:app", "/"),
        "tutorial": Server(
            "tutorial", f"{uvicorn} tests.rivals.tutorial:app", "/predict", in_rows, environment=pipeline
        ),
        "mlflow": Server(
            "mlflow", mlflow, "/invocations", in_table, lambda answer: [row[1] for row in answer["predictions"]]
        ),
        "mlserver": mlserver("mlserver"),
        "mlserver-batching": mlserver("mlserver-batching"),
        "bentoml": Server("bentoml", bentoml, "/predict", in_rows, list, pipeline),
        "bentoml-batching": Server("bentoml", bentoml, "/batched", in_rows, list, pipeline),
    }


def in_rows(rows: Rows) -> Any:
    """As rows."""
    return {"rows": rows}


def in_table(rows: Rows) -> Any:
    """As MLflow takes them fastest."""
    return {"dataframe_split": {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}}


def in_tensors(rows: Rows, inputs: Rows) -> Any:
    """As the Open Inference Protocol takes a table: a tensor a column."""
    columns = [
        {
            "name": column["name"],
            "datatype": TENSORS[column["kind"]],
            "shape": [len(rows), 1],
            "data": [row[column["name"]] for row in rows],
        }
        for column in inputs
    ]
    return {"inputs": columns}


def as_mlserver(request: Any) -> Any:
    """The same with what MLServer needs to know besides, so that it makes a DataFrame of it."""
    types = ({"content_type": "str" if tensor["datatype"] == "BYTES" else "np"} for tensor in request["inputs"])
    columns = [{**tensor, "parameters": given} for tensor, given in zip(request["inputs"], types, strict=True)]
    return {"parameters": {"content_type": "pd"}, "inputs": columns, "outputs": [{"name": "predict_proba"}]}
