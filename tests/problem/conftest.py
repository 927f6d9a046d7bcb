import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.clones import Clone, make_clone


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Clone]:
    """Makes clones of the flights with two months of data and a short search."""
    data = make_clone(tmp_path_factory.mktemp("small") / "data")
    data.run("git", "rm", "--quiet", "--cached", "data.dvc")
    (data.path / "data.dvc").unlink()
    data.run(sys.executable, "-m", "flows.ingest", "--from", "2013-01", "--to", "2013-02")
    data.run("rm", "-rf", ".dvc/store")
    data.dvc("push", "data.dvc")

    def make(path: Path) -> Clone:
        made = make_clone(path)
        made.run("rm", "-rf", ".dvc/store")
        made.run("cp", "-r", str(data.path / ".dvc/store"), ".dvc/store")
        made.run("cp", str(data.path / "data.dvc"), ".")
        made.dvc("pull", "data.dvc")
        split = {
            "method": "time", "train_from": "2013-01", "validation_from": "2013-02",
            "test_from": "2013-02-15", "test_until": "2013-03",
        }  # fmt: skip
        made.edit_params(preprocess__split=split, tune__trials=3, tune__folds=2, evaluate__resamples=100)
        made.run("git", "commit", "--quiet", "--all", "--message", "small")
        return made

    return make


@pytest.fixture(scope="session")
def undisturbed(small: Callable[[Path], Clone], tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A small clone whose pipeline has run once, in a path with spaces."""
    made = small(tmp_path_factory.mktemp("undisturbed") / "a path with spaces")
    made.dvc("repro")
    return made


@pytest.fixture
def killing() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate()
