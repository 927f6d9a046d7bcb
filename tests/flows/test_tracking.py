import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import tracking
from flows.repository import Repository, dvc_hash
from pipeline.errors import InputError

pytestmark = [
    # MLflow warns of the type hints of its own modules when it is imported,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # and compares a table's columns to a range when it saves an input example.
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
STAGES = ["preprocess", "tune", "train", "evaluate"]
WRITES = [
    *("create_run", "log_batch", "log_inputs", "log_outputs", "log_artifact", "log_artifacts", "set_terminated"),
    *("create_experiment", "create_logged_model", "log_model_artifacts", "finalize_logged_model"),
]
DVC_YAML = """
stages:
  preprocess:
    cmd: python -m flows.preprocess
    params: [preprocess]
    deps: [data, src/problem]
    outs:
      - prepared/train.parquet: {push: false}
      - prepared/quality.json
  tune:
    cmd: python -m flows.tune
    params: [tune]
    deps: [prepared/train.parquet]
    outs: [tuning]
  train:
    cmd: python -m flows.train
    params: [train]
    deps: [prepared/train.parquet, tuning/best.json]
    outs: [bundle]
  evaluate:
    cmd: python -m flows.evaluate
    params: [evaluate.resamples]
    deps: [bundle]
    outs: [reports]
"""
PARAMS_YAML = """
preprocess: {share: 0.00001}
tune: {trials: 3}
train: {costs: {missed: 3, false_alarm: 1.5}}
evaluate: {resamples: 5, unread: 1}
"""
SCORING = """
import json
import numpy as np

def parse_column(values, kind): ...

class Scorer:
    @classmethod
    def load(cls, bundle, features):
        scorer = cls()
        scorer.features, scorer.weight = features, json.loads((bundle / "model.json").read_text())
        return scorer

    def score(self, columns):
        return self.features(columns, self.weight)[:, None]
"""
FEATURES = """
import numpy as np

def features(columns, weight):
    hour = (columns["at"] - columns["at"].astype("datetime64[D]")) / np.timedelta64(1, "h")
    known = np.array([value is not None for value in columns["carrier"]], dtype=float)
    return weight * np.nan_to_num(columns["x"]) + columns["n"] + np.nan_to_num(columns["seats"]) + hour + known
"""
INPUTS = [
    {"name": "x", "kind": "number", "nullable": True},
    {"name": "n", "kind": "integer", "nullable": False},
    {"name": "seats", "kind": "integer", "nullable": True},
    {"name": "wet", "kind": "boolean", "nullable": False},
    {"name": "known", "kind": "boolean", "nullable": True},
    {"name": "carrier", "kind": "category", "nullable": True},
    {"name": "at", "kind": "time", "nullable": False},
]
GOLDEN = {
    "rows": {
        "x": [1.5, None],
        "n": [1, 20],
        "seats": [None, 300],
        "wet": [True, False],
        "known": [None, True],
        "carrier": ["UA", None],
        "at": ["2013-01-01T06:00:00", "2013-01-02T18:30:00"],
    },
    "scores": [[3.0 + 1 + 0 + 6 + 1], [0.0 + 20 + 300 + 18.5 + 0]],
}
METRICS = {
    "model": {"roc_auc": {"value": 0.7, "low": 0.6, "high": 0.8}, "carrier=UA": {"value": 0.5}},
    "no_model": {"roc_auc": {"value": None}},
}
TRIALS = """number,candidate,score,fold_1,params
0,linear,0.5,0.5,"{""c"": 1}"
1,tree,,,{}
"""
FILES = {
    "pyproject.toml": '[project]\nname = "toy"\n',
    "requirements.lock": "numpy==2\n",
    "dvc.yaml": DVC_YAML,
    "params.yaml": PARAMS_YAML,
    "data/2013-01.parquet": "raw",
    "src/problem/__init__.py": "",
    "src/problem/features.py": FEATURES,
    "src/pipeline/__init__.py": "",
    "src/pipeline/scoring.py": SCORING,
    "flows/__init__.py": "",
    "flows/model.py": (ROOT / "flows/model.py").read_text(),
    "prepared/train.parquet": "rows",
    "prepared/quality.json": "{}",
    "tuning/best.json": json.dumps({"candidate": "linear", "params": {"c": 2}, "score": 0.4, "metric": "log_loss"}),
    "tuning/trials.csv": TRIALS,
    "tuning/trials.svg": "<svg/>",
    "bundle/contract.json": json.dumps({"runtime": "onnx", "inputs": INPUTS}),
    "bundle/golden.json": json.dumps(GOLDEN),
    "bundle/model.json": "2.0",
    "reports/metrics.json": json.dumps(METRICS),
    "reports/curves/roc.csv": "x,y\n",
}


@pytest.fixture(autouse=True, scope="module")
def hasty_sqlite() -> Iterator[None]:
    """SQLite that does not wait for the disk: most of what logging costs here."""
    from sqlalchemy import Engine, event

    def hasten(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hasten)
    yield
    event.remove(Engine, "connect", hasten)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which DVC has recorded every stage, with an empty MLflow database."""
    root = tmp_path_factory.mktemp("original")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    commands = ["init -q --no-scm", "config core.analytics false", "add -q data", "commit -q -f"]
    code = f"from dvc.cli import main; assert not any(main(command.split()) for command in {commands})"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        tracking._database()
    shutil.rmtree(root / "mlartifacts")
    return root


@pytest.fixture
def repository(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "a clone"
    shutil.copytree(original, root, ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    return root


def client(uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri or f"sqlite:///{Path.cwd()}/mlflow.db")


def runs(uri: str | None = None) -> list[Any]:
    found = client(uri)
    experiment = found.get_experiment_by_name("toy")
    return [] if experiment is None else list(found.search_runs([experiment.experiment_id]))


def parents() -> list[Any]:
    return [run for run in runs() if "mlflow.parentRunId" not in run.data.tags]


def named(name: str) -> Any:
    (run,) = [run for run in runs() if run.info.run_name == name]
    return run


def snapshot(uri: str | None = None) -> list[str]:
    """All that is in MLflow, as text, without the ids of this time."""
    found, names = client(uri), {run.info.run_id: run.info.run_name for run in runs(uri)}
    described = [
        {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "metrics": {key: [m.value for m in found.get_metric_history(run.info.run_id, key)] for key in values},
            "tags": {key: names.get(value, value) for key, value in run.data.tags.items() if key != "model"},
            "data": [entry.dataset.digest for entry in run.inputs.dataset_inputs],
            "models": [str(found.get_logged_model(m.model_id).status) for m in run.outputs.model_outputs],
            "all_models": len(found.search_logged_models([run.info.experiment_id])),
            "files": files(found, run.info.run_id),
        }
        for run in runs(uri)
        for values in [run.data.metrics]
    ]
    return sorted(json.dumps(entry, sort_keys=True) for entry in described)


def files(found: Any, run_id: str, folder: str | None = None) -> list[str]:
    listed = found.list_artifacts(run_id, folder)
    return sorted(path for f in listed for path in (files(found, run_id, f.path) if f.is_dir else [f.path]))


def log_all() -> None:
    for stage in STAGES:
        tracking.log_stage(stage, 1.5)


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


@pytest.mark.usefixtures("repository")
def test_a_pipeline_is_one_run_with_its_stages_and_trials_inside() -> None:
    before = set(Path().iterdir())
    log_all()
    (pipeline,) = parents()
    assert pipeline.info.status == "FINISHED"
    assert pipeline.data.params["train.costs.missed"] == "3"
    assert pipeline.data.metrics["model.roc_auc"] == 0.7
    assert pipeline.data.metrics["tune.log_loss"] == 0.4
    assert pipeline.data.metrics["seconds.train"] == 1.5
    assert [entry.dataset.digest for entry in pipeline.inputs.dataset_inputs] == [dvc_hash(Path("data"))]
    assert pipeline.data.tags["requirements.lock"]
    for stage in STAGES:
        run = named(stage)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == pipeline.info.run_id
        assert pipeline.data.tags[f"stage.{stage}"] == run.info.run_id
    assert named("evaluate").data.params == {"evaluate.resamples": "5"}
    assert named("evaluate").data.metrics == {
        **{"model.roc_auc": 0.7, "model.roc_auc.low": 0.6, "model.roc_auc.high": 0.8},
        **{"model.carrier_UA": 0.5, "seconds": 1.5},
    }
    assert files(client(), named("evaluate").info.run_id) == ["reports/curves/roc.csv", "reports/metrics.json"]
    assert files(client(), named("preprocess").info.run_id) == ["prepared/quality.json"]
    assert "tuning/trials.svg" in files(client(), named("tune").info.run_id)
    trials = [named(f"trial {number}") for number in range(2)]
    assert {trial.data.tags["mlflow.parentRunId"] for trial in trials} == {named("tune").info.run_id}
    assert [trial.data.metrics.get("score") for trial in trials] == [0.5, None]
    assert [trial.data.params for trial in trials] == [{"candidate": "linear", "c": "1"}, {"candidate": "tree"}]
    assert [trial.info.status for trial in trials] == ["FINISHED", "FAILED"]
    assert set(Path().iterdir()) - before <= {Path("mlflow.db"), Path("mlartifacts")}


@pytest.mark.usefixtures("repository")
def test_logging_twice_changes_nothing() -> None:
    log_all()
    assert tracking.complete() == []
    once = snapshot()
    log_all()
    assert tracking.complete() == []
    assert snapshot() == once
    assert parents()[0].data.tags["dvc.lock"]


@pytest.mark.usefixtures("repository")
def test_complete_logs_everything_from_files_where_nothing_was_logged() -> None:
    shutil.rmtree("data")  # not pulled
    Path("prepared/train.parquet").unlink()
    assert tracking.complete() == []
    assert {run.info.run_name for run in runs()} >= set(STAGES)
    (pipeline,) = parents()
    assert pipeline.info.status == "FINISHED"
    assert not [key for key in pipeline.data.metrics if key.startswith("seconds")]


@pytest.mark.usefixtures("repository")
def test_complete_leaves_out_stages_whose_files_are_not_those_of_dvc_lock() -> None:
    Path("bundle/model.json").write_text("3.0")
    shutil.rmtree("tuning")
    assert tracking.complete() == ["tune", "train", "evaluate"]
    (pipeline,) = parents()
    assert pipeline.info.status == "RUNNING"
    assert [key for key in pipeline.data.tags if key.startswith("stage.")] == ["stage.preprocess"]


@pytest.mark.usefixtures("repository")
def test_completion_as_a_command_says_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking._main()
    assert named("evaluate").info.status == "FINISHED"
    assert capsys.readouterr().out == "MLflow has every stage that dvc.lock records\n"
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("resamples: 5", "resamples: 6"))
    with pytest.raises(SystemExit, match=r"tracking: expected .* those of evaluate are absent or others.*; run `dvc"):
        tracking._main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(SystemExit, match="tracking: expected an MLflow server"):
        tracking._main()


@pytest.mark.usefixtures("repository")
def test_cached_stages_are_linked_and_not_logged_again() -> None:
    log_all()
    first = parents()[0]
    edit("params.yaml", "resamples: 5", "resamples: 6")
    tracking.log_stage("evaluate", 2.5)
    second = next(run for run in parents() if run.info.run_id != first.info.run_id)
    assert second.info.status == "FINISHED"
    for stage in STAGES[:-1]:
        assert second.data.tags[f"stage.{stage}"] == first.data.tags[f"stage.{stage}"] == named(stage).info.run_id
    assert second.data.tags["stage.evaluate"] != first.data.tags["stage.evaluate"]
    assert second.data.metrics["tune.log_loss"] == 0.4
    assert {k for k in second.data.metrics if k.startswith("seconds")} == {"seconds.evaluate"}
    assert second.data.tags["model"] == first.data.tags["model"]


@pytest.mark.parametrize("change", ["data", "params", "code", "lock", "experiment"])
@pytest.mark.usefixtures("repository")
def test_a_pipeline_is_known_by_data_params_code_lock_and_experiment(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Repository().pipeline_key()
    assert Repository().pipeline_key() == before
    match change:
        case "data":
            edit("data.dvc", "md5: ", "md5: 0")
        case "params":
            edit("params.yaml", "unread: 1", "unread: 2")
        case "code":
            edit("src/problem/features.py", "return", "return 1 +")
        case "lock":
            Path("requirements.lock").write_text("numpy==3\n")
        case "experiment":
            monkeypatch.setenv("DVC_EXP_NAME", "puffy-daks")
    assert Repository().pipeline_key() != before


@pytest.mark.usefixtures("repository")
def test_a_stage_is_known_alike_while_it_runs_and_from_dvc_lock_alone() -> None:
    before = {stage: Repository().stage_key(stage) for stage in STAGES}
    shutil.rmtree("data")
    shutil.rmtree("prepared")
    assert {stage: Repository().stage_key(stage) for stage in STAGES} == before
    edit("params.yaml", "0.00001", "0.00002")
    assert Repository().stage_key("preprocess") != before["preprocess"]
    assert Repository().stage_key("tune") == before["tune"]


class Killed(BaseException):
    """What no handler catches."""


def killed_before(write: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let MLflow's client die before its n-th write; returns how many it has made."""
    from mlflow import MlflowClient

    made = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == write:
                raise Killed
            return original(*args, **kwargs)

        return call

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
    return lambda: made


@pytest.mark.usefixtures("repository")
def test_what_was_cut_short_anywhere_is_completed_and_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        count = killed_before(0, patch)
        log_all()
        writes = count()
    tracking.complete()
    undisturbed = snapshot()
    assert writes > 30
    for write in range(1, writes + 1):
        client().rename_experiment(named("train").info.experiment_id, f"before {write}")
        with monkeypatch.context() as patch:
            killed_before(write, patch)
            for stage in STAGES:
                with contextlib.suppress(Killed):
                    tracking.log_stage(stage, 1.5)
        assert tracking.complete() == []
        assert snapshot() == undisturbed, f"killed before write {write}"
        assert not [p for p in Path("mlartifacts").rglob("*") if p.name == ".model" or p.parent.name == ".durations"]


@pytest.mark.usefixtures("repository")
def test_a_stage_that_ran_again_keeps_its_first_duration(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.create_database()
    with monkeypatch.context() as patch:
        killed_before(6, patch)  # after the stage's metrics
        with pytest.raises(Killed):
            tracking.log_stage("preprocess", 1.5)
    assert named("preprocess").data.metrics == {"seconds": 1.5}
    tracking.log_stage("preprocess", 2.5)
    history = client().get_metric_history(named("preprocess").info.run_id, "seconds")
    assert [metric.value for metric in history] == [1.5]


def run_python(code: str) -> "subprocess.Popen[str]":
    """Start a Python that has the real packages, in the current directory."""
    code = f"import os; from flows import tracking; os.chdir({str(Path.cwd())!r}); {code}"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("repository")
def test_four_processes_make_one_database() -> None:
    Path("mlflow.db").unlink()
    stages = ("preprocess", "tune", "train", "train")
    processes = [run_python(f"tracking.log_stage({stage!r}, 1.5)") for stage in stages]
    said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], said
    assert said == [""] * 4
    tracking.log_stage("evaluate", 1.5)
    tracking.complete()
    at_once = snapshot()
    client().rename_experiment(named("train").info.experiment_id, "at once")
    log_all()
    tracking.complete()
    assert snapshot() == at_once


def test_an_experiment_in_a_copy_is_tracked_in_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = repository / ".dvc/tmp/exps/standalone/tmp1"
    shutil.copytree(repository, copy, ignore=shutil.ignore_patterns(".dvc", "mlflow.db", "mlartifacts"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-daks")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123abc")
    log_all()
    assert not (copy / "mlflow.db").exists()
    assert not (copy / "mlartifacts").exists()
    monkeypatch.chdir(repository)
    (pipeline,) = parents()
    assert pipeline.info.run_name == pipeline.data.tags["dvc.experiment"] == "puffy-daks"
    assert pipeline.data.tags["dvc.baseline"] == "0123abc"


def test_a_moved_clone_is_refused_rather_than_written_to_its_old_place(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.create_database()
    moved = repository.rename(repository.with_name("elsewhere"))
    monkeypatch.setenv("DVC_ROOT", str(moved))
    monkeypatch.chdir(moved)
    with pytest.raises(InputError, match="moved or copied"):
        tracking.log_stage("preprocess", 1)
    assert not repository.exists()


@pytest.mark.usefixtures("repository")
def test_runs_tell_commit_and_whether_it_was_changed() -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "dvc.yaml", "params.yaml"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    tracking.log_stage("preprocess", 1)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    tags = named("preprocess").data.tags
    assert (tags["git.commit"], tags["git.dirty"]) == (commit, "false")
    edit("params.yaml", "resamples: 5", "resamples: 6")
    tracking.log_stage("evaluate", 1)
    assert named("evaluate").data.tags["git.dirty"] == "true"


LOAD = """
import json, sys, mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
golden = json.load(open(sys.argv[2]))
example = model.input_example
served = model.predict(example)
again = model.predict(pd.DataFrame(golden["rows"]).assign(at=lambda t: pd.to_datetime(t["at"])))
signature = model.metadata.signature
print(json.dumps([served.tolist(), again.tolist(), str(signature.inputs), str(signature.outputs)]))
"""


def test_the_logged_model_gives_the_scores_of_the_bundle(repository: Path, tmp_path: Path) -> None:
    log_all()
    model = client().get_logged_model(named("train").outputs.model_outputs[0].model_id)
    assert parents()[0].data.tags["model"] == f"models:/{model.model_id}"
    code = ["-c", LOAD, model.artifact_location, str(repository / "bundle/golden.json")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    loaded = subprocess.run([sys.executable, *code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    served, again, inputs, outputs = json.loads(loaded.stdout)
    assert served == again == GOLDEN["scores"]
    kinds = {"x": "double", "n": "long", "seats": "double", "wet": "boolean", "known": "boolean", "carrier": "string"}
    assert all(f"'{name}': {kind}" in inputs for name, kind in {**kinds, "at": "datetime"}.items())
    assert "float64" in outputs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/served.db", "--artifacts-destination", f"{tmp_path}/served"]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", uri.rpartition(":")[2], *store]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                tracking.check_server()
                break
            except InputError:
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.usefixtures("repository")
def test_a_server_gets_the_same_as_the_local_database(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log_all()
    tracking.complete()
    served = snapshot(server)
    log_all()
    assert snapshot(server) == served
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    log_all()
    tracking.complete()
    assert snapshot() == served


@pytest.mark.usefixtures("repository")
def test_no_server_is_asked_for_where_none_is_set() -> None:
    process = run_python("tracking.check_server(); import sys; assert 'mlflow' not in sys.modules")
    assert process.communicate()[1] == ""
    assert process.returncode == 0


def test_a_server_that_is_down_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(InputError, match=f"expected .*=http://127.0.0.1:{port}, found none .*; start it") as raised:
        tracking.check_server()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(("status", "is_refused"), [(200, False), (401, False), (404, True), (500, True)])
def test_a_server_must_answer_as_mlflow_does(status: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as fake:
        threading.Thread(target=fake.handle_request, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{fake.server_port}/")
        if is_refused:
            with pytest.raises(InputError, match=str(status)):
                tracking.check_server()
        else:
            tracking.check_server()
