"""Tracking: what a run of the pipeline leaves in MLflow, made from the files on disk, so that it can be made again.
Change here to log something else. `python -m flows.tracking` logs what MLflow lacks of the outputs on disk.

The run of a pipeline and the run of a stage are found by their keys (flows/repository.py), or begun. A run is whole
once it is FINISHED, which is written last; whatever comes before may be written twice, and is then there once.
"""

import csv
import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from flows import anchor
from flows.repository import Repository, file_hash, flatten, leaves
from pipeline.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 wait for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_CODE = ["src/problem", "src/pipeline", "flows"]
_NEEDS = {"onnx": ["numpy", "onnxruntime", "pandas"]}
_NEEDS["sklearn"] = [*_NEEDS["onnx"], "scikit-learn", "scipy", "skops"]
_TYPES = {"number": "double", "integer": "long", "boolean": "boolean", "category": "string", "time": "datetime"}
_BATCH = 100  # the most parameters that MLflow takes at once


def check_server() -> None:
    """Raise InputError where MLFLOW_TRACKING_URI names a server that does not answer as MLflow's does."""
    url = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if url.scheme not in ("http", "https"):
        return
    address = url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
    try:
        urlopen(f"{address}/health", timeout=5).close()  # noqa: S310 - the scheme is checked above
    except (OSError, ValueError) as error:
        if isinstance(error, HTTPError) and error.code in (401, 403):
            return  # it is there; MLflow's client has the credentials that it asks for
        raise InputError(
            f"expected an MLflow server at MLFLOW_TRACKING_URI={address}, found none ({error}); start it, correct the "
            "variable, or unset it to track in this repository's mlflow.db"
        ) from None


def create_database() -> None:
    """Make the local database where there is none, for whoever is about to start MLflow's interface on it."""
    with opened():
        pass


def log_stage(stage: str, seconds: float) -> None:
    """Log a stage whose outputs are written. The last stage of dvc.yaml also logs or links what is missing of those
    before it, and finishes the pipeline's run."""
    repository = Repository()
    _duration(repository, stage).write_text(str(seconds))
    with opened() as tracking:
        pipeline = tracking.pipeline(repository)
        tracking.link(pipeline, stage, tracking.stage(pipeline, repository, stage))
        if stage == repository.stages[-1]:
            tracking.finish(pipeline, repository, repository.stages[:-1])


def complete() -> list[str]:
    """Log or link every stage that MLflow lacks, after `dvc repro`; returns the stages that could not be, since their
    files are absent or not those that dvc.lock records."""
    repository = Repository()
    with opened() as tracking:
        pipeline = tracking.pipeline(repository)
        left = tracking.finish(pipeline, repository, repository.stages)
        if not left:
            tracking.log(pipeline, tags={"dvc.lock": file_hash(Path("dvc.lock"))})
        return left


def log_inspection(folder: Path, verdict: Mapping[str, Any]) -> None:
    """Log an inspection on the run of the pipeline: its files, and the verdict as tags."""
    with opened() as tracking:
        pipeline = tracking.pipeline(Repository())
        tracking.client.log_artifacts(pipeline.info.run_id, str(folder), folder.name)
        tags = {"airworthy": str(verdict["airworthy"]).lower(), "bundle": verdict["bundle"]}
        tracking.log(pipeline, tags=tags | {f"gate.{g['gate']}": str(g["passed"]).lower() for g in verdict["gates"]})


