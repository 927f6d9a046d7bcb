"""Registering: the bundle in the working tree becomes one run and one registered version in MLflow, the challenger.
Change here to ask more of what is registered. `python -m flows.register` exits with 0, with 1 where it refuses.
"""

import argparse
import json
from pathlib import Path

import yaml

from flows import ledger, registry, tracking
from flows.ledger import Refused
from flows.repository import Repository
from flows.stage import run, say
from pipeline.canonical import file_hash, files_hash, folder_files
from pipeline.errors import InputError

LOCK, INSPECTED = Path("dvc.lock"), Path("inspection/gates.json")
_RECORDS = ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc")


def register(dirty: bool = False) -> None:
    """Register the bundle once, however often it is asked for. `dirty`: whatever git has not committed."""
    changed = uncommitted()
    if changed and not dirty:
        raise Refused(
            f"expected a working tree as it is committed, but {', '.join(changed)} differ; commit them, bring "
            "what is missing (`dvc repro --pull`), or register it as it is: --dirty"
        )
    flown, bundle = ledger.entries(), bundle_hash()
    registry.catch_up(flown)
    has_flown = bundle in [entry.bundle for entry in flown]
    tags = {} if has_flown else described(bundle, changed)
    version = registry.register(bundle, tags, challenges=bundle != getattr(ledger.newest(flown), "bundle", None))
    say(f"registered: bundle {bundle[:12]} is version {version}")


def described(bundle: str, changed: list[str]) -> dict[str, str]:
    """The tags of a version that has not flown."""
    told = json.loads(INSPECTED.read_bytes()) if INSPECTED.is_file() else {}
    is_of_this = (told.get("bundle"), told.get("dvc.lock")) == (bundle, file_hash(LOCK))
    airworthy = str(told["airworthy"]).lower() if is_of_this else "not inspected"
    return {"git.commit": ledger.git("rev-parse", "HEAD"), "airworthy": airworthy, "dirty": ", ".join(changed)[:5000]}


def bundle_hash() -> str:
    """What the bundle on disk is known by; InputError where there is none."""
    if not (registry.BUNDLE / "contract.json").is_file():
        raise InputError(f"expected a bundle in {registry.BUNDLE}/, found none; run `dvc pull` or `dvc repro`")
    return files_hash(folder_files(registry.BUNDLE))


def uncommitted(*also: str) -> list[str]:
    """What goes into the model, or is named, and differs: from git's last commit, or from dvc.lock and data.dvc."""
    repository, stages = Repository(), yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    paths = {dep for stage in stages.values() for dep in stage["deps"]}.union(_RECORDS, also)
    status = ledger.git("status", "--porcelain", "--untracked-files=all", "--", *sorted(paths))
    found = [line.split(maxsplit=1)[1] for line in status.splitlines()]
    for stage in repository.stages:
        found += repository.differing(stage, tracking.logged(repository, stage))
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.register", description=register.__doc__)
    parser.add_argument("--dirty", action="store_true", help="register what is not committed, too")
    run(ledger.decided(register), vars(parser.parse_args()), tracked=False, failed=2)
