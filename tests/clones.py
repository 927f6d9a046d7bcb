"""Scratch clones of the repository as it stands, uncommitted changes included."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
_OF_THIS_RUN = ("DVC_", "MLFLOW_", "PREFECT_", "PYTEST_", "COV_", "GITHUB_")


@dataclass(frozen=True)
class Clone:
    """A clone in a folder of its own, with the repository's Python."""

    path: Path

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; its output is shown where the test fails."""
        done = subprocess.run(
            command, cwd=self.path, env=environment(**env), capture_output=True, text=True, check=False, timeout=600
        )
        sys.stdout.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}"
        return done

    def dvc(self, *arguments: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, check=check, **env)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            command, cwd=self.path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def edit_params(self, **changes: Any) -> None:
        """Change parameters, named as in `train__seed`."""
        file = self.path / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for name, value in changes.items():
            section, _, key = name.partition("__")
            params[section][key] = value
        file.write_text(yaml.safe_dump(params, sort_keys=False))

    def hashes(self) -> dict[str, str]:
        """The hash of every output, as dvc.lock has it."""
        lock = yaml.safe_load((self.path / "dvc.lock").read_text())
        return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def environment(**extra: str) -> dict[str, str]:
    """A user's environment: another Python first on the path, the repository's DVC last, no variable of this run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_THIS_RUN)}
    kept.pop("VIRTUAL_ENV", None)
    inherited = [folder for folder in os.environ["PATH"].split(os.pathsep) if not folder.startswith(str(ROOT))]
    path = [str(Path(sys.base_prefix) / "bin"), *inherited, str(ROOT / ".venv/bin")]
    return {**kept, "PATH": os.pathsep.join(path), **extra}


def make_clone(path: Path) -> Clone:
    """Clone what git tracks or would track, commit it, and lend it this repository's virtual environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, path / name)  # a lock that looks newer would be installed again
    (path / ".venv").symlink_to(ROOT / ".venv")
    clone = Clone(path)
    clone.run("git", "init", "--quiet", "--initial-branch=main")
    clone.run("git", "config", "user.email", "tests@example.org")
    clone.run("git", "config", "user.name", "Tests")
    (path / ".git/info/exclude").write_text("/.venv\n")
    clone.run("git", "add", "--all")
    clone.run("git", "commit", "--quiet", "--message", "as it stands")
    return clone


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills for whoever comes first, and that is there for all other tests and workers."""
    done = folder.with_name(f"{folder.name} is made")
    with folder.with_name(f"{folder.name} is awaited").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
