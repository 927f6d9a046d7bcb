"""The flow for schedules: new data, `dvc repro`, the report, and a notice where it fails. Change here to do more on
schedule; prefect.yaml says when.

`python -m flows.pipeline` (`make schedule`) deploys it and works it off until Ctrl-C; with `--once` it runs here, now.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prefect import flow

from flows import server
from flows.ingest import ingest_next
from flows.repro import dvc, inspected, log_missing
from flows.stage import artifact, io, run, say
from pipeline.errors import InputError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State


def notice(flow: Any, flow_run: "FlowRun", state: "State[Any]") -> None:
    """Tell whoever the parameter `notify` names that a run went wrong."""
    from prefect.blocks import notifications  # noqa: F401 - makes its kinds of block known
    from prefect.blocks.core import Block

    if name := flow_run.parameters.get("notify"):
        body = f"{flow.name}, run {flow_run.name}: {state.name}: {state.message}\n{flow_run.id}"
        block: Any = io(Block.load)(name)
        io(block.notify)(body, subject=f"{flow.name} went wrong")


@flow(on_failure=[notice], on_crashed=[notice])
def pipeline(until: str | None = None, notify: str | None = None) -> None:  # noqa: ARG001 - the notice reads it
    """Take in the next period of the source, run what it touches, show the report, and inspect the model: one that is
    not airworthy fails the run.

    `until`: take in every period up to this one (as in 2013-12) instead. `notify`: a saved notification block, as in
    slack-webhook/on-call, that hears of failures.
    """
    while (period := ingest_next()) is not None:
        say(f"{period} is in")
        if until is None or period >= until:
            break
    dvc("repro")
    log_missing()
    artifact("report", Path("reports/summary.md").read_text())
    if inspected():
        raise InputError("expected an airworthy model, but the inspection did not pass it; see its verdicts")


def once() -> None:
    """Run the flow; InputError where no new data came, since then there is nothing new to learn."""
    record = Path("data.dvc")
    before = record.read_bytes()
    pipeline.fn()
    if record.read_bytes() == before:
        raise InputError("expected another period of data, but the source has none yet; come back when it has")


def schedule() -> None:
    """Deploy what prefect.yaml declares, and become the worker that runs it until Ctrl-C."""
    url = os.environ.get("PREFECT_API_URL") or _own_server()
    os.environ.update(PREFECT_API_URL=url, PWD=str(Path.cwd()))  # prefect.yaml names the folder by it
    os.environ.pop("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", None)  # a worker's log is what it has to say
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    pool = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"][0]["work_pool"]["name"]
    subprocess.run([*prefect, "work-pool", "create", pool, "--type", "process"], capture_output=True, check=False)  # noqa: S603 - fails where it is there already
    subprocess.run([*prefect, "deploy", "--all"], check=True)  # noqa: S603 - Prefect
    say(f"Prefect  {url.removesuffix('/api')}")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a script's `&` ignores it, and a worker that does ends on no signal
    os.execv(sys.executable, [*prefect, "worker", "start", "--pool", pool])  # noqa: S606 - no orphan: it is this process


def _own_server() -> str:
    own = server.start()
    url = own.url()
    if url is None:
        sys.exit("expected Prefect's server to start; .prefect/server.log says why it did not")
    if own.process is not None and own.process.stdin is not None:
        os.set_inheritable(own.process.stdin.fileno(), True)  # the worker that we become holds it as long as it lives
    return url


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=schedule.__doc__)
    parser.add_argument("--once", action="store_true", help="run it once, now; fails where the source has nothing new")
    if parser.parse_args().once:
        run(once, {}, tracked=False)
    else:
        schedule()
