"""The pipeline on flights, as `dvc` runs it: the same bytes anywhere, whatever happened before."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.clones import ROOT, Clone, make_clone

FOLDERS = {"preprocess": "prepared", "tune": "tuning", "train": "bundle", "evaluate": "reports"}
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])


def test_two_clones_in_different_folders_give_the_same_hashes(
    undisturbed: Clone, small: Callable[[Path], Clone], tmp_path: Path
) -> None:
    other = small(tmp_path / "other")
    other.dvc("repro")
    assert other.hashes() == undisturbed.hashes()


def test_forced_run_gives_the_same_hashes(undisturbed: Clone) -> None:
    before = undisturbed.hashes()
    undisturbed.dvc("repro", "--force")
    assert undisturbed.hashes() == before


def test_outputs_hold_no_path_and_no_home(undisturbed: Clone) -> None:
    for file in (path for name in ("bundle", "reports", "tuning") for path in (undisturbed.path / name).rglob("*")):
        if file.is_file():
            assert str(undisturbed.path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("stage", STAGES)
def test_killed_stage_run_again_gives_the_same_hashes(
    stage: str, undisturbed: Clone, small: Callable[[Path], Clone], tmp_path: Path, killing: list[subprocess.Popen[str]]
) -> None:
    clone = small(tmp_path / "killed")
    before = recorded(clone, stage)
    process = clone.start("dvc", "repro", stage)
    killing.append(process)
    assert process.stdout is not None
    for line in process.stdout:
        if f"running {stage} directly" in line:
            break
    if stage == "tune":  # between two trials
        _until(
            lambda: any(b'"op_code":6' in log.read_bytes() for log in clone.path.glob(".tuning/*.log")), pause_s=0.01
        )
    else:  # while it writes
        folder = clone.path / FOLDERS[stage]
        _until(lambda: folder.is_dir() or any(clone.path.glob(".new.*")), pause_s=0)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert recorded(clone, stage) == before
    clone.dvc("repro")
    assert clone.hashes() == undisturbed.hashes()
    left = [p for p in clone.path.rglob(".new.*") if ".venv" not in p.parts]
    assert left == []


def test_unchanged_parameters_run_nothing_and_a_changed_one_only_what_reads_it(
    undisturbed: Clone, small: Callable[[Path], Clone], tmp_path: Path
) -> None:
    clone = small(tmp_path / "edited")
    for name in ("dvc.lock", "mlflow.db", "mlartifacts"):
        clone.run("cp", "-r", str(undisturbed.path / name), ".")
    clone.run("cp", "-r", f"{undisturbed.path}/.dvc/cache/.", ".dvc/cache")
    clone.dvc("checkout")
    assert "Running" not in clone.dvc("repro").stdout
    clone.edit_params(evaluate__resamples=101)
    ran = clone.dvc("repro").stdout
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in ran] == ["evaluate"]


@pytest.mark.parametrize("mode", ["--temp", "--queue"])
def test_experiment_in_a_temporary_folder_uses_the_repositorys_python(
    mode: str, small: Callable[[Path], Clone], tmp_path: Path
) -> None:
    clone = small(tmp_path / "an experiment")
    clone.dvc("exp", "run", mode, "--name", "tried", "--set-param", "tune.trials=2")
    if mode == "--queue":
        clone.dvc("queue", "start")
        _until(lambda: "Success" in clone.dvc("queue", "status").stdout, limit_s=90)
    shown = json.loads(clone.dvc("exp", "show", "--json").stdout)
    assert "tried" in json.dumps(shown)
    assert "roc_auc" in json.dumps(shown)
    assert (clone.path / "mlflow.db").is_file()


def test_bare_clone_pulls_the_recorded_outputs_and_runs_nothing(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "bare")
    clone.dvc("pull", "bundle", "reports", "data.dvc")
    assert json.loads((clone.path / "reports/metrics.json").read_text())["model"]
    ran = clone.dvc("repro", "--pull", "--allow-missing")
    assert "Running" not in ran.stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize("stage", STAGES)
def test_full_disk_is_said_and_leaves_nothing_half_written(stage: str, undisturbed: Clone, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    script = (
        'mount -t tmpfs -o size=$2m tmpfs "$1" && cp -r . "$1/clone" && cd "$1/clone" && '
        'for out in $4; do rm -rf "$out"; done && '
        'for filler in 1 2 3; do cat /dev/zero > filler$filler 2> /dev/null; done; '
        '.venv/bin/python -m flows.$3; code=$?; ls -A . prepared 2>/dev/null; exit $code'
    )  # fmt: skip
    copy.mkdir()
    outputs = " ".join(out for out in undisturbed.hashes() if out.startswith(FOLDERS[stage]))
    done = undisturbed.run(
        "unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(copy), "400", stage, outputs, check=False
    )
    assert done.returncode == 1
    assert f"{stage}: expected room for the outputs, the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert ".new." not in done.stdout


def recorded(clone: Clone, stage: str) -> object:
    """What dvc.lock says of a stage."""
    return yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"].get(stage)


def _until(condition: Callable[[], bool], limit_s: float = 60, pause_s: float = 0.1) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)


WATCHER = """
import runpy, sys, types
import flows
tracking = types.ModuleType("flows.tracking")  # it reads much, and writes no output
tracking.check_server = tracking.log_stage = lambda *_: None
flows.tracking = sys.modules["flows.tracking"] = tracking
read = set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[1] in ("r", "rb"):
        read.add(arguments[0])
sys.addaudithook(watch)
stage = sys.argv[1]
sys.argv = [stage]
runpy.run_module(f"flows.{stage}", run_name="__main__")
read |= {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
read.add(f"flows/{stage}.py")  # run as the program: no module of sys.modules, and maybe from its bytecode
print("READ", *sorted(read), sep="\\n")
"""


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_reads_is_declared_and_every_declared_one_is_read(
    stage: str, undisturbed: Clone
) -> None:
    declared = yaml.safe_load((undisturbed.path / "dvc.yaml").read_text())["stages"][stage]
    # These carry a stage and cannot change what it writes: dvc.yaml says so, too.
    carriers = {f"flows/{name}.py" for name in ("stage", "server", "tracking", "repository", "model")}
    done = undisturbed.run(str(ROOT / ".venv/bin/python"), "-c", WATCHER, stage, PYTHONPATH=".:src")
    found = {_below(undisturbed.path, name) for name in done.stdout.partition("READ\n")[2].splitlines()}
    read = {
        name for name in found
        if name and not name.startswith(".") and not name.endswith(".pyc")
    }  # fmt: skip
    deps = [*declared["deps"], "params.yaml"]
    assert {name for name in read - carriers if not any(name == d or name.startswith(f"{d}/") for d in deps)} == set()
    unread = {d for d in deps if not any(name == d or name.startswith(f"{d}/") for name in read)}
    assert unread <= {"requirements.lock"}  # the packages are an input that no stage opens


def _below(root: Path, name: str) -> str | None:
    path = root / name  # not resolved: .venv is a link here
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None
