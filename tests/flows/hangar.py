"""A small repository whose three models DVC keeps, for what registers them, lets them fly and takes them back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows import ledger, tracking
from pipeline.canonical import file_hash, files_hash, folder_files
from tests.clones import made_once
from tests.flows.test_tracking import FILES, Killed, client
from tests.flows.test_tracking import pytestmark as MLFLOW_WARNS

__all__ = ["MLFLOW_WARNS"]

WRITES = [
    *("create_registered_model", "create_model_version", "set_model_version_tag"),
    *("set_registered_model_alias", "delete_registered_model_alias"),
]
MODELS = ("one", "two", "three")
OUTPUTS = ["data", "prepared", "tuning", "bundle", "reports"]
MADE = ["mlflow.db*", "mlartifacts", ".dvc/cache", ".dvc/tmp", ".dvc/config.local"]
MADE += ["data", "prepared/", "tuning", "bundle", "reports", "inspection"]
DVC_CONFIG = "[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = store\n"
# What the inspection writes, quickly: the gates that the variable names have failed, `broken` is one that ends in 2.
INSPECT = """
import hashlib, json, os, pathlib, subprocess, sys

def sha(data):
    return hashlib.sha256(data).hexdigest()

failed = os.environ.get("GROUNDED", "").split()
if failed == ["broken"]:
    sys.exit(2)
files = sorted((p.name, p.read_bytes()) for p in pathlib.Path("bundle").iterdir())
bundle = sha("".join(f"{sha(content)}  {name}\\n" for name, content in files).encode())
command = "git for-each-ref --sort=-version:refname --count=1 --format=%(refname:lstrip=2) refs/tags/model/"
tag = subprocess.run(command.split(), capture_output=True, text=True).stdout.strip()
champion = {"state": "duel", "tag": tag} if tag else {"state": "first"}
gates = [{"gate": g, "passed": g not in failed, "waived": None, "reason": f"{g} was measured"}
         for g in ("floor", "champion", "hashes", "recorded")]
verdict = {"airworthy": not failed, "waived": [], "bundle": bundle, "gates": gates, "champion": champion,
           "dvc.lock": sha(pathlib.Path("dvc.lock").read_bytes())}
pathlib.Path("inspection").mkdir(exist_ok=True)
pathlib.Path("inspection/gates.json").write_text(json.dumps(verdict))
sys.exit(bool(failed))
"""


@dataclass(frozen=True)
class Hangar:
    """A git repository in which each branch of MODELS records a model."""

    path: Path
    pulled: Path  # per model what `dvc pull` puts in place

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def dvc(self, *commands: str) -> None:
        code = f"from dvc.cli import main; assert not any(main(command.split()) for command in {commands})"
        subprocess.run([sys.executable, "-c", code], cwd=self.path, check=True)

    def take(self, model: str) -> str:
        """Check a model out; returns what its bundle is known by."""
        self.git("checkout", "--quiet", model)
        for name in OUTPUTS:
            shutil.rmtree(self.path / name, ignore_errors=True)
            shutil.copytree(self.pulled / model / name, self.path / name)
        return self.bundle()

    def bundle(self) -> str:
        return files_hash(folder_files(self.path / "bundle"))

    def lose(self, model: str, elsewhere: Path) -> None:
        """Let nobody have a model's bundle: neither the cache, nor the remote, which now is no part of the commits."""
        shutil.copytree(self.path / ".dvc/store", elsewhere)
        (self.path / ".dvc/config.local").write_text(f"['remote \"store\"']\nurl = {elsewhere}\n")
        content = (self.pulled / model / "bundle/model.json").read_bytes()
        for folder in (elsewhere, self.path / ".dvc/cache"):
            next(folder.rglob(hashlib.md5(content, usedforsecurity=False).hexdigest()[2:])).unlink()

    def tags(self) -> list[str]:
        return self.git("tag", "--list", "model/*").split()

    def with_origin(self) -> "Hangar":
        """A bare origin, for this one to push to."""
        origin = self.path.parent / "origin.git"
        self.git("init", "--quiet", "--bare", str(origin))
        self.git("remote", "add", "origin", str(origin))
        self.git("push", "--quiet", "origin", "--all")
        return Hangar(origin, self.pulled)


def registry_now(uri: str | None = None) -> dict[str, Any]:
    """What MLflow's registry holds: bundles by alias, and the tags of each version in order."""
    found = client(uri)
    models = found.search_registered_models()
    versions = sorted(found.search_model_versions(), key=lambda version: int(version.version))
    bundles = {str(version.version): version.tags["bundle"] for version in versions}
    aliases = {alias: bundles[str(version)] for model in models for alias, version in model.aliases.items()}
    return {"aliases": aliases, "versions": [version.tags for version in versions]}


