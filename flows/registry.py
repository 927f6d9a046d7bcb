"""MLflow's registry: one version for each bundle, and the aliases that follow from the ledger. Change here to keep
models in another registry. `python -m flows.registry` makes it from the ledger's tags, in an empty database too.
"""

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flows import anchor, ledger, tracking
from flows.history import red
from flows.repository import Repository
from flows.stage import run, say
from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

BUNDLE = Path("bundle")
_PATIENCE_S = 5.0  # with another program that holds the database; MLflow's own is minutes


class Lost(InputError):
    """A bundle that nobody has any more."""


def registry() -> int:
    """Register every bundle that has flown and is not there, then let the aliases follow; returns 1 where one is lost,
    so that a person sees it: all else is done. Lost where it is the champion's."""
    flown = ledger.entries()
    lost = follow(flown, [entry.bundle for entry in flown])
    newest = ledger.newest(flown)
    count = len({entry.bundle for entry in flown})
    had = f"{count - len(lost)} of the {count}" if lost else f"the {count}"
    say(f"the registry has {had} bundles that have flown; champion: {newest.tag if newest else 'none yet'}")
    return 1 if lost else 0


def register(bundle: str, tags: Mapping[str, str], *, challenges: bool = False) -> str:
    """The number of the one version of the bundle in the current directory, found, or made with whatever MLflow lacks
    of its run. `challenges`: it becomes the challenger."""
    with _readable():
        if left := tracking.complete():
            raise InputError(
                f"expected a whole run of the pipeline to register, but the files of {', '.join(left)} are absent or "
                "not those that dvc.lock records; run `dvc pull` or `dvc repro`"
            )
        with _opened() as models:
            version = models.versions().get(bundle) or models.add(bundle)
            models.tag(version, {"bundle": bundle, **tags})
            if challenges:
                models.point({"challenger": version})
    return str(version.version)


def follow(flown: ledger.Flown, wanted: list[str] | None = None) -> set[str]:
    """Set the aliases by the ledger, and register what they point at, and all the bundles that are `wanted`; says, and
    returns, what nobody has any more: no alias points there. Lost where that is the champion's."""
    named = {"champion": ledger.newest(flown), "previous": ledger.before(flown)}
    needed, lost = {entry.bundle for entry in named.values() if entry}.union(wanted or []), set[str]()
    latest = {entry.bundle: entry for entry in flown}
    while True:
        with _readable(), _opened() as models:
            versions = models.versions()
            if versions.keys() >= needed:
                for bundle in latest.keys() & versions.keys():
                    models.tag(versions[bundle], told(latest[bundle], flown[latest[bundle]]))
                models.point({alias: versions.get(entry.bundle) if entry else None for alias, entry in named.items()})
                return lost
        for bundle, entry in latest.items():
            if bundle in needed and bundle not in versions:
                try:
                    _register_again(entry)
                except InputError as error:
                    if entry == named["champion"]:
                        raise
                    needed.remove(bundle)
                    lost.add(bundle)
                    say(red(f"LOST: {error}"))


def catch_up(flown: ledger.Flown) -> None:
    """As `follow`, before another champion is to come: one that nobody has is said, and stops nothing."""
    try:
        follow(flown)
    except Lost as error:
        say(red(f"LOST: {error}"))