@dataclass(frozen=True)
class Tracking:
    """One experiment in an MLflow store."""

    client: "MlflowClient"
    experiment: str

    def pipeline(self, repository: Repository) -> "Run":
        """The run of the pipeline, found or begun."""
        key = repository.pipeline_key()
        name = os.environ.get("DVC_EXP_NAME") or f"pipeline {key[:8]}"
        run = self._find(key) or self._create(name, {"key": key, **_circumstances()})
        if not (run.inputs and run.inputs.dataset_inputs):
            self.log(run, flatten(repository.params))
            self._log_data(run, repository.data)
        return run

    def stage(self, pipeline: "Run", repository: Repository, stage: str) -> "Run":
        """The finished run of a stage, found, or made from its files."""
        key = repository.stage_key(stage)
        tags = {"key": key, "mlflow.parentRunId": pipeline.info.run_id}
        run = self._find(key) or self._create(stage, {**tags, **_circumstances()})
        if run.info.status == "FINISHED":
            return run
        duration = _duration(repository, stage)
        seconds = duration.read_text() if duration.is_file() and "seconds" not in run.data.metrics else ""
        metrics = {**_metrics(stage), **({"seconds": float(seconds)} if seconds else {})}
        self.log(run, repository.stage_params(stage), metrics)
        for path in logged(repository, stage):
            self._log_file(run, path)
        if stage == "tune":
            self._log_trials(run, Path("tuning/trials.csv"))
        self.client.set_terminated(run.info.run_id)
        duration.unlink(missing_ok=True)
        return self.client.get_run(run.info.run_id)

    def link(self, pipeline: "Run", stage: str, run: "Run") -> None:
        """Put the run of a stage, and what it measured, on that of the pipeline, whether it ran there or was cached."""
        if pipeline.data.tags.get(f"stage.{stage}") == run.info.run_id:
            return
        metrics = {name: value for name, value in run.data.metrics.items() if name != "seconds"}
        if "seconds" in run.data.metrics and run.data.tags["mlflow.parentRunId"] == pipeline.info.run_id:
            metrics[f"seconds.{stage}"] = run.data.metrics["seconds"]
        model = {"model": run.data.tags["model"]} if "model" in run.data.tags else {}
        self.log(pipeline, metrics=metrics, tags={f"stage.{stage}": run.info.run_id, **model})

    def finish(self, pipeline: "Run", repository: Repository, stages: list[str]) -> list[str]:
        """Log or link these stages, then finish the run of the pipeline; returns the stages that cannot be logged."""
        left = []
        for stage in stages:
            run = self._find(repository.stage_key(stage))
            whole = run is not None and run.info.status == "FINISHED"
            if whole or repository.agrees(stage, logged(repository, stage)):
                self.link(pipeline, stage, self.stage(pipeline, repository, stage))
            else:
                left.append(stage)
        if not left and pipeline.info.status != "FINISHED":
            self.client.set_terminated(pipeline.info.run_id)
        return left

    def log(
        self,
        run: "Run",
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log to a run, in one batch where it fits."""
        from mlflow.entities import Metric, Param, RunTag

        listed = [Param(_name(key), value) for key, value in (params or {}).items()]
        for start in range(_BATCH, len(listed), _BATCH):
            self.client.log_batch(run.info.run_id, params=listed[start : start + _BATCH])
        # A metric bears its run's time, so that logged again it is the same metric.
        measured = [Metric(_name(key), value, run.info.start_time, 0) for key, value in (metrics or {}).items()]
        tagged = [RunTag(key, value) for key, value in (tags or {}).items()]
        self.client.log_batch(run.info.run_id, measured, listed[:_BATCH], tagged)

    def _find(self, key: str) -> "Run | None":
        # The oldest, should two machines have begun one at the same moment.
        found = self.client.search_runs([self.experiment], f"tags.key = '{key}'", order_by=["attributes.start_time"])
        return found[0] if found else None

    def _create(self, name: str, tags: Mapping[str, str]) -> "Run":
        return self.client.create_run(self.experiment, run_name=name, tags=dict(tags))

    def _log_data(self, run: "Run", md5: str) -> None:
        from mlflow.entities import Dataset, DatasetInput

        source = json.dumps({"tags": {"dvc": "data.dvc"}})
        data = Dataset(name="data", digest=md5, source_type="code", source=source)
        self.client.log_inputs(run.info.run_id, [DatasetInput(data)])

    def _log_file(self, run: "Run", path: Path) -> None:
        if (path / "contract.json").is_file():
            self._log_bundle(run, path)
        elif path.is_dir():
            self.client.log_artifacts(run.info.run_id, str(path), path.as_posix())
        else:
            self.client.log_artifact(run.info.run_id, str(path), path.parent.as_posix())

    def _log_trials(self, run: "Run", table: Path) -> None:
        nested = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        found = self.client.search_runs([self.experiment], nested, max_results=50_000)
        begun = {trial.data.tags["trial"]: trial for trial in found}
        for row in csv.DictReader(table.read_text().splitlines()):
            tags = {"mlflow.parentRunId": run.info.run_id, "trial": row["number"]}
            trial = begun.get(row["number"]) or self._create(f"trial {row['number']}", tags)
            if trial.info.status == "RUNNING":
                scores = {k: float(v) for k, v in row.items() if re.fullmatch(r"score|fold_\d+", k) and v}
                self.log(trial, {"candidate": row["candidate"], **flatten(json.loads(row["params"]))}, scores)
                self.client.set_terminated(trial.info.run_id, "FINISHED" if row["score"] else "FAILED")

    def _log_bundle(self, run: "Run", bundle: Path) -> None:
        """Log the bundle as a model, like `mlflow.pyfunc.log_model`, but in steps that can be taken up again."""
        from mlflow.entities import LoggedModelOutput

        run_id = run.info.run_id
        begun = self.client.search_logged_models([self.experiment], f"source_run_id = '{run_id}'")
        model = begun[0] if begun else self.client.create_logged_model(self.experiment, "bundle", run_id)
        if not (run.outputs and run.outputs.model_outputs):
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        if model.status != "READY":
            folder = _home() / ".model"
            shutil.rmtree(folder, ignore_errors=True)
            _save_model(bundle, folder, model, run_id)
            self.client.log_model_artifacts(model.model_id, str(folder))
            shutil.rmtree(folder)
            self.client.finalize_logged_model(model.model_id, "READY")
        self.log(run, tags={"model": f"models:/{model.model_id}"})


@contextmanager
def opened() -> Iterator[Tracking]:
    """The tracking store, for one process of this machine at a time: finding a run and beginning it are two steps."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    with (_home() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _database()
        client = MlflowClient(uri, uri)
        yield Tracking(client, _experiment(client, uri))


def _home() -> Path:
    """Where files are kept that no server keeps: in the repository itself, not in the copy of an experiment."""
    home = Path(anchor()).resolve() / "mlartifacts"
    home.mkdir(exist_ok=True)
    return home


def _database() -> str:
    """The address of the local database, made whole or not at all: a half-made one is never accepted again."""
    from mlflow import MlflowClient

    database = _home().parent / "mlflow.db"
    if not database.is_file():
        with tempfile.TemporaryDirectory(dir=_home()) as folder:
            MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
            Path(folder, "mlflow.db").rename(database)
    return f"sqlite:///{database}"


def project() -> str:
    """The name of the project, of its experiment, and of its registered model."""
    return str(tomllib.loads(Path("pyproject.toml").read_text())["project"]["name"])


def _experiment(client: "MlflowClient", uri: str) -> str:
    name = project()
    artifacts = None if urlsplit(uri).scheme in ("http", "https", "databricks") else _home().as_uri()
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return client.create_experiment(name, artifacts)
    if not os.environ.get("MLFLOW_TRACKING_URI") and experiment.artifact_location != artifacts:
        raise InputError(
            f"expected mlflow.db to keep its files in {artifacts}, found {experiment.artifact_location}: the folder "
            "was moved or copied; move it back, or delete mlflow.db and mlartifacts/ to begin anew"
        )
    return experiment.experiment_id


def _duration(repository: Repository, stage: str) -> Path:
    """Where the duration of a stage waits until it is logged, since no other file knows it."""
    folder = _home() / ".durations"
    folder.mkdir(exist_ok=True)
    return folder / f"{stage}-{repository.stage_key(stage)}"


def _circumstances() -> dict[str, str]:
    """What belongs to a moment and to no output: git, the machine, DVC's experiment."""
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    tags = {
        "git.commit": commit,
        "mlflow.source.git.commit": commit,  # where MLflow's interface looks for it
        "git.dirty": None if changes is None else str(changes != "").lower(),
        "requirements.lock": file_hash(Path("requirements.lock")),
        "platform": f"{platform.system()}-{platform.machine()}-python{platform.python_version()}".lower(),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
    }
    return {name: value for name, value in tags.items() if value}


def _git(*arguments: str) -> str | None:
    """What git answers; None without git, a repository or a commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607 - git, as found
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def logged(repository: Repository, stage: str) -> list[Path]:
    """The outputs of a stage that MLflow keeps: all but tables."""
    return [path for path in repository.outputs(stage) if path.suffix != ".parquet"]


def _metrics(stage: str) -> dict[str, float]:
    """What a stage measured, from its files."""
    if stage == "tune":
        best = json.loads(Path("tuning/best.json").read_text())
        return {f"tune.{best['metric']}": best["score"]}
    if stage != "evaluate":
        return {}
    found = leaves(json.loads(Path("reports/metrics.json").read_text()))
    return {n.removesuffix(".value"): float(v) for n, v in found.items() if type(v) in (int, float)}


def _name(text: str) -> str:
    return re.sub(r"[^\w. :/-]", "_", text)  # what MLflow allows in a name


def _save_model(bundle: Path, target: Path, model: "LoggedModel", run_id: str) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    from flows.model import example

    contract, golden = (json.loads((bundle / f"{name}.json").read_text()) for name in ("contract", "golden"))
    rows = {name: values[:5] for name, values in golden["rows"].items()}
    mlflow.pyfunc.save_model(
        target,
        loader_module="flows.model",
        data_path=str(bundle),
        code_paths=_CODE,
        signature=_signature(contract["inputs"], len(golden["scores"][0])),
        input_example=example(rows, contract["inputs"]),
        pip_requirements=[f"{package}=={version(package)}" for package in _NEEDS[contract["runtime"]]],
        mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
    )


def _signature(inputs: list[dict[str, Any]], width: int) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    # MLflow's integers know no missing value.
    kinds = {c["name"]: "number" if c["kind"] == "integer" and c["nullable"] else c["kind"] for c in inputs}
    columns: list[ColSpec | TensorSpec] = [ColSpec(_TYPES[kind], name) for name, kind in kinds.items()]
    return ModelSignature(Schema(columns), Schema([TensorSpec(np.dtype("float64"), (-1, width), "scores")]))


def _main() -> None:
    try:
        check_server()
        left = complete()
    except InputError as error:
        sys.exit(f"tracking: {error}")
    if left:
        sys.exit(
            f"tracking: expected the outputs that dvc.lock records, those of {', '.join(left)} are absent or others, "
            "and stay out of MLflow; run `dvc pull` or `dvc repro`, and this again"
        )
    sys.stdout.write("MLflow has every stage that dvc.lock records\n")


if __name__ == "__main__":
    _main()
