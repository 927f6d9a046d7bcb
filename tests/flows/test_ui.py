import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from flows import server

REPOSITORY = Path(__file__).parents[2]
TRACKING = """
from mlflow import MlflowClient
def create_database(): MlflowClient("sqlite:///mlflow.db").search_experiments()
"""


MOVED = """
from pipeline.errors import InputError
def create_database(): raise InputError("expected mlflow.db to keep its files here")
"""


def test_a_database_of_another_folder_is_said_in_one_line(scratch) -> None:
    scratch.write("flows/ui.py", (REPOSITORY / "flows/ui.py").read_text())
    scratch.write("flows/tracking.py", MOVED)
    done = subprocess.run(
        [sys.executable, "-m", "flows.ui"],
        cwd=scratch.path,
        env=scratch.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "ui: expected mlflow.db to keep its files here\n"
    assert done.returncode == 1


def test_both_interfaces_answer_until_the_signal(scratch, migrated) -> None:
    scratch.write("flows/ui.py", (REPOSITORY / "flows/ui.py").read_text())
    scratch.write("flows/tracking.py", TRACKING)
    shutil.copytree(migrated, scratch.path / ".prefect")
    with subprocess.Popen(
        [sys.executable, "-m", "flows.ui"],
        cwd=scratch.path,
        env=scratch.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            shown = dict(process.stdout.readline().split() for _ in range(2))
            assert list(shown) == ["MLflow", "Prefect"]
            for address in shown.values():
                assert "<html" in httpx.get(address).text.lower()
            assert server.recorded() == shown["Prefect"] + "/api"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert not any(map(server.answers, shown.values()))
    assert process.returncode == 0
