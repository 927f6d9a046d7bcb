import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.states import Running

from flows import server


def test_the_server_lives_as_long_as_its_block_and_its_record_means_nothing_after(scratch, serve) -> None:
    serve(scratch).stop()
    with server.running() as url:
        assert url == server.recorded()
        assert "<html" in httpx.get(url.removesuffix("/api")).text
    assert server.recorded() is None
    assert (scratch.path / ".prefect/server.json").exists()


def test_who_comes_second_uses_the_server_of_the_first_and_leaves_it_running(served) -> None:
    with server.running() as url:
        assert url == served.url
    assert server.recorded() == served.url


def test_two_that_start_at_once_share_one_server(scratch, serve) -> None:
    serve(scratch).stop()
    both = [server.tie(scratch.path / f".prefect/{n}.log") for n in (1, 2)]
    try:
        assert both[0].url() == both[1].url() is not None
        assert [process.alive() for process in both] == [True, True]  # the second waits for its turn
    finally:
        for process in both:
            process.stop()
    assert server.recorded() is None


def test_a_killed_parent_takes_its_server_along(scratch, serve) -> None:
    serve(scratch).stop()
    code = "from flows import server; import time; print(server.start().url(), flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=scratch.path, env=scratch.environment(), stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert server.recorded() == url
        parent.kill()
    eventually(lambda: not server.answers(url))


def test_another_server_at_the_recorded_address_is_not_ours(served) -> None:
    record = served.path / ".prefect/server.json"
    ours = record.read_text()
    record.write_text(json.dumps(json.loads(ours) | {"key": "another"}))
    assert server.recorded() is None
    record.write_text(ours)
    assert server.recorded() == served.url


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"url": "nonsense", "key": "a"}', '{"url": 1, "key": "a"}'])
def test_a_broken_record_is_no_server(scratch, text: str) -> None:
    scratch.write(".prefect/server.json", text)
    assert server.recorded() is None


def test_a_database_that_was_never_finished_is_made_again(migrated) -> None:
    assert (migrated / "prefect.db").read_bytes().startswith(b"SQLite format 3")


def test_a_server_that_cannot_start_is_none(scratch) -> None:
    scratch.write("flows/server.py", "raise SystemExit('no')")
    with server.running() as url:
        assert url is None
    assert (scratch.path / ".prefect/server.log").read_text() == "no\n"


def test_what_a_dead_server_left_running_is_ended_by_the_next(scratch, serve) -> None:
    first = serve(scratch)
    with SyncPrefectClient(first.url()) as client:
        run = client.create_flow_run(flow(lambda: None, name="left"), state=Running())
    first.process.kill()
    first.stop()
    with server.running() as url, SyncPrefectClient(url) as client:
        assert client.read_flow_run(run.id).state_type == StateType.CRASHED


def test_a_tied_command_ends_with_its_parent_and_tells_its_end(scratch) -> None:
    log = scratch.path / "log"
    tied = server.tie(log, [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
    eventually(lambda: log.read_text() != "")
    tied.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    tied = server.tie(log, [sys.executable, "-c", "raise SystemExit(3)"])
    assert tied.process is not None
    assert tied.process.wait(30) == 3
    tied.stop()


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something holds; fail after a minute."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
