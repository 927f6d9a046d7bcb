import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.repro import inputs

REPOSITORY = Path(__file__).parents[2]
TRAIN = """
    import json, os
    from pathlib import Path
    import yaml
    from flows.files import written_whole
    from flows.stage import run

    def train() -> None:
        data = float(Path("data/number.txt").read_text())
        factor = yaml.safe_load(Path("params.yaml").read_text())["train"]["factor"]
        score = data * factor + float(os.environ.get("PLATFORM_NOISE", "0"))
        with written_whole(Path("bundle")) as bundle:
            bundle.mkdir()
            (bundle / "golden.json").write_text(json.dumps({"rows": [data], "scores": [[score]]}))
            (bundle / "lineage.json").write_text(json.dumps({"platform": os.environ.get("PLATFORM", "one")}))
        with written_whole(Path("reports")) as reports:
            reports.mkdir()
            (reports / "summary.md").write_text(f"auc {score}")

    if __name__ == "__main__":
        run(train)
"""
STAGE = {
    "cmd": "python -m flows.train",
    "params": ["train"],
    "deps": ["data", "flows/train.py"],
    "outs": ["bundle", "reports"],
}
TRACKING = """
def check_server(): pass
def log_stage(stage, seconds): pass
def complete(): print("completed"); return []
"""
INSPECT = """
import os, sys
print("AIRWORTHY" if "GROUNDED" not in os.environ else "GROUNDED")
sys.exit("GROUNDED" in os.environ)
"""
DIRECTLY = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nobody there: faster


@pytest.fixture(scope="module")
def project(served):
    """A bare clone: its data is in the remote alone, and nothing is recorded yet."""
    for name in ("flows/repro.py", "flows/repository.py", "src/pipeline/compare.py"):
        served.write(name, (REPOSITORY / name).read_text())
    served.write("flows/tracking.py", TRACKING)
    served.write("flows/train.py", TRAIN)
    served.write("flows/inspect.py", INSPECT)
    served.write("params.yaml", "train:\n  factor: 0.5\n")
    served.write("dvc.yaml", yaml.safe_dump({"stages": {"train": STAGE}}))
    served.write(
        ".dvc/config",
        "[core]\nremote = embedded\nanalytics = false\nno_scm = true\nsite_cache_dir = .cache/dvc\n"
        "['remote \"embedded\"']\nurl = store\n",
    )
    served.write("data/number.txt", "1.5")
    (served.path / ".venv").symlink_to(sys.prefix)
    for command in (["add", "data"], ["push"]):
        served.run("dvc", *command).check_returncode()
    shutil.rmtree(served.path / "data")
    shutil.rmtree(served.path / ".dvc/cache")
    return served


def repro(project, **environment: str) -> subprocess.CompletedProcess[str]:
    return project.run("flows.repro", **environment)


def test_whoever_asks_what_repro_does_is_told_and_nothing_is_done(project) -> None:
    done = project.run("flows.repro", "--help", **DIRECTLY)
    assert done.stdout.startswith("usage: python -m flows.repro")
    assert not (project.path / "data").exists()


def test_repro_pulls_runs_every_stage_under_one_flow_and_says_what_came(project) -> None:
    done = repro(project)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "completed" in done.stdout
    assert "recorded: 2 outputs, in dvc.lock for the first time" in done.stdout
    assert "auc 0.75" in done.stdout
    assert "`make ui`" in done.stdout
    assert "AIRWORTHY" in done.stdout
    [parent] = project.api("flow_runs", flows={"name": {"any_": ["repro"]}})
    [child] = project.api("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [parent["id"]]}})
    assert (parent["state_type"], child["name"], child["state_type"]) == ("COMPLETED", "train", "COMPLETED")

    lock = project.path / "dvc.lock"
    record = lock.read_text()
    again = repro(project, **DIRECTLY)
    assert "reproduced: 2 of 2 outputs have the hash that dvc.lock records" in again.stdout
    assert lock.read_text() == record

    grounded = repro(project, **DIRECTLY, GROUNDED="yes")
    assert grounded.returncode == 1
    assert "reproduced: 2 of 2" in grounded.stdout

    made = (project.path / "bundle/golden.json").read_text()
    unsteady = repro(project, **DIRECTLY, PLATFORM_NOISE="1e-9")
    assert unsteady.returncode == 1
    assert "repro: expected the outputs that dvc.lock records" in unsteady.stderr

    near = repro(project, **DIRECTLY, PLATFORM_NOISE="1e-9", PLATFORM="another")
    assert near.returncode == 0, near.stderr
    assert "equivalent: 2 of 2 outputs (bundle, reports) differ in bytes, scores by 1e-09 at most" in near.stdout
    assert "the recorded ones are back in place" in near.stdout
    assert (project.path / "bundle/golden.json").read_text() == made
    assert lock.read_text() == record

    far = repro(project, **DIRECTLY, PLATFORM_NOISE="1e-3", PLATFORM="another")
    assert far.returncode == 1
    assert "repro: expected the outputs that dvc.lock records" in far.stderr
    assert "2 of 2 outputs (bundle, reports) differ, scores by 0.001" in far.stderr
    assert lock.read_text() == record

    project.write("params.yaml", "train:\n  factor: 0.25\n")
    changed = repro(project, **DIRECTLY)
    assert changed.returncode == 0
    assert "changed inputs: train.factor; dvc.lock now records the outputs that follow from them" in changed.stdout
    assert "(2 of 2 are new)" in changed.stdout
    assert lock.read_text() != record

    project.write("params.yaml", "train: {}\n")
    failed = repro(project, **DIRECTLY)
    assert failed.returncode == 1
    assert "KeyError: 'factor'" in failed.stderr
    assert "repro: expected `dvc repro --force` to succeed" in failed.stderr


def test_a_stage_s_output_is_no_input() -> None:
    stages: dict[str, Any] = {
        "tune": {"cmd": "a", "deps": [{"path": "data", "md5": "1"}], "outs": [{"path": "tuning", "md5": "2"}]},
        "train": {
            "cmd": "b",
            "deps": [{"path": "tuning/best.json", "md5": "3"}, {"path": "src/train.py", "md5": "4"}],
            "params": {"params.yaml": {"train": {"seed": 1}}},
        },
    }
    assert inputs(stages) == {
        "tune's command": "a",
        "data": "1",
        "train's command": "b",
        "src/train.py": "4",
        "train.seed": 1,
    }
