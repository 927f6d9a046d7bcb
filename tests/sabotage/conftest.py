"""A small model of real flights that passes inspection, for each act of sabotage to break. An act runs twice: once
doing all but the harm, which must pass, and once with it."""

import fcntl
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.canonical import files_hash, folder_files, json_bytes, parquet_bytes, sha256
from tests.clones import Clone, make_clone

MONTHS = ["2013-05", "2013-06", "2013-07"]
KEPT = 4  # one flight in so many
SPLIT = {
    "method": "time", "train_from": "2013-05", "validation_from": "2013-06-11",
    "test_from": "2013-07-06", "test_until": "2013-08",
}  # fmt: skip


INSPECTED: dict[str, dict[str, dict[str, Any]]] = {}


class Workshop(Clone):
    """A clone whose pipeline has run: a bundle that is airworthy, until someone has been here."""

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    def stage(self, name: str) -> None:
        """Run one stage of the pipeline as it is, whatever DVC would say."""
        with chdir(self.path):
            getattr(import_module(f"flows.{name}"), name)()

    def fly(self, *stages: str) -> None:
        """Run stages as programs, on this workshop's own code, and record what they made as if it had always been."""
        for stage in stages:
            self.run(sys.executable, "-m", f"flows.{stage}", *(["bundle"] if stage == "train" else []))
        self.record()

    def record(self) -> None:
        """Make dvc.lock match what is on disk, as a forger would."""
        self.dvc("commit", "--force", "--quiet")

    @contextmanager
    def rows(self, split: str) -> Iterator[pd.DataFrame]:
        """The prepared rows of a split, to be changed in place."""
        path = self[f"prepared/{split}.parquet"]
        rows = pd.read_parquet(path)
        yield rows
        path.unlink()  # it may be a link to DVC's cache
        path.write_bytes(parquet_bytes(rows))

    def edit(self, name: str, change: Callable[[str], str]) -> None:
        """Change a text file."""
        path = self[name]
        text = change(path.read_text())
        path.unlink()
        path.write_text(text)

    def judged(self) -> dict[str, dict[str, Any]]:
        """The gates that ground the bundle alone, after `evaluate`, with what they say."""
        self.stage("evaluate")
        return grounds(json.loads(self["reports/gates.json"].read_text()))

    def inspected(self) -> dict[str, dict[str, Any]]:
        """The gates that ground the model, by `python -m flows.inspect`, which must exit accordingly. A workshop that
        is to the last byte one that was inspected before gets the same answer."""
        if (state := self.state()) not in INSPECTED:
            done = self.run(sys.executable, "-m", "flows.inspect", check=False)
            verdict = json.loads(self["inspection/gates.json"].read_text())
            assert done.returncode == (0 if verdict["airworthy"] else 1)
            assert ("AIRWORTHY: bundle" in done.stdout) == verdict["airworthy"]
            INSPECTED[state] = grounds(verdict)
        return INSPECTED[state]

    def state(self) -> str:
        """The hash of all that an inspection reads: code, parameters, data, outputs, and the ledger."""
        read = ["src", "flows", "docs", "data", "prepared", "tuning", "bundle", "reports"]
        files = {f"{name}/{file}": content for name in read for file, content in folder_files(self[name]).items()}
        files = {name: content for name, content in files.items() if not name.endswith(".pyc")}
        files |= {name: self[name].read_bytes() for name in ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc")}
        kept = sum(1 for folder in ("store", "cache") for _ in self[f".dvc/{folder}/files"].rglob("*"))
        ledger = self.run("git", "for-each-ref", "refs/tags").stdout
        return files_hash(files | {"kept": str(kept).encode(), "ledger": ledger.encode()})


def grounds(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    failed = {gate["gate"]: gate for gate in verdict["gates"] if not gate["passed"]}
    assert verdict["airworthy"] == (not failed)
    return failed


@pytest.fixture(scope="session")
def flown(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The undisturbed workshop, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    path = shared / "flown"
    with (shared / "flown.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _fly(shared / "flown.new")
            (shared / "flown.new").rename(path)
    return path


def _fly(path: Path) -> None:
    made = make_clone(path)
    made.run("git", "rm", "--quiet", "--cached", "data.dvc")
    (path / "data.dvc").unlink()
    made.run(sys.executable, "-m", "flows.ingest", "--from", MONTHS[0], "--to", MONTHS[-1])
    _thin(path / "data")
    made.dvc("add", "--quiet", "data")
    shutil.rmtree(path / ".dvc/store")
    limits = yaml.safe_load((path / "params.yaml").read_text())["evaluate"]["limits"]
    made.edit_params(
        preprocess__split=SPLIT,
        tune__trials=3,
        tune__folds=2,
        evaluate__resamples=200,
        evaluate__refit_rows=1000,
        evaluate__slice_rows=150,
        inspect__size_mb=0.15,
        evaluate__limits=limits | {"calibration": 0.055},  # June is not July, on a quarter of the flights less so
    )
    made.dvc("repro")
    made.dvc("push", "--quiet")
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "a small model")


def _thin(data: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    for period, entry in manifest["periods"].items():
        rows = pd.read_parquet(data / f"{period}.parquet")
        content = parquet_bytes(rows[rows["flight"] % KEPT == 0].reset_index(drop=True))
        (data / f"{period}.parquet").unlink()
        (data / f"{period}.parquet").write_bytes(content)
        entry |= {"rows": int((rows["flight"] % KEPT == 0).sum()), "sha256": sha256(content)}
    (data / "manifest.json").unlink()
    (data / "manifest.json").write_bytes(json_bytes(manifest))


@pytest.fixture
def workshop(flown: Path, tmp_path: Path) -> Iterator[Workshop]:
    """A copy of the undisturbed workshop, gone with the test."""
    shutil.copytree(flown, tmp_path / "workshop", symlinks=True)
    yield Workshop(tmp_path / "workshop")
    shutil.rmtree(tmp_path / "workshop")


@pytest.fixture(params=[False, True], ids=["untouched", "sabotaged"])
def sabotaged(request: pytest.FixtureRequest) -> bool:
    """Whether the act does its harm."""
    return bool(request.param)