def killed_before(write: int, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the process die before its n-th step that changes the ledger or the registry; returns how many there were."""
    from mlflow import MlflowClient

    made = 0

    def dying(original: Callable[..., Any], steps: tuple[str, ...] = ()) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            if not steps or args[0] in steps:
                made += 1
                if made == write:
                    raise Killed
            return original(*args, **kwargs)

        return call

    for name in WRITES:
        patch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
    patch.setattr(ledger, "git", dying(ledger.git, ("mktag", "push", "update-ref")))
    return lambda: made


@pytest.fixture(scope="session")
def hangars(shared: Path) -> Path:
    """The hangar before the first flight, the same after three, and per model what is pulled."""
    return made_once(shared / "hangars", _make)


def _make(folder: Path) -> None:
    root, pulled = folder / "new", folder / "pulled"
    hangar = Hangar(root, pulled)
    files = FILES | {"flows/inspect.py": INSPECT, ".github/CODEOWNERS": "* @ada @Grace @org/team # us\n"}
    ignored = "".join(f"/{name}\n" for name in MADE) + "__pycache__/\n"
    files |= {".gitignore": ignored, ".dvc/config": DVC_CONFIG, ".dvc/store/.keep": ""}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    contract = json.loads(files["bundle/contract.json"])
    contract["features_hash"] = file_hash(root / "src/problem/features.py")
    (root / "bundle/contract.json").write_text(json.dumps(contract))
    hangar.git("init", "--quiet", "--initial-branch=main")
    hangar.git("config", "user.email", "tests@example.org")
    hangar.git("config", "user.name", "Tests")
    hangar.dvc("add -q data")
    for number, model in enumerate(MODELS, 3):
        (root / "params.yaml").write_text(FILES["params.yaml"].replace("missed: 3", f"missed: {number}"))
        (root / "bundle/model.json").unlink()  # it may be a link to DVC's cache
        (root / "bundle/model.json").write_text(f"{number - 1}.0")
        hangar.dvc("commit -q -f", "push -q")
        hangar.git("checkout", "--quiet", "-b", model)
        hangar.git("add", "--all")
        hangar.git("commit", "--quiet", "--message", f"model {model}")
        for name in OUTPUTS:
            shutil.copytree(root / name, pulled / model / name)
    hangar.take("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        tracking._database()
    shutil.rmtree(root / "mlartifacts")
    _fly(Hangar(shutil.copytree(root, folder / "flown", symlinks=True), pulled))


def _fly(hangar: Hangar) -> None:
    """One flies, then two in an emergency, then one again."""
    bundles = {"two": hangar.take("two"), "one": hangar.take("one")}
    entered = [("one", {}), ("two", {"action": "emergency", "grounds": ["floor"]}), ("one", {"restores": "model/v1"})]
    for model, more in entered:
        told = {"bundle": bundles[model], "action": "promote", "by": "ada", "because": "it was time", **more}
        at = datetime(2013, 11, 1 + len(hangar.tags()), tzinfo=UTC)
        with chdir(hangar.path):
            commit, flown = hangar.git("rev-parse", model), ledger.entries()
            ledger.enter(told, commit=commit, subject="Flown", at=at, flown=flown)


@pytest.fixture
def hangar(request: pytest.FixtureRequest, hangars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hangar:
    """A repository of its own, with the first model checked out, and nothing in MLflow."""
    root, made = tmp_path / "hangar", hangars / ("flown" if "flown" in request.fixturenames else "new")
    shutil.copytree(made, root, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
    for name in (*(n for n in os.environ if n.startswith("GITHUB_")), "MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(root)
    return Hangar(root, hangars / "pulled")


@pytest.fixture
def flown(hangar: Hangar) -> dict[str, str]:
    """One has flown, then two in an emergency, then one again, of which MLflow knows nothing; the bundles by name."""
    return {model: files_hash(folder_files(hangar.pulled / model / "bundle")) for model in ("two", "one")}


@pytest.fixture
def other(hangar: Hangar, tmp_path: Path) -> Hangar:
    """Another clone of the same origin, its outputs pulled."""
    hangar.with_origin()
    path = tmp_path / "other"
    hangar.git("clone", "--quiet", str(tmp_path / "origin.git"), str(path))
    clone = Hangar(path, hangar.pulled)
    clone.git("config", "user.email", "others@example.org")
    clone.git("config", "user.name", "Others")
    clone.git("checkout", "--quiet", "three")
    clone.dvc("pull -q data tuning bundle reports prepared/quality.json")
    return clone
