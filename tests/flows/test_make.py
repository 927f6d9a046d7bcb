import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
UV = "uv==2 \\\n    --hash=sha256:bb\n"
TOOLS = ["sh", "make", "awk", "sed", "rm", "mkdir", "touch", "find", "cat", "echo", "env", "git"]


class Clone:
    """A clone with the project's Makefile, in a path with a space, and a machine with few programs."""

    def __init__(self, folder: Path) -> None:
        self.path, self.bin = folder / "a clone", folder / "bin"
        self.path.mkdir(parents=True)
        self.bin.mkdir()
        (self.path / ".git").mkdir()
        shutil.copy(REPOSITORY / "Makefile", self.path)
        (self.path / "requirements.lock").write_text(f"a==1 \\\n    --hash=sha256:aa\n{UV}z==3\n")
        (self.path / "tests/serving").mkdir(parents=True)
        (self.path / "tests/serving/requirements.lock").write_text("s==4\n")
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")

    def program(self, name: str, script: str) -> None:
        """Put a program on the path."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def python(self, name: str) -> None:
        """Put a real Python on the path."""
        self.program(name, f'exec "{sys.base_prefix}/bin/python3.{sys.version_info.minor}" "$@"')

    def recipe(self, line: str) -> None:
        """Add a command `show`."""
        makefile = self.path / "Makefile"
        makefile.write_text(f"{makefile.read_text()}\nshow: .venv/.ready\n\t@{line}\n")

    def make(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run make, with nothing else around."""
        environment = {"PATH": str(self.bin), "HOME": str(self.bin), **more}
        command = ["make", *arguments]
        return subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.fixture
def ready(clone: Clone) -> Clone:
    """A clone on a machine with Python and with a uv that notes how it was called."""
    clone.python("python3")
    clone.program("uv", f'echo "$@" >> "{clone.path}/uv.log"')
    return clone


def calls(clone: Clone) -> list[str]:
    log = clone.path / "uv.log"
    return log.read_text().splitlines() if log.exists() else []


SYNC = "pip sync --quiet --require-hashes --compile-bytecode --python .venv/bin/python requirements.lock"
SYNC_SERVING = SYNC.replace(".venv/", "serving/.venv/").replace(" requirements", " tests/serving/requirements")


def test_make_alone_lists_the_commands(clone: Clone) -> None:
    listed = clone.make().stdout.splitlines()
    commands = ["repro", "test", "check", "check-workflows", "check-deploy", "audit", "rules", "bench", "bench-serving"]
    commands += ["ui", "schedule", "serve", "image", "smoke", "test-image", "sbom", "lock", "check-lock", "clean"]
    assert [line.split()[1] for line in listed] == commands
    assert all(len(line.split()) > 4 for line in listed)
    assert sorted(path.name for path in clone.path.iterdir()) == [".git", "Makefile", "requirements.lock", "tests"]


def test_setting_up_installs_the_lock_once(ready: Clone) -> None:
    first = ready.make(".venv/.ready")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == "installing the locked packages into .venv, once\n"
    second = ready.make(".venv/.ready")
    assert (second.returncode, second.stderr) == (0, "")
    assert calls(ready) == [SYNC]
    assert not (ready.path / ".venv/.unfinished").exists()


def test_a_renewed_lock_is_installed(ready: Clone) -> None:
    ready.make(".venv/.ready")
    os.utime(ready.path / "requirements.lock", (2**32, 2**32))
    ready.make(".venv/.ready")
    assert calls(ready) == [SYNC, SYNC]