def told(entry: ledger.Entry, entered: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version whose bundle has flown; it says so where it flew without having passed."""
    grounds = ", ".join(entered.get("grounds", []))
    commit = ledger.git("rev-parse", f"{entry.tag}^{{commit}}")
    passed = str(not grounds).lower() if "verdicts" in entered else "not recorded"
    tags = {"bundle": entry.bundle, "git.commit": commit, "airworthy": passed, "dirty": ""}
    emergency = f"EMERGENCY: flown although grounded by {grounds}" if grounds else ""
    return {**tags, "emergency": emergency, "waived": ", ".join(entered.get("waived", []))}


def _register_again(entry: ledger.Entry) -> None:
    """Register the bundle of an entry from the commit that records it."""
    with ledger.checked_out(entry.tag) as clone, chdir(clone):
        repository = Repository()
        paths = [str(path) for stage in repository.stages for path in tracking.logged(repository, stage)]
        command = [sys.executable, "-m", "dvc", "pull", *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - DVC
        found = files_hash(folder_files(BUNDLE)) if BUNDLE.is_dir() else "none"
        if done.returncode or found != entry.bundle:
            raise Lost(
                f"{entry.tag}: expected the bundle {entry.bundle[:12]} and its reports in DVC's remote or cache, got "
                f"bundle {found[:12]}: {' '.join(done.stderr.split())[-200:]}; push them from where they are"
            )
        register(entry.bundle, {})


@dataclass(frozen=True)
class _Models:
    """The project's registered model."""

    client: "MlflowClient"
    store: tracking.Tracking
    name: str
    aliases: Mapping[str, str]

    def versions(self) -> "dict[str, ModelVersion]":
        """The version of each bundle: the oldest, should two machines have made one at the same moment."""
        found = sorted(self.client.search_model_versions(f"name = '{self.name}'"), key=lambda made: -int(made.version))
        return {version.tags["bundle"]: version for version in found if "bundle" in version.tags}

    def add(self, bundle: str) -> "ModelVersion":
        """A version whose source is the model that the run of the pipeline in the current directory logged."""
        run = self.store.pipeline(Repository())
        model = self.client.get_logged_model(run.data.tags["model"].rpartition("/")[2])
        self._check(model.artifact_location, bundle)
        location, tags = model.artifact_location, {"bundle": bundle}
        made = self.client.create_model_version(
            self.name, location, run.info.run_id, tags, model_id=model.model_id, await_creation_for=0
        )
        first = self.versions().get(bundle, made)
        if first.version != made.version:
            self.client.delete_model_version(self.name, made.version)
        return first

    def _check(self, source: str, bundle: str) -> None:
        from mlflow.artifacts import download_artifacts

        with TemporaryDirectory() as scratch:
            download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=self.client.tracking_uri)
            found = files_hash(folder_files(next(Path(scratch).rglob("contract.json")).parent))
        if found != bundle:
            raise InputError(
                f"expected {source}, which MLflow keeps for this run, to be bundle {bundle[:12]}, got {found[:12]}: "
                "the same code and data gave another one before; delete its runs in MLflow, and register anew"
            )

    def tag(self, version: "ModelVersion", tags: Mapping[str, str]) -> None:
        """Let these be the version's tags; an empty one is none."""
        for key, value in tags.items():
            if value and version.tags.get(key) != value:
                self.client.set_model_version_tag(self.name, version.version, key, value)
            elif not value and key in version.tags:
                self.client.delete_model_version_tag(self.name, version.version, key)

    def point(self, wanted: "Mapping[str, ModelVersion | None]") -> None:
        """Let aliases point at these versions, None for nowhere; a champion challenges no more."""
        numbers = {alias: str(version.version) if version else None for alias, version in wanted.items()}
        if self.aliases.get("challenger", "") == numbers.get("champion"):
            numbers["challenger"] = None
        for alias, number in numbers.items():
            if number is None and alias in self.aliases:
                self.client.delete_registered_model_alias(self.name, alias)
            elif number is not None and self.aliases.get(alias) != number:
                self.client.set_registered_model_alias(self.name, alias, number)


@contextmanager
def _opened() -> Iterator[_Models]:
    with tracking.opened() as store:
        name = tracking.project()
        found = store.client.search_registered_models(f"name = '{name}'")
        model = found[0] if found else store.client.create_registered_model(name)
        aliases = {alias: str(number) for alias, number in model.aliases.items()}
        yield _Models(store.client, store, name, aliases)


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what MLflow raises into what a person can read, and wait for a locked database no longer than they would."""
    tracking.check_server()
    database = Path(anchor(), "mlflow.db")
    try:
        if not os.environ.get("MLFLOW_TRACKING_URI") and database.is_file():
            with closing(sqlite3.connect(database, timeout=_PATIENCE_S)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        yield
    except InputError:
        raise
    except Exception as error:
        where = os.environ.get("MLFLOW_TRACKING_URI") or database.name
        if not isinstance(error, sqlite3.Error) and not type(error).__module__.startswith(("mlflow", "sqlalchemy")):
            raise
        said = re.sub(r"//[^/\s]*@", "//", f"{where} gave: {' '.join(str(error).split())[:300]}")
        raise InputError(
            f"expected MLflow's registry to answer, {said}; see that no other program holds it, that it runs and lets "
            "you in, then run this again (`python -m flows.registry` catches up with the ledger)"
        ) from error


if __name__ == "__main__":
    run(ledger.decided(registry), tracked=False, failed=2)
