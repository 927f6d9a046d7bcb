"""The one command: the data pulled, every stage run, and whether the result is the recorded one. Change here to say
more at its end."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from flows import server, tracking
from flows.repository import leaves
from flows.stage import child_environment, run, say
from pipeline.compare import EQUIVALENT, golden_gap
from pipeline.errors import InputError

LOCK = Path("dvc.lock")
GOLDEN, LINEAGE = Path("bundle/golden.json"), Path("bundle/lineage.json")
NEXT = """
next: `make ui` shows the runs (MLflow, Prefect), `make test` proves the repository, and with your own src/problem/
`.venv/bin/python -m dvc repro` runs what your change touches"""


def repro() -> int:
    """Run every stage, compare its outputs with those that dvc.lock records, and inspect the model; returns what the
    inspection returns."""
    record = LOCK.read_text() if LOCK.is_file() else "{}"
    dvc("repro", "--force")
    log_missing()
    say("\n" + Path("reports/summary.md").read_text())
    say(verdict(record) + "\n")
    code = inspected()
    say(NEXT)
    return code


def inspected() -> int:
    """Inspect the model, in a process of its own: 0 for airworthy, 1 for grounded, 2 where it could not be."""
    command = [sys.executable, "-m", "flows.inspect"]
    return subprocess.run(command, env=child_environment(), check=False).returncode  # noqa: S603 - the project's own


def dvc(*arguments: str) -> None:
    """Run a DVC command, its output shown as it comes."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], env=child_environment(), check=False)  # noqa: S603 - DVC
    if done.returncode:
        raise InputError(f"expected `dvc {' '.join(arguments)}` to succeed, it ended with {done.returncode}; see above")


def verdict(record: str) -> str:
    """How the outputs on disk compare with a recorded dvc.lock, which stays where only the platform differs.

    InputError where the inputs are the same, and the outputs are not even equivalent.
    """
    before, after = (yaml.safe_load(text).get("stages", {}) for text in (record, LOCK.read_text()))
    made, known = outputs(after), outputs(before)
    if not known:
        return f"recorded: {len(made)} outputs, in dvc.lock for the first time"
    different = _changed(known, made)
    if changed := _changed(inputs(before), inputs(after)):
        return (
            f"changed inputs: {', '.join(changed)}; dvc.lock now records the outputs that follow from them "
            f"({len(different)} of {len(made)} are new)"
        )
    if not different:
        return f"reproduced: {len(made)} of {len(made)} outputs have the hash that dvc.lock records"
    LOCK.write_text(record)
    count = f"{len(different)} of {len(made)} outputs ({', '.join(different)})"
    ours, here = (json.loads(path.read_text()) for path in (GOLDEN, LINEAGE))
    dvc("pull", "--quiet", "--force", "--allow-missing", *different)
    gap, there = golden_gap(ours, json.loads(GOLDEN.read_text())), json.loads(LINEAGE.read_text())
    if gap <= EQUIVALENT and here["platform"] != there["platform"]:
        said = "another platform, and the recorded ones are back in place"
        return f"equivalent: {count} differ in bytes, scores by {gap:.1g} at most: {said}"
    raise InputError(
        f"expected the outputs that dvc.lock records, since no input changed, but {count} differ, scores by {gap:.1g}; "
        "look for a stage that is not deterministic, or for packages that are not the locked ones (`make clean repro`)"
    )


def outputs(stages: Mapping[str, Any]) -> dict[str, str]:
    """The recorded hash of every output."""
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}


def inputs(stages: Mapping[str, Any]) -> dict[str, object]:
    """What came from outside: commands, parameters, and the dependencies that no stage makes."""
    made = outputs(stages)
    found: dict[str, object] = {}
    for name, stage in stages.items():
        found[f"{name}'s command"] = stage["cmd"]
        for dep in stage.get("deps", []):
            if not any(PurePath(dep["path"]).is_relative_to(path) for path in made):
                found[dep["path"]] = dep["md5"]
        for params in stage.get("params", {}).values():
            found |= leaves(params)
    return found


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    return [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]


def log_missing() -> None:
    """Log to MLflow what it lacks of the run; where that fails, say so and go on."""
    try:
        left = tracking.complete()
    except Exception as error:  # what MLflow lacks can be logged later; what ran has run
        say(f"MLflow did not take all of the run ({error}); `python -m flows.tracking` logs what is missing")
    else:
        if left:
            say(f"not in MLflow, since their files are not the recorded ones: {', '.join(left)}")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m flows.repro", description=repro.__doc__).parse_args()
    own = server.Tied(None) if os.environ.get("PREFECT_API_URL") else server.start()
    try:
        try:
            dvc("pull", "data.dvc")  # while the server starts
        except InputError as error:
            sys.exit(f"repro: {error}")
        if not os.environ.get("PREFECT_API_URL") and own.url() is None:
            say("Prefect's server could not start (.prefect/server.log says why): going on without it")
        run(repro, {}, tracked=False)
    finally:
        own.stop()