def test_the_service_has_an_environment_of_its_own(ready: Clone) -> None:
    first = ready.make("serving/.venv/.ready")
    assert (first.returncode, first.stderr) == (0, "")
    told = "installing the packages of tests/serving/requirements.lock into serving/.venv, once"
    assert first.stdout.splitlines()[-1] == told
    ready.make("serving/.venv/.ready")
    assert calls(ready) == [SYNC, SYNC_SERVING]
    os.utime(ready.path / "tests/serving/requirements.lock", (2**32, 2**32))
    ready.make("serving/.venv/.ready")
    assert calls(ready) == [SYNC, SYNC_SERVING, SYNC_SERVING]
    home = (ready.path / "serving/.venv/pyvenv.cfg").read_text()
    assert str(ready.path / ".venv") not in re.search("home = (.*)", home)[1]


def test_the_services_environment_follows_the_projects_python(ready: Clone) -> None:
    ready.make("serving/.venv/.ready")
    for link in [*ready.path.glob(".venv/bin/python*"), *ready.path.glob("serving/.venv/bin/python*")]:
        link.unlink()
    assert ready.make("serving/.venv/.ready").returncode == 0
    assert calls(ready) == 2 * [SYNC, SYNC_SERVING]
    assert (ready.path / "serving/.venv/bin/python").exists()


def test_the_service_starts_in_its_environment_on_the_port_that_was_named(ready: Clone) -> None:
    ready.make("serving/.venv/.ready")
    (ready.path / "serving/__init__.py").touch()
    said = "import os, sys; print(sys.prefix, os.environ['SERVING_PORT'], os.environ['SERVING_INSPECTED'])"
    (ready.path / "serving/__main__.py").write_text(said)
    for arguments, port in (((), "8000"), (("PORT=9000",), "9000"), (("SERVING_PORT=9001",), "9001")):
        assert ready.make("serve", *arguments).stdout == f"{ready.path}/serving/.venv {port} 0\n"
    (ready.path / "serving/requirements-sklearn.lock").touch()
    (ready.path / "bundle").mkdir()
    for runtime, environment in (("onnx", ".venv"), ("sklearn", ".venv-sklearn")):
        (ready.path / "bundle/contract.json").write_text(json.dumps({"runtime": runtime}, indent=1))
        assert ready.make("serve").stdout.splitlines()[-1] == f"{ready.path}/serving/{environment} 8000 0"


def test_an_interrupted_set_up_begins_again(ready: Clone) -> None:
    ready.program("uv", "exit 1")
    ready.program("python3", f'case "$*" in *pip*) exit 1;; esac; exec "{sys.base_prefix}/bin/python3" "$@"')
    assert ready.make(".venv/.ready").returncode != 0
    assert (ready.path / ".venv/.unfinished").exists()
    (ready.path / ".venv/left").touch()
    ready.python("python3")
    ready.program("uv", f'echo "$@" >> "{ready.path}/uv.log"')
    assert ready.make(".venv/.ready").returncode == 0
    assert calls(ready) == [SYNC]
    assert not (ready.path / ".venv/left").exists()


def test_an_environment_whose_python_is_gone_is_made_again(ready: Clone) -> None:
    ready.make(".venv/.ready")
    for link in (ready.path / ".venv/bin").glob("python*"):
        link.unlink()
    assert ready.make(".venv/.ready").returncode == 0
    assert calls(ready) == [SYNC, SYNC]


def test_another_active_environment_and_its_path_do_not_leak_in(ready: Clone) -> None:
    ready.recipe("$(PY) -c 'import sys; print(sys.prefix, sys.path)'")
    done = ready.make("show", VIRTUAL_ENV="/elsewhere", PYTHONPATH="/elsewhere", PYTHONHOME="/elsewhere")
    assert done.returncode == 0, done.stderr
    assert str(ready.path / ".venv") in done.stdout
    assert "/elsewhere" not in done.stdout


def test_recipes_find_the_environment_first(ready: Clone) -> None:
    ready.recipe("python -c 'import sys; print(sys.prefix)'")
    assert ready.make("show").stdout.splitlines()[-1] == str(ready.path / ".venv")


