"""Pruning: the remote that lies in the repository keeps what the ledger and main name. Change here to keep more.
`python -m flows.prune` says what else it holds, and removes it where told; git's history keeps what was committed.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from flows import ledger
from flows.stage import run, say
from pipeline.errors import InputError

STORE = ".dvc/store"
_EMBEDDED = "[core]\nremote = embedded\n['remote \"embedded\"']\nurl = store\n"  # whatever else is configured
# As `dvc gc --cloud --all-branches --all-tags`; its --force would take a folder that the remote lacks for an empty one.
_COLLECT = "from dvc.repo import Repo; Repo().gc(cloud=True, all_branches=True, all_tags=True)"


def prune(drop: bool = False) -> None:
    """Find what no entry of the ledger, nor main, nor this commit names; `drop`: remove those files, for you to commit.
    InputError where the ledger or the remote is not all there: then nothing is removed."""
    entries, stored = ledger.entries(fetch=True), ledger.git("ls-files", STORE).splitlines()
    if not stored:
        raise InputError(f"expected a remote in {STORE}, nothing is committed there; for another, see `dvc gc --help`")
    main = _main()
    with ledger.checked_out("HEAD") as clone:
        (clone / ".dvc/cache").unlink()  # DVC would empty it too, and it is this one's
        (clone / ".dvc/config.local").write_text(_EMBEDDED)
        ledger.git("-C", str(clone), "branch", "--force", "main", main)
        _collect(clone)
        left = [Path(name) for name in stored if not (clone / name).exists()]
    size = sum(path.stat().st_size for path in left if path.exists())
    held = f"{len(left)} of {len(stored)} files in {STORE} ({size / 1e6:.1f} MB)"
    said = f"{held} are of no use to main and the {len(entries)} entries of the ledger"
    if not drop:
        say(f"{said}; --drop removes them")
        return
    for path in left:
        path.unlink(missing_ok=True)
    say(f"{said}, and are gone; `git add {STORE}`, and commit")


def _main() -> str:
    """The commit of main, as origin has it, where there is one."""
    if "origin" not in ledger.git("remote").split():
        return ledger.git("rev-parse", "main^{commit}")
    ledger.git("fetch", "--quiet", "origin", "main")
    return ledger.git("rev-parse", "FETCH_HEAD")


def _collect(clone: Path) -> None:
    """Let DVC remove from the clone's remote what neither its branches nor its tags name."""
    done = subprocess.run([sys.executable, "-c", _COLLECT], cwd=clone, capture_output=True, text=True, check=False)  # noqa: S603 - DVC
    if done.returncode:
        said = "; ".join(line for line in done.stderr.splitlines() if line.startswith("dvc.exceptions."))
        raise InputError(f"expected DVC to tell what is in use, got: {said or done.stderr[-300:]}; nothing is removed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.prune", description=prune.__doc__)
    parser.add_argument("--drop", action="store_true", help="remove it")
    run(ledger.decided(prune), vars(parser.parse_args()), tracked=False, failed=2)
