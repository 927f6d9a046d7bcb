import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flows

OTHER_PYTHON = str(Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}")
PROBE = """
    import gc, json, os, sys
    import flows

    if __name__ == "__main__":
        print(json.dumps({
            "prefix": os.path.realpath(sys.prefix), "arguments": sys.argv[1:], "folder": os.getcwd(), "path": sys.path,
            "collector": gc.isenabled(), "environment": dict(os.environ), "anchor": flows.anchor(),
            "utf8": sys.flags.utf8_mode,
        }))
"""


@pytest.fixture
def clone(scratch):
    scratch.write("flows/probe.py", PROBE)
    (scratch.path / ".venv").symlink_to(sys.prefix)
    return scratch


def probe(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_package_parses_on_an_old_python() -> None:
    ast.parse(Path(flows.__file__).read_text(), feature_version=(3, 6))


def test_importing_the_package_changes_nothing_but_the_path() -> None:
    code = """
import gc, os, sys
environment, path = dict(os.environ), list(sys.path)
import flows
assert dict(os.environ) == environment and gc.isenabled()
assert [p for p in sys.path if p not in path] == [os.path.join(flows.ROOT, "src")], sys.path
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=flows.ROOT)


def test_another_python_gives_way_to_the_repository_s_own(clone) -> None:
    found = probe(clone.run("flows.probe", "a b", "--c", "", python=OTHER_PYTHON, VIRTUAL_ENV="/elsewhere"))
    assert found["prefix"] == os.path.realpath(sys.prefix)
    assert (found["arguments"], found["folder"]) == (["a b", "--c", ""], str(clone.path))


def test_the_interpreter_s_own_options_are_kept(clone) -> None:
    command = [OTHER_PYTHON, "-X", "utf8", "-m", "flows.probe"]
    done = subprocess.run(command, cwd=clone.path, env=clone.environment(), capture_output=True, text=True, check=False)
    assert probe(done)["utf8"] == 1


def test_the_repository_s_own_python_goes_straight_on(clone) -> None:
    assert "FLOWS_STARTED" not in probe(clone.run("flows.probe"))["environment"]


def test_a_process_started_from_a_flow_finds_its_python_too(clone) -> None:
    found = probe(clone.run("flows.probe", python=OTHER_PYTHON, FLOWS_STARTED="1"))
    assert found["prefix"] == os.path.realpath(sys.prefix)


def test_a_broken_environment_does_not_send_it_in_circles(clone) -> None:
    wrapper = clone.path / "other/bin/python"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    (clone.path / ".venv").unlink()
    (clone.path / ".venv").symlink_to(clone.path / "other")
    assert probe(clone.run("flows.probe"))["prefix"] == os.path.realpath(sys.prefix)


def test_a_copy_that_dvc_made_uses_the_clone_s_python_and_folders_but_its_own_code(clone, tmp_path: Path) -> None:
    copy = type(clone)(tmp_path / "copy")
    copy.write("flows/probe.py", PROBE)
    found = probe(copy.run("flows.probe", python=OTHER_PYTHON, DVC_ROOT=str(clone.path)))
    assert found["prefix"] == os.path.realpath(sys.prefix)
    assert (found["folder"], found["path"][0]) == (str(copy.path), str(copy.path / "src"))
    assert found["anchor"] == str(clone.path)
    assert found["environment"]["PREFECT_HOME"] == str(clone.path / ".prefect")


def test_an_experiment_in_a_temporary_folder_runs_on_the_clone_s_python(clone, tmp_path: Path) -> None:
    clone.write("dvc.yaml", "stages: {probe: {cmd: 'python -m flows.probe > \"$DVC_ROOT/probe.json\"'}}")
    clone.write(".dvc/config", "[core]\nanalytics = false\n")
    clone.write(".gitignore", ".venv\n__pycache__\n.cache\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], cwd=clone.path, check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(OTHER_PYTHON)
    first = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DVC_SITE_CACHE_DIR": str(clone.path / ".cache/dvc")}
    done = clone.run("dvc", "exp", "run", "--temp", **first)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((clone.path / "probe.json").read_text())
    assert found["prefix"] == os.path.realpath(sys.prefix)
    assert found["anchor"] == str(clone.path) != found["folder"]


def test_without_an_environment_it_runs_where_the_packages_are(clone) -> None:
    (clone.path / ".venv").unlink()
    assert probe(clone.run("flows.probe"))["prefix"] == os.path.realpath(sys.prefix)


def test_without_an_environment_and_packages_it_says_what_to_do(clone) -> None:
    (clone.path / ".venv").unlink()
    done = clone.run("flows.probe", python=OTHER_PYTHON, PYTHONNOUSERSITE="1")
    assert done.returncode == 1
    assert done.stderr.startswith("expected the project's packages")
    assert done.stderr.endswith("run `make repro` first\n")
    assert done.stderr.count("\n") == 1


def test_an_old_python_hears_that_it_is_old(clone) -> None:
    (clone.path / ".venv").unlink()
    package = clone.path / "flows/__init__.py"
    package.write_text(package.read_text().replace("OLDEST = (3, 11)", "OLDEST = (3, 99)"))
    done = clone.run("flows.probe")
    assert done.returncode == 1
    assert done.stderr.startswith("expected Python 3.11 or newer, this is 3.")
    assert done.stderr.count("\n") == 1


def test_a_program_starts_quiet_local_and_with_the_collector_off(clone) -> None:
    found = probe(clone.run("flows.probe", NO_PROXY="example.org", OMP_NUM_THREADS="64", PREFECT_HOME="/chosen"))
    assert not found["collector"]
    environment = found["environment"]
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["NO_PROXY"] == "example.org,127.0.0.1"
    assert environment["PREFECT_HOME"] == "/chosen"
    assert environment["MPLCONFIGDIR"] == f"{clone.path}/.cache/matplotlib"
    assert [environment[name] for name in ("DVC_NO_ANALYTICS", "DO_NOT_TRACK", "ORT_DISABLE_TELEMETRY")] == ["1"] * 3