def test_a_bare_tool_of_the_environment_stays_inside_the_clone(ready: Clone) -> None:
    ready.make(".venv/.ready")
    code = "import os; print(os.environ['DVC_SITE_CACHE_DIR'], os.environ['ORT_DISABLE_TELEMETRY'])"
    command = [str(ready.path / ".venv/bin/python"), "-c", code]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{ready.path}/.cache/dvc 1\n"


def test_a_git_worktree_is_a_clone(ready: Clone) -> None:
    (ready.path / ".git").rmdir()
    (ready.path / ".git").write_text("gitdir: elsewhere\n")
    assert ready.make(".venv/.ready").returncode == 0


def test_a_downloaded_archive_is_not_a_clone(ready: Clone) -> None:
    (ready.path / ".git").rmdir()
    done = ready.make("test")
    assert done.returncode != 0
    assert "expected a git clone, found a folder without .git" in done.stderr
    assert not (ready.path / ".venv").exists()


def test_an_old_python_is_named_and_not_used(clone: Clone) -> None:
    clone.program("python3", '[ "$1" = --version ] && echo Python 3.9.18 && exit; exit 1')
    done = clone.make("repro")
    assert done.returncode != 0
    assert "make: expected Python 3.11 to 3.13 on the path, found python3 (Python 3.9.18); install one" in done.stderr
    assert not (clone.path / ".venv").exists()


def test_no_python_at_all_is_said(clone: Clone) -> None:
    assert "found none; install one, or name it: make PYTHON=/its/path" in clone.make("repro").stderr


def test_a_named_python_is_the_only_one_tried(ready: Clone) -> None:
    ready.program("old", '[ "$1" = --version ] && echo Python 3.10.1 && exit; exit 1')
    assert "found old (Python 3.10.1)" in ready.make(".venv/.ready", "PYTHON=old").stderr


def test_a_python_without_its_venv_module_is_said(clone: Clone) -> None:
    clone.program("python3.12", 'case "$*" in *venv*) echo "No module named venv" >&2; exit 1;; esac; exit 0')
    done = clone.make("repro")
    assert "make: expected Python's venv module, python3.12 has none that works" in done.stderr
    assert "apt install python3-venv" in done.stderr


def test_a_package_index_that_does_not_answer_is_said(clone: Clone) -> None:
    clone.python("python3")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    done = clone.make("repro", **nowhere)
    assert done.returncode != 0
    assert "make: expected a package index that answers and holds what requirements.lock names" in done.stderr
    assert (clone.path / ".venv/.unfinished").exists()
    assert (clone.path / ".venv/uv.txt").read_text() == UV


def test_cleaning_takes_what_was_made_and_leaves_the_rest(ready: Clone) -> None:
    ready.make(".venv/.ready")
    ready.make("serving/.venv/.ready")
    made = ["bundle/model.onnx", ".prefect/prefect.db", "src/problem/__pycache__/a.pyc", "serving/__pycache__/a.pyc"]
    for name in [*made, "src/problem/a.py", "data/a"]:
        (ready.path / name).parent.mkdir(parents=True, exist_ok=True)
        (ready.path / name).touch()
    (ready.path / "flows").mkdir()
    done = ready.make("clean")
    assert done.returncode == 0, done.stderr
    assert "data/ and .dvc/cache stay" in done.stdout
    left = sorted(path.relative_to(ready.path).as_posix() for path in ready.path.rglob("*") if path.is_file())
    assert left == [
        "Makefile",
        "data/a",
        "requirements.lock",
        "src/problem/a.py",
        "tests/serving/requirements.lock",
        "uv.log",
    ]


def test_every_command_is_phony_and_every_module_exists() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    commands = re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE)
    assert set(commands) <= set(re.search(r"\.PHONY: (.*)", text)[1].split())
    for module in re.findall(r"-m ((?:flows|serving|tests)\.[a-z_]+)", text):
        assert (REPOSITORY / (module.replace(".", "/") + ".py")).is_file()
