import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.files import written_whole
from flows.stage import io

TOY = """
    '''The toy stage.'''
    import os, sys
    from pathlib import Path
    from flows.stage import artifact, io, run, say

    def toy() -> None:
        '''Make a toy.'''
        say("prefect is " + ("in" if "prefect" in sys.modules else "out"))
        if pid := os.environ.get("VICTIM"):
            os.kill(int(pid), 9)
        artifact("toy", "# A toy")
        io(write)("toy")

    def write(text: str) -> None:
        with Path("out.txt").open("a") as file:
            file.write(text + "\\n")

    if __name__ == "__main__":
        run(toy)
"""
FAILING = """
    from pipeline.errors import InputError
    from flows.stage import io, run

    def failing() -> None:
        raise {error}

    if __name__ == "__main__":
        run(failing)
"""


def test_a_stage_without_a_server_runs_directly_and_says_so(scratch) -> None:
    scratch.write("flows/toy.py", TOY)
    done = scratch.run("flows.toy")
    assert done.stdout.splitlines() == [
        "no Prefect server: running toy directly; `make ui` starts one",
        "prefect is out",
        "logged toy",
    ]
    assert (done.returncode, done.stderr) == (0, "")
    assert (scratch.path / "out.txt").read_text() == "toy\n"


@pytest.mark.parametrize("runs", ["run(toy)", "run_stage(toy)"])
def test_whoever_asks_what_a_stage_does_is_told_and_nothing_is_done(scratch, runs: str) -> None:
    scratch.write(
        "flows/toy.py",
        TOY.replace("import artifact, io, run, say", "import artifact, io, run, run_stage, say").replace(
            "run(toy)", runs
        ),
    )
    done = scratch.run("flows.toy", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m flows.toy [-h]")
    assert "Make a toy." in done.stdout
    assert scratch.run("flows.toy", "--aside").returncode == 2
    assert not (scratch.path / "out.txt").exists()
    assert not (scratch.path / "--help").exists()


def test_a_configured_server_that_does_not_answer_is_left_alone(scratch) -> None:
    scratch.write("flows/toy.py", TOY)
    done = scratch.run("flows.toy", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "Prefect does not answer at http://127.0.0.1:9/api: running toy directly" in done.stdout.splitlines()
    assert "prefect is out" in done.stdout
    assert done.returncode == 0


def test_a_stage_attaches_to_the_server_of_its_repository(served) -> None:
    served.write("flows/toy.py", TOY)
    done = served.run("flows.toy")
    assert done.stdout.splitlines() == ["prefect is in", "logged toy"]
    assert (done.returncode, done.stderr) == (0, "")
    [run] = served.api("flow_runs", flows={"name": {"any_": ["toy"]}})
    assert (run["name"], run["state_type"]) == ("toy", "COMPLETED")
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    [task] = served.api("task_runs", **of_run)
    assert task["name"].startswith("write")
    assert "prefect is in" in {
        line["message"] for line in served.api("logs", logs={"flow_run_id": {"any_": [run["id"]]}})
    }
    [page] = served.api("artifacts", **of_run)
    assert (page["key"], page["data"]) == ("toy", "# A toy")


def test_the_stages_of_one_parent_are_its_subflows(served) -> None:
    for name in ("first", "second"):
        served.write(f"flows/{name}.py", TOY.replace("toy()", f"{name}()").replace("run(toy)", f"run({name})"))
    served.write(
        "flows/parent.py",
        """
        import subprocess, sys
        from flows.stage import child_environment, run

        def parent() -> None:
            for name in ("first", "second"):
                subprocess.run([sys.executable, "-m", f"flows.{name}"], env=child_environment(), check=True)

        if __name__ == "__main__":
            run(parent, tracked=False)
        """,
    )
    done = served.run("flows.parent")
    assert done.returncode == 0, done.stderr
    assert "logged parent" not in done.stdout
    [parent] = served.api("flow_runs", flows={"name": {"any_": ["parent"]}})
    children = served.api(
        "flow_runs", flow_runs={"parent_flow_run_id": {"any_": [parent["id"]]}}, sort="START_TIME_ASC"
    )
    assert [child["name"] for child in children] == ["first", "second"]


def test_a_parent_that_is_gone_costs_the_link_only(served) -> None:
    served.write("flows/toy.py", TOY)
    done = served.run("flows.toy", FLOWS_PARENT="00000000-0000-0000-0000-000000000000")
    assert (done.returncode, done.stderr) == (0, "")
    assert "prefect is in" in done.stdout


def test_a_server_that_dies_in_the_middle_stops_nothing_and_repeats_nothing(scratch, serve) -> None:
    scratch.write("flows/toy.py", TOY)
    done = scratch.run("flows.toy", VICTIM=str(serve(scratch).process.pid))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["Prefect failed (ConnectError): toy goes on without it", "logged toy"]
    assert done.stdout.count("prefect is in") == 1
    assert (scratch.path / "out.txt").read_text() == "toy\n"
    assert "Traceback" not in done.stderr


def test_a_server_that_takes_no_run_leaves_the_stage_to_run_directly(scratch, healthy_but_useless: str) -> None:
    scratch.write("flows/toy.py", TOY)
    done = scratch.run("flows.toy", PREFECT_API_URL=healthy_but_useless, PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("toy goes on without it") == 1
    assert (scratch.path / "out.txt").read_text() == "toy\n"


def test_input_and_output_is_tried_again_unless_the_input_is_bad(served) -> None:
    served.write(
        "flows/flaky.py",
        """
        import sys
        from flows import stage
        from pipeline.errors import InputError

        stage.RETRY_DELAYS_S[:] = [0, 0]
        tries = []

        def read() -> str:
            tries.append(1)
            if len(tries) < 3:
                raise OSError("the network blinked")
            return "text"

        def read_bad() -> str:
            tries.append(1)
            raise InputError("bad")

        def flaky() -> None:
            stage.say(f"{stage.io(read)()} after {len(tries)}")
            try:
                stage.io(read_bad)()
            except InputError as error:
                stage.say(f"{error} after {len(tries)}")

        if __name__ == "__main__":
            stage.run(flaky)
        """,
    )
    done = served.run("flows.flaky")
    assert done.stdout.splitlines() == ["text after 3", "bad after 4", "logged flaky"]
    assert done.stderr == ""


@pytest.mark.parametrize("attached", [False, True])
def test_a_bad_input_is_one_line_without_a_traceback(served, attached: bool) -> None:
    served.write("flows/failing.py", FAILING.format(error="InputError('expected a, got b; do c')"))
    done = served.run("flows.failing", **({} if attached else {"PREFECT_API_URL": "http://127.0.0.1:9/api"}))
    assert (done.returncode, done.stderr) == (1, "failing: expected a, got b; do c\n")
    assert "logged" not in done.stdout


@pytest.mark.parametrize("attached", [False, True])
def test_any_other_failure_shows_its_traceback_once(served, attached: bool) -> None:
    served.write("flows/failing.py", FAILING.format(error="ZeroDivisionError('really')"))
    done = served.run("flows.failing", **({} if attached else {"PREFECT_API_URL": "http://127.0.0.1:9/api"}))
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError: really") == 1


def test_a_full_disk_is_said_plainly(scratch) -> None:
    scratch.write(
        "flows/failing.py", FAILING.format(error="SystemExit(0) from open('/dev/full', 'w').write('x' * 10_000)")
    )
    done = scratch.run("flows.failing")
    assert done.returncode == 1
    assert done.stderr.startswith("failing: expected room for the outputs, the disk is full ([Errno 28]")
    assert done.stderr.count("\n") == 1


def test_a_tracking_server_that_is_down_stops_the_stage_before_it_works(scratch) -> None:
    scratch.write("flows/toy.py", TOY)
    scratch.write(
        "flows/tracking.py",
        """
        from pipeline.errors import InputError
        def check_server(): raise InputError("expected MLflow, found none; start it")
        """,
    )
    done = scratch.run("flows.toy")
    assert (done.returncode, done.stderr) == (1, "toy: expected MLflow, found none; start it\n")
    assert not (scratch.path / "out.txt").exists()


def test_a_failure_while_logging_loses_no_finished_stage(scratch) -> None:
    scratch.write("flows/toy.py", TOY)
    scratch.write("flows/tracking.py", "def check_server(): pass\ndef log_stage(stage, seconds): raise OSError('no')\n")
    done = scratch.run("flows.toy")
    assert done.returncode == 0
    assert "toy has finished, but MLflow did not take it (no)" in done.stdout
    assert (scratch.path / "out.txt").read_text() == "toy\n"


def test_outside_a_flow_run_input_and_output_is_the_function_itself() -> None:
    assert io(divmod)(7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        io(divmod)(7, 0)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    with written_whole(tmp_path / "new" / "file.txt") as path:
        path.write_text("new")
        assert not (tmp_path / "new/file.txt").exists()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_a_folder_replaces_the_folder_before_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.txt").write_text("old")
    with written_whole(tmp_path / "out") as path:
        path.mkdir()
        (path / "new.txt").write_text("new")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/new.txt"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with written_whole(target) as path:
            path.write_text("half")
            raise OSError("half way")

    with pytest.raises(OSError, match="half way"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_what_a_killed_write_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".new.out").mkdir()
    (tmp_path / ".new.out/half.txt").write_text("half")
    (tmp_path / ".old.out").mkdir()
    with written_whole(tmp_path / "out") as path:
        path.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def healthy_but_useless() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_port}/api"
        service.shutdown()
