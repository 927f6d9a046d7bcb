"""Reproduction: an entry of the ledger made again from its commit, in a scratch clone. Change here to compare more.
`python -m flows.reproduce vN` exits with 0 where every hash agrees, 1 where one does not, 2 where it could not run.
"""

import argparse
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import yaml

from flows import ledger
from flows.repro import LINEAGE, LOCK, outputs
from flows.stage import run, say
from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError

PACKAGES = Path("requirements.lock")


def reproduce(version: str) -> int:
    """Run the pipeline of an entry again on its data, and say of every output whether it has the recorded hash."""
    known = {entry.tag: entry for entry in ledger.entries()}
    entry, here = known.get(ledger.tag_of(version)), PACKAGES.read_bytes()
    if entry is None:
        raise InputError(f"expected an entry of the ledger ({', '.join(known) or 'it is empty'}), got {version}")
    with ledger.checked_out(entry.tag) as clone, chdir(clone):
        if PACKAGES.read_bytes() != here:
            say(f"{entry.tag} was made with other packages than those installed, which run it now: hashes may differ")
        recorded = outputs(yaml.safe_load(LOCK.read_text())["stages"])
        _dvc("pull", "--quiet", "data.dvc")
        _dvc("repro", "--force")
        made = outputs(yaml.safe_load(LOCK.read_text())["stages"])
        agree = {path: made.get(path) == recorded[path] for path in recorded}
        agree["the bundle, by the ledger"] = files_hash(folder_files(Path("bundle"))) == entry.bundle
        platform = yaml.safe_load(LINEAGE.read_text())["platform"] if LINEAGE.is_file() else None
    for what, same in agree.items():
        say(f"{'agrees ' if same else 'DIFFERS'}  {what}")
    if all(agree.values()):
        say(f"{entry.tag}: reproduced")
        return 0
    say(f"{entry.tag}: not reproduced on {platform}; its bundle/lineage.json says on what it was made")
    return 1


def _dvc(*arguments: str) -> None:
    """Run DVC in the clone, which logs to no server."""
    own = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "DVC_ROOT")}
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=own, check=False)  # noqa: S603 - DVC
    if done.returncode:
        raise InputError(f"expected `dvc {' '.join(arguments)}` to succeed in the clone, it did not; see above")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description=reproduce.__doc__)
    parser.add_argument("version", metavar="vN", help="the entry, as `python -m flows.history` shows it")
    run(ledger.decided(reproduce), vars(parser.parse_args()), tracked=False, failed=2)
