import http.server
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import repro, server
from flows.pipeline import pipeline as scheduled
from pipeline.errors import InputError

REPOSITORY = Path(__file__).parents[2]
INGEST = """
    from pathlib import Path
    from flows.stage import io

    SOURCE = ["2013-01", "2013-02", "2013-03", "2013-04"]
    HELD = Path("held.txt")

    def ingest_next() -> str | None:
        held = HELD.read_text().split()
        if held == SOURCE:
            return None
        io(HELD.write_text)(" ".join(SOURCE[: len(held) + 1]))
        Path("data.dvc").write_text(f"meta: {HELD.read_text()}")
        return SOURCE[len(held)]
"""
EVALUATE = """
    from pathlib import Path
    from flows.stage import io, run
    from pipeline.errors import InputError

    def evaluate() -> None:
        held = io(Path("held.txt").read_text)()
        if "2013-04" in held:
            raise InputError("expected no 2013-04")
        io(Path("reports/summary.md").write_text)(f"# {held}")

    if __name__ == "__main__":
        run(evaluate)
"""
STAGES = {
    "evaluate": {
        "cmd": "mkdir -p reports && python -m flows.evaluate",
        "deps": ["held.txt"],
        "outs": ["reports/summary.md"],
    }
}
TRACKING = """
    def check_server(): pass
    def log_stage(*_): pass
    def complete(): print("completed"); return []
"""
SAVE_BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Webhook
Webhook(name="on-call", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"}).save("on-call")
"""


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where notices go, and those that came; the first time somebody posts one, it is out of order."""
    received: list[dict[str, Any]] = []
    answers = itertools.chain([503], itertools.repeat(200))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notice = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = next(answers)
            if status == 200:
                received.append(notice)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}/", received
        service.shutdown()


@pytest.fixture
def project(served):
    return furnished(served)


def furnished(served):
    """A repository whose schedule is due four times a minute, with a source of four months, the last of them bad."""
    copied = ("flows/pipeline.py", "flows/repro.py", "flows/repository.py", "src/pipeline/compare.py", "prefect.toml")
    for name in copied:
        served.write(name, (REPOSITORY / name).read_text())
    served.write("flows/tracking.py", TRACKING)
    served.write("flows/ingest.py", INGEST)
    served.write("flows/inspect.py", "print('AIRWORTHY')")
    served.write("flows/evaluate.py", EVALUATE)
    served.write("held.txt", "2013-01")
    served.write("dvc.yaml", yaml.safe_dump({"stages": STAGES}))
    served.write(".dvc/config", "[core]\n    analytics = false\n    no_scm = true\n")
    declared = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    [deployment] = declared["deployments"]
    deployment["schedules"] = [{"interval": 15}]
    deployment["parameters"] = {"until": "2013-03", "notify": "custom-webhook/on-call"}
    served.write("prefect.yaml", yaml.safe_dump(declared))
    (served.path / ".venv").symlink_to(sys.prefix)
    return served


def test_a_schedule_takes_in_data_reports_and_tells_of_failures(project, webhook) -> None:
    address, received = webhook
    environment = project.environment(PREFECT_API_URL=project.url, PREFECT_HOME=str(project.path / ".prefect"))
    subprocess.run([sys.executable, "-c", SAVE_BLOCK, address], cwd=project.path, env=environment, check=True)
    log = project.path / "schedule.log"
    with log.open("w") as file:
        background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]  # as `&` in a script starts it
        command = [*background, sys.executable, "-m", "flows.pipeline"]
        process = subprocess.Popen(command, cwd=project.path, env=project.environment(), stdout=file, stderr=file)

    def ended(*states: str) -> list[dict[str, Any]]:
        filters = {"flows": {"name": {"any_": ["pipeline"]}}, "flow_runs": {"state": {"type": {"any_": states}}}}
        runs: list[dict[str, Any]] = project.api("flow_runs", **filters)
        return sorted(runs, key=lambda run: run["start_time"])

    def of_the_first_failure() -> list[dict[str, Any]]:
        return [notice for notice in received for run in ended("FAILED")[:1] if run["id"] in notice["body"]]

    try:
        until(of_the_first_failure, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert server.recorded() == project.url
    assert "completed" in log.read_text()
    assert "AIRWORTHY" in log.read_text()
    runs = ended("COMPLETED", "FAILED")
    assert [run["state_type"] for run in runs[:2]] == ["COMPLETED", "FAILED"]
    assert all(run["auto_scheduled"] for run in runs)
    children = project.api("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run["id"] for run in runs]}})
    assert {child["name"] for child in children} == {"evaluate"}
    assert {child["state_type"] for child in children} == {"COMPLETED", "FAILED"}
    pages = project.api("artifacts", artifacts={"key": {"any_": ["report"]}})
    assert [page["data"] for page in pages] == ["# 2013-01 2013-02 2013-03"]
    told = [notice["body"].splitlines()[-1] for notice in received]
    assert len(told) == len(set(told))
    assert set(told) <= {run["id"] for run in ended("FAILED")}
    [notice] = of_the_first_failure()
    assert runs[1]["id"] in notice["body"]
    assert notice["subject"] == "pipeline went wrong"
    assert "expected `dvc repro` to succeed" in notice["body"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_model_that_is_not_airworthy_fails_the_scheduled_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/summary.md").write_text("# figures")
    for name, answer in (("ingest_next", None), ("dvc", None), ("log_missing", None), ("inspected", code)):
        monkeypatch.setattr(f"flows.pipeline.{name}", lambda *_, answer=answer: answer)
    with pytest.raises(InputError, match="expected an airworthy model"):
        scheduled.fn()


def test_an_mlflow_that_fails_is_said_with_the_command_that_logs_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> list[str]:
        raise OSError("no room")

    monkeypatch.setattr(repro.tracking, "complete", fail)
    repro.log_missing()
    assert "MLflow did not take all of the run (no room); `python -m flows.tracking` logs" in capsys.readouterr().out


def until(true: Any, log: Path) -> None:
    """Wait until something holds; fail with the log after two minutes."""
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_once_it_runs_here_and_now_and_fails_where_nothing_new_came(scratch) -> None:
    project = furnished(scratch)
    project.write("held.txt", "2013-01 2013-02")
    project.write("data.dvc", "meta: 2013-02")
    done = project.run("flows.pipeline", "--once")
    assert done.returncode == 0, done.stderr
    assert "AIRWORTHY" in done.stdout
    assert (project.path / "reports/summary.md").read_text() == "# 2013-01 2013-02 2013-03"
    project.write("flows/ingest.py", "def ingest_next(): return None")
    done = project.run("flows.pipeline", "--once")
    assert (done.returncode, done.stderr) == (
        1, "once: expected another period of data, but the source has none yet; come back when it has\n",
    )  # fmt: skip
