"""What must be set before anything imports scikit-learn: threads as in the flows."""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from pathlib import Path
from typing import Any

import pytest

from tests.clones import Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path / "clone")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder of all workers, for what one of them makes for all: see `made_once`."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many acts of sabotage were caught, and how many of their harmless twins passed."""
    for said, ending in (("acts of sabotage caught", "sabotaged"), ("their harmless twins passed", "untouched")):
        done = {key: terminalreporter.stats.get(key, []) for key in ("passed", "failed", "error")}
        ours = {key: [r for r in reports if f"[{ending}" in r.nodeid] for key, reports in done.items()}
        caught = sum(report.when == "call" for report in ours["passed"])
        if every := caught + len(ours["failed"]) + len(ours["error"]):
            terminalreporter.write_line(f"{said}: {caught} of {every}")
