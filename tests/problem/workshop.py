"""A small model of real flights that passes inspection, in a folder of its own for each test that harms it or lets it
fly. Change here to make it of other rows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import yaml

import flows.inspect
from flows.ingest import ingest
from flows.inspect import inspect, made_again
from flows.repository import Repository, dvc_hash
from pipeline.canonical import files_hash, folder_files, json_bytes, parquet_bytes, sha256
from tests.clones import ROOT, Clone, made_once, make_clone

MONTHS = ["2013-05", "2013-06", "2013-07"]
KEPT = 4  # one flight in so many
SPLIT = {
    "method": "time", "train_from": "2013-05", "validation_from": "2013-06-11",
    "test_from": "2013-07-06", "test_until": "2013-08",
}  # fmt: skip
FOLDERS = {"preprocess": "prepared", "train": "bundle", "evaluate": "reports"}
UNTRACKED = {"MLFLOW_TRACKING_URI": "none:"}  # MLflow has no say in whether a model may fly
LINKED = (".git/objects", ".dvc/cache", ".dvc/store")  # whose files come and go, and never change


@dataclass(frozen=True)
class Workshop(Clone):
    """A clone whose pipeline has run: a bundle that is airworthy, until someone has been here."""

    made: Path  # what the same inputs gave in any workshop

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    def stage(self, name: str) -> None:
        """Run one stage of the pipeline as it is, whatever DVC would say."""
        with chdir(self.path):
            getattr(import_module(f"flows.{name}"), name)()

    def fly(self, *stages: str) -> None:
        """Run stages as programs, on this workshop's own code, and record what they made as if it had always been."""
        for stage in stages:
            command = (sys.executable, "-m", f"flows.{stage}", *(["bundle"] if stage == "train" else []))
            self._once(f"flown {self._key(stage)}", self[FOLDERS[stage]], partial(self.run, *command, **UNTRACKED))
        self.record()

    def record(self) -> None:
        """Make dvc.lock match what is on disk, as a forger would: by hand."""
        lock, params = (yaml.safe_load(self[name].read_text()) for name in ("dvc.lock", "params.yaml"))
        with chdir(self.path):
            for stage in lock["stages"].values():
                for file in (*stage["deps"], *stage["outs"]):
                    file["md5"] = dvc_hash(Path(file["path"]))
                stage["params"]["params.yaml"] = {name: params[name] for name in stage["params"]["params.yaml"]}
        self.edit("dvc.lock", lambda _: yaml.safe_dump(lock, sort_keys=False))

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

    def edit_json(self, name: str, change: Callable[[Any], None]) -> None:
        """Change a JSON file."""

        def changed(text: str) -> str:
            told = json.loads(text)
            change(told)
            return json.dumps(told, indent=1, ensure_ascii=False) + "\n"

        self.edit(name, changed)

    def judged(self, *, patched: bool = False) -> dict[str, dict[str, Any]]:
        """The gates that ground the bundle alone, after `evaluate`, with what they say. `patched`: the code of this
        process was changed, so that what `evaluate` made of the same files before is no answer."""
        if patched:
            self.stage("evaluate")
        else:
            self._once(f"judged {self._key('evaluate')}", self["reports"], lambda: self.stage("evaluate"))
        return grounds(json.loads(self["reports/gates.json"].read_text()))

    def inspected(self) -> dict[str, dict[str, Any]]:
        """The gates that ground the model, by the inspection, which must exit accordingly. A workshop that is to the
        last byte one that was inspected before gets the same answer."""
        self._once(f"inspected {self.state()}", self["inspection"], self._inspect)
        return grounds(json.loads(self["inspection/gates.json"].read_text()))

    def inspect_apart(self) -> subprocess.CompletedProcess[str]:
        """The inspection as a program, on this workshop's own code."""
        return self.run(sys.executable, "-m", "flows.inspect", check=False, **UNTRACKED)

    def _inspect(self) -> None:
        """Run the inspection: on changed code as a program, on this code in this process, which has it loaded."""
        if any(dvc_hash(self[name]) != dvc_hash(ROOT / name) for name in ("src", "flows")):
            done = self.inspect_apart()
            code, said = done.returncode, done.stdout
        else:
            with chdir(self.path), redirect_stdout(StringIO()) as out, pytest.MonkeyPatch.context() as patch:
                patch.setattr(flows.inspect, "made_again", self._made_again)
                patch.setattr(flows.inspect.tracking, "log_inspection", lambda *_: None)
                code = inspect()
            said = out.getvalue()
            sys.stdout.write(said)
        airworthy = json.loads(self["inspection/gates.json"].read_text())["airworthy"]
        assert code == (0 if airworthy else 1)
        assert ("AIRWORTHY: bundle" in said) == airworthy

    def _made_again(self, stage: str, folder: Path) -> Path:
        """What a stage gives for the inspection, from the same code, parameters and files only once."""
        self._once(f"again {self._key(stage)}", folder, lambda: made_again(stage, folder))
        return folder

    def _key(self, stage: str) -> str:
        """The hash of all that a stage reads: its code, its parameters, its files."""
        with chdir(self.path):
            return f"{stage} {Repository().stage_key(stage)}"

    def _once(self, name: str, folder: Path, make: Callable[[], object]) -> None:
        """Let a folder be made, or where it was made under this name before, be a copy of that."""
        kept = self.made / name
        if kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            return
        make()
        with TemporaryDirectory(dir=self.made) as scratch, suppress(OSError):  # another worker was first
            Path(shutil.copytree(folder, Path(scratch, "whole"))).rename(kept)

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
def intact(shared: Path) -> Workshop:
    """The undisturbed workshop."""
    (shared / "stages").mkdir(exist_ok=True)
    return Workshop(made_once(shared / "workshop", partial(_make, shared / "stages")), shared / "stages")


def _make(made: Path, path: Path) -> None:
    new = Workshop(path, made)
    make_clone(new.path)
    new.run("git", "rm", "--quiet", "--cached", "data.dvc")
    new["data.dvc"].unlink()
    with chdir(new.path):
        ingest(MONTHS[0], MONTHS[-1])
    _thin(new["data"])
    new.dvc("add", "--quiet", "data")
    shutil.rmtree(new[".dvc/store"])
    limits = yaml.safe_load(new["params.yaml"].read_text())["evaluate"]["limits"]
    new.edit_params(
        preprocess__split=SPLIT,
        tune__trials=3,
        tune__folds=2,
        evaluate__resamples=200,
        evaluate__refit_rows=1000,
        evaluate__slice_rows=150,
        inspect__size_mb=0.15,
        evaluate__limits=limits | {"calibration": 0.055},  # June is not July, on a quarter of the flights less so
    )
    new.stage("preprocess")
    new.stage("tune")
    new.run(sys.executable, "-m", "flows.train", "bundle")  # a bundle names the code that its process had loaded
    new.stage("evaluate")
    new.dvc("commit", "--force", "--quiet")
    new.dvc("push", "--quiet")
    new.run("git", "add", "--all")
    new.run("git", "commit", "--quiet", "--message", "a small model")


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
def workshop(intact: Workshop, tmp_path: Path) -> Iterator[Workshop]:
    """A copy of the undisturbed workshop, gone with the test."""

    def copy(source: str, target: str) -> None:
        inside = Path(source).relative_to(intact.path).as_posix()
        (os.link if inside.startswith(LINKED) else shutil.copy2)(source, target)

    shutil.copytree(intact.path, tmp_path / "workshop", symlinks=True, copy_function=copy)
    yield Workshop(tmp_path / "workshop", intact.made)
    shutil.rmtree(tmp_path / "workshop")
