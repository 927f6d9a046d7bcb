import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from flows import environment, server
from tests.clones import made_once

REPOSITORY = Path(__file__).parents[2]
MACHINERY = ["flows/__init__.py", "flows/files.py", "flows/stage.py", "flows/server.py"]
MACHINERY += ["src/pipeline/__init__.py", "src/pipeline/errors.py"]
TRACKING = """
def check_server(): pass
def log_stage(stage, seconds): print(f"logged {stage}")
"""


class Scratch:
    """A small repository with the machinery of the flows, and tracking that only says what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in MACHINERY:
            self.write(name, (REPOSITORY / name).read_text())
        self.write("flows/tracking.py", TRACKING)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the repository."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """What a process in the repository starts with: nothing of this project's own runs."""
        ours = [*environment(), "DVC_ROOT", "FLOWS_PARENT", "PREFECT_API_URL", "PYTHONPATH", "MLFLOW_TRACKING_URI"]
        return {name: value for name, value in os.environ.items() if name not in ours} | more

    def run(
        self, module: str, *arguments: str, python: str = sys.executable, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a module of the repository to its end."""
        command = [python, "-m", module, *arguments]
        env = self.environment(**more)
        return subprocess.run(command, cwd=self.path, env=env, capture_output=True, text=True, timeout=120, check=False)


class Served(Scratch):
    """The same, while its Prefect server is up."""

    url: str

    def api(self, route: str, **filters: Any) -> Any:
        """What the server answers to a query."""
        return httpx.post(f"{self.url}/{route}/filter", json=filters).raise_for_status().json()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    path = tmp_path / "a clone"
    monkeypatch.setenv("DVC_ROOT", str(path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return Scratch(path)


@pytest.fixture(scope="session")
def migrated(shared: Path) -> Path:
    """The home of a Prefect server that was started before (the first start is the slow one), after a start that was
    killed while it made the database."""
    return made_once(shared / "migrated", _migrate) / ".prefect"


def _migrate(path: Path) -> None:
    Scratch(path).write(".prefect/prefect.db", "half a database")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(path))
        for name in environment():
            patch.delenv(name, raising=False)
        with server.running() as url:
            assert url, (path / ".prefect/server.log").read_text()


@pytest.fixture
def serve(migrated: Path) -> Iterator[Callable[[Scratch], server.Tied]]:
    """Start the server of a scratch repository, and wait until it answers."""
    started = []

    def start(scratch: Scratch) -> server.Tied:
        shutil.copytree(migrated, scratch.path / ".prefect", dirs_exist_ok=True)
        started.append(server.start())
        assert started[-1].url(), (scratch.path / ".prefect/server.log").read_text()
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("served") / "a clone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(path))
        patch.delenv("PREFECT_API_URL", raising=False)
        scratch = Served(path)
        shutil.copytree(migrated, path / ".prefect")
        with server.running() as url:
            assert url, (path / ".prefect/server.log").read_text()
            scratch.url = url
            yield scratch
