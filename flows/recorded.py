"""Whether dvc.lock records what this commit makes, and DVC's remote holds that: then a pull request trains nothing.
Change here to ask more of a record. `python -m flows.recorded` exits with 0, with 1 where either is not so, and with 2
where it cannot tell; it runs no stage and changes no file.
"""

import json
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from flows import ledger
from flows.ledger import Refused
from flows.repository import Repository
from flows.stage import run, say
from pipeline.errors import InputError

STORE = Path(".dvc/store")  # the remote, where it lies in the repository
_NOTHING_TO_RUN = "Data and pipelines are up to date."


def recorded() -> None:
    """Refuse a commit whose stages would run anew, or whose results nobody else could pull; say what mends it."""
    with ledger.checked_out("HEAD") as clone:
        changed, lacking = changed_since(clone), lacking_in_remote(clone)
        store = [str(STORE)] if (clone / STORE).is_dir() else []
    if not (changed or lacking):
        say("recorded: dvc.lock is what this commit makes, and DVC's remote holds it")
        return
    wrong = [f"dvc.lock was made before {', '.join(changed[:5])} changed"] if changed else []
    wrong += [f"DVC's remote lacks {', '.join(lacking[:5])}"] if lacking else []
    mend = [".venv/bin/python -m dvc repro"] if changed else []
    mend += [".venv/bin/python -m dvc push", " ".join(["git add dvc.lock", *store]), "git commit"]
    raise Refused(
        f"expected dvc.lock, as committed, to be what this commit makes, and DVC's remote to hold it, but "
        f"{', and '.join(wrong)}; where the model is made, run\n  " + "\n  ".join(mend)
    )


def changed_since(clone: Path) -> list[str]:
    """What changed in a clone since its stages ran, and would make them run; outputs that are not there are taken to be
    the recorded ones. InputError where DVC cannot tell."""
    done = _dvc(clone, "repro", "--dry", "--allow-missing")
    if not done.returncode and _NOTHING_TO_RUN in done.stdout:
        return []
    stages = re.findall(r"(?:Running stage|failed to reproduce) '(.+?)'", done.stdout + done.stderr)
    if not stages:
        raise InputError(f"expected DVC to say what would run, got: {done.stderr.strip()[-300:]}; see dvc.yaml")
    with chdir(clone):
        repository = Repository()
        names = [name for stage in stages for name in repository.differing(stage, []) or [f"what {stage} reads"]]
    return list(dict.fromkeys(names))


def lacking_in_remote(clone: Path) -> list[str]:
    """What a clone's dvc.lock and data.dvc record, and DVC's remote does not hold; InputError where it is silent."""
    done = _dvc(clone, "status", "--cloud", "--json")
    if done.returncode:
        raise InputError(f"expected DVC's remote to answer, got: {done.stderr.strip()[-300:]}; see `dvc remote list`")
    return sorted(name for name, state in json.loads(done.stdout).items() if state in ("new", "missing"))


def _dvc(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)  # noqa: S603 - DVC


if __name__ == "__main__":
    run(ledger.decided(recorded), tracked=False, failed=2)
