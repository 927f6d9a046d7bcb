"""What kills, disks, clocks, signals and bad bundles do to the running service, under load."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pipeline.canonical import file_hash, files_hash, folder_files, json_bytes
from pipeline.journal import FEEDBACK, PREDICTIONS, read_entries
from tests.serving import load
from tests.serving.load import PREDICT, Exchange, Load, every_form, logged, until
from tests.serving.made import MAIN_PYTHON, ROOT, Bundle, Server, Service, command, environment, serving

Made = Callable[[str], Bundle]
Asks = Sequence[tuple[str, bytes]]

SHARED = Path("/dev/shm")  # noqa: S108 - where faketime keeps what its processes share

# Behind the features of a made bundle: a file beside them says in which threads they hang or raise.
FAULT = """

_sound = features


def features(columns: Any) -> dict[str, np.ndarray]:
    import threading
    import time
    from pathlib import Path

    told = Path(__file__).with_name("fault")
    thread, _, fault = told.read_text().partition(" ") if told.exists() else ("", "", "")
    if thread and threading.current_thread().name.startswith(thread):
        if fault == "raises":
            raise RuntimeError
        told.with_name("hanging").touch()
        while told.exists():
            time.sleep(0.01)
    return _sound(columns)
"""
ANOTHER = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/src"]
from tests import synthetic
synthetic.write_bundle(Path(sys.argv[2]), synthetic.make_bundle("binary", "linear"))
"""
STOPPED = """
import runpy, signal, sys, uvicorn
run = uvicorn.Server.run
def stopped(*args):
    signal.raise_signal(signal.SIGTERM)
    run(*args)
uvicorn.Server.run = stopped
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def faulty(bundle: Bundle) -> tuple[Bundle, Path]:
    """A bundle whose features fail as a file says, and that file."""
    bundle.features.write_text(bundle.features.read_text() + FAULT)
    change(bundle, features_hash=file_hash(bundle.features))
    return bundle, bundle.features.with_name("fault")


def change(bundle: Bundle, **contract: Any) -> None:
    """Change its contract, and inspect it anew."""
    (bundle.folder / "contract.json").write_bytes(json_bytes(bundle.read("contract.json") | contract))
    bundle.inspect()


def twin(bundle: Bundle, folder: Path) -> Bundle:
    """The same bundle with another threshold."""
    shutil.copytree(bundle.folder, folder / "bundle")
    made = Bundle(folder / "bundle", bundle.features)
    change(made, threshold=0.99)
    return made


def details(server: Server) -> str:
    """What readiness tells an operator of a service that is ready."""
    return "\n".join(json.loads(load.get(server.port, "/health/ready"))["details"])


def metric(server: Server, name: str) -> float:
    """A metric, summed over its labels."""
    lines = load.get(server.port, "/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)


def events(server: Server, event: str) -> list[dict[str, Any]]:
    """The lines of the service's log that tell of it; the last line may be under way."""
    lines = server.log.read_text().splitlines(keepends=True)
    return [line for text in lines if text.endswith("\n") for line in [json.loads(text)] if line["event"] == event]


def ask(server: Server, body: bytes, name: str) -> Exchange:
    """Ask for scores."""
    return load.ask(server.port, PREDICT, body, name)


def asks(server: Server, bundle: Bundle) -> Asks:
    """Requests in every form."""
    return every_form(bundle, json.loads(load.get(server.port, "/model"))["name"])


def body_of(bundle: Bundle, rows: int) -> bytes:
    """A request for so many rows; more than 200 are scored in a thread."""
    return json.dumps({"rows": (bundle.rows() * rows)[:rows]}).encode()


def statuses(*loads: Load) -> set[int | None]:
    """How requests ended."""
    return {told.status for one in loads for told in one.exchanges}


def check_logged(answered: Sequence[Exchange], data: Path) -> None:
    """Every answer is in the log, with the scores that the client got."""
    found = logged(data / "log")
    missing = [told.id for told in answered if told.id not in found]
    assert not missing, f"{len(missing)} of {len(answered)} answered predictions are not in the log: {missing[:5]}"
    for told in answered:
        assert [entry.score for entry in found[told.id]] == told.scores
        assert {entry.source for entry in found[told.id]} == {told.answer.get("source", "model")}


# Kills


def test_what_was_answered_is_logged_though_the_process_is_killed_at_any_moment(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data = made("binary-onnx"), tmp_path / "data"
    predictions: list[Exchange] = []
    outcomes: list[Exchange] = []
    for _ in range(20):
        with (
            serving(tmp_path, bundle, SERVING_DATA_DIR=str(data)) as server,
            Load(server.port, asks(server, bundle), outcomes=True) as loaded,
        ):
            loaded.until_scored(random.randint(1, 80))  # noqa: S311 - any moment
            time.sleep(random.uniform(0, 0.02))  # noqa: S311
            server.process.kill()
            loaded.wait()
            assert server.process.wait(60) == -signal.SIGKILL
        assert statuses(loaded) <= {200, None, -1}
        predictions += loaded.scored
        outcomes += [told for told in loaded.exchanges if told.path == load.FEEDBACK and told.status == 200]
    with capsys.disabled():
        print(f"\n20 kills: {len(predictions)} predictions and {len(outcomes)} outcomes looked up")  # noqa: T201
    check_logged(predictions, data)
    kept = [(entry["request_id"], entry["outcome"]) for entry in read_entries(data / "log", FEEDBACK)]
    sent = [json.loads(told.sent)["outcomes"][0] for told in outcomes]
    missing = {(outcome["request_id"], outcome["outcome"]) for outcome in sent} - set(kept)
    assert not missing, f"{len(missing)} of {len(sent)} acknowledged outcomes are not in the log"
    found = logged(data / "log")
    assert all(found[outcome["request_id"]][0].outcome is outcome["outcome"] for outcome in sent)
    assert min(len(predictions), len(outcomes)) > 100


# Bundles


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def ended(bundle: Bundle, data: Path) -> str:
    """The one line that a service says that ends at once."""
    given = {"SERVING_MODEL_DIR": str(bundle.folder), "SERVING_DATA_DIR": str(data), "SERVING_OPEN": "1"}
    env = environment(SERVING_PORT="0", **given)
    done = subprocess.run(command(bundle), env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("damaged", ["golden.json", "model.onnx"])
def test_the_last_good_bundle_answers_where_the_new_one_is_damaged(
    bundle: Bundle, tmp_path: Path, damaged: str
) -> None:
    good, data, whole, body = bundle.hash, tmp_path / "data", (bundle.folder / damaged).read_bytes(), body_of(bundle, 3)
    with serving(tmp_path, bundle, SERVING_DATA_DIR=str(data)) as server:
        expected = ask(server, body, "whole").scores
        assert server.stop() == 0
    cut(bundle.folder / damaged)
    bundle.inspect()
    with serving(tmp_path, bundle, SERVING_DATA_DIR=str(data)) as server:
        told = ask(server, body, "damaged")
        assert (told.answer["model"]["hash"], told.scores) == (good, expected)
        assert "the last good bundle is served" in details(server)
        assert damaged in details(server)
        assert metric(server, "serving_last_good") == 1
        (bundle.folder / damaged).write_bytes(whole)
        bundle.inspect()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: metric(server, "serving_last_good") == 0)
        assert details(server) == ""
        cut(bundle.folder / damaged)
        bundle.inspect()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: metric(server, "serving_reloads_total") == 2)
        assert ask(server, body, "damaged again").answer["model"]["hash"] == good
        until(lambda: events(server, "bundle refused"))
        assert damaged in events(server, "bundle refused")[0]["reason"]


@pytest.mark.parametrize("damaged", ["golden.json", "model.onnx", "contract.json"])
def test_a_damaged_bundle_ends_the_start_where_none_was_kept(bundle: Bundle, tmp_path: Path, damaged: str) -> None:
    cut(bundle.folder / damaged)
    bundle.inspect()
    assert ended(bundle, tmp_path / "data").startswith(f"serving: {bundle.folder / damaged}: ")


def test_a_last_good_bundle_that_is_damaged_too_is_not_served(bundle: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, bundle, SERVING_DATA_DIR=str(tmp_path / "data")) as server:
        assert server.stop() == 0
    (kept,) = (tmp_path / "data" / "last-good").iterdir()
    for folder in (bundle.folder, kept / "bundle"):
        cut(folder / "golden.json")
    bundle.inspect()
    assert ended(bundle, tmp_path / "data").startswith(f"serving: {bundle.folder / 'golden.json'}: ")


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with another model; not to be changed."""
    folder = tmp_path_factory.mktemp("another") / "bundle"
    subprocess.run([str(MAIN_PYTHON), "-c", ANOTHER, str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture
def swapped(
    faulty: tuple[Bundle, Path], another: Path, tmp_path: Path
) -> tuple[Bundle, dict[str, Bundle], Callable[[str], None]]:
    """Where the service finds its bundle, two bundles by their hashes, and what puts one of them there at a stroke."""
    bundle, _ = faulty
    second = Bundle(tmp_path / "second" / "bundle", bundle.features)
    shutil.copytree(another, second.folder)
    change(second, features_hash=file_hash(bundle.features))
    link = tmp_path / "served"

    def put(model: str) -> None:
        new = tmp_path / "new"
        new.symlink_to(both[model].folder)
        new.rename(link)

    both = {bundle.hash: bundle, second.hash: second}
    put(bundle.hash)
    return Bundle(link, bundle.features), both, put


def test_every_answer_under_reloads_is_that_of_exactly_the_bundle_that_it_names(
    swapped: tuple[Bundle, dict[str, Bundle], Callable[[str], None]], tmp_path: Path
) -> None:
    served, both, put = swapped
    data, drawn = tmp_path / "data", random.Random()  # noqa: S311 - any moment
    with serving(tmp_path, served, SERVING_DATA_DIR=str(data)) as server:
        given = asks(server, served)
        expected = {model: by_itself(bundle, given) for model, bundle in both.items()}
        first, second = both
        with Load(server.port, given) as loaded:
            for count in range(1, 21):
                put(second if count % 2 else first)
                server.process.send_signal(signal.SIGHUP)
                if count % 4 > 1:  # another takes its place meanwhile
                    time.sleep(drawn.uniform(0, 0.1))
                    put(first if count % 2 else second)
                until(lambda: metric(server, "serving_reloads_total") == count)  # noqa: B023 - called at once
                loaded.until_scored(10)
            put(first)
            server.process.send_signal(signal.SIGHUP)
            until(lambda: json.loads(load.get(server.port, "/model"))["hash"] == first)
            loaded.until_scored(10)
        assert statuses(loaded) == {200}
        assert server.stop() == 0
    check_logged(loaded.scored, data)
    found, models = logged(data / "log"), set()
    for told in loaded.scored:
        (model,) = {entry.model for entry in found[told.id]}
        models.add(model)
        assert comparable(told) == expected[model][told.path, told.sent]
    assert models == set(both)
    (kept,) = (data / "last-good").iterdir()
    assert kept.name == files_hash(folder_files(kept / "bundle"))


@pytest.mark.parametrize(("thread", "outcome"), [("uvloop", "bundle refused"), ("MainThread", "reloaded")])
def test_a_bundle_that_is_replaced_while_it_is_loaded_is_neither_served_nor_kept_as_a_mix(
    swapped: tuple[Bundle, dict[str, Bundle], Callable[[str], None]], tmp_path: Path, thread: str, outcome: str
) -> None:
    served, (first, second), put = swapped[0], tuple(swapped[1]), swapped[2]
    fault, data = tmp_path / "fault", tmp_path / "data"
    with serving(tmp_path, served, SERVING_DATA_DIR=str(data)) as server:
        fault.write_text(f"{thread} hangs")  # where golden rows are scored, or later, where it is warmed up
        put(second)
        server.process.send_signal(signal.SIGHUP)
        until(fault.with_name("hanging").exists)
        put(first)
        fault.unlink()
        until(lambda: events(server, outcome))
        model = json.loads(load.get(server.port, "/model"))["hash"]
        assert model == (first if outcome == "bundle refused" else second)
        assert server.stop() == 0
    for kept in (data / "last-good").iterdir():
        assert kept.name == files_hash(folder_files(kept / "bundle"))
    assert len(list((data / "last-good").iterdir())) == 1


def by_itself(bundle: Bundle, given: Asks) -> dict[tuple[str, bytes], Any]:
    """What a bundle answers when no other is near."""
    service = Service(bundle)
    answers = service.requests([("POST", path, {"content": body}) for path, body in given])
    return {
        (path, body): comparable(Exchange("", path, body, answer.status_code, answer.json()))
        for (path, body), answer in zip(given, answers, strict=True)
    }


def comparable(told: Exchange) -> dict[str, Any]:
    """An answer without its id, and with scores that are equal where they are nearly so."""
    others = {"scores", "predictions", "outputs", "request_id"}
    labels = [output["data"] for output in told.answer.get("outputs", []) if output["name"] == "label"]
    rest = {name: value for name, value in told.answer.items() if name not in others}
    return rest | {"scores": [round(score, 9) for score in told.scores], "tensor": labels}


# Disks


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[tuple[str, Callable[[Server], Path]]]:
    """A Python that starts with `folder` as a disk of its own, and how to look at that disk from here."""
    folder.mkdir()
    python = folder.with_suffix(".python")
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$@"'
    start = f"unshare --mount --map-root-user sh -c '{mount}' '{folder}' '{sys.executable}'"
    python.write_text(f'#!/bin/sh\nexec {start} "$@"\n')
    python.chmod(0o755)
    opened: list[int] = []

    def look(server: Server) -> Path:
        """The disk, which stays as long as somebody looks at it."""
        opened.append(os.open(f"/proc/{server.process.pid}/root{folder}", os.O_RDONLY))
        return Path(f"/proc/self/fd/{opened[-1]}")

    try:
        yield str(python), look
    finally:
        for descriptor in opened:
            os.close(descriptor)


def fill(disk: Path) -> Path:
    """Write to a file until there is no room."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(bytes(100_000))
            except OSError:
                return filler


def test_predictions_go_on_while_the_disk_is_full_and_are_logged_once_it_is_not(made: Made, tmp_path: Path) -> None:
    bundle, folder = made("binary-onnx"), tmp_path / "disk"
    with (
        small_disk(folder, "size=40m") as (python, look),
        serving(tmp_path, bundle, python, SERVING_DATA_DIR=str(folder)) as server,
    ):
        disk = look(server)
        with Load(server.port, asks(server, bundle)) as full:
            full.until_scored(100)
            filler = fill(disk)
            until(lambda: metric(server, "serving_journal_failing"))
            full.until_scored(100)
            assert "No space left on device" in details(server)
            assert metric(server, "serving_journal_waiting") > 0
            outcome = json.dumps({"outcomes": [{"request_id": "a", "outcome": True}]}).encode()
            refused = load.ask(server.port, load.FEEDBACK, outcome, "outcome")
            assert refused.status == 503
            assert "again" in refused.answer["detail"]
        many = [ask(server, body_of(bundle, 9000), f"many-{count}") for count in range(10)]
        assert {told.status for told in many} == {200}
        dropped = metric(server, "serving_journal_dropped_total")
        assert 0 < dropped < 10
        filler.unlink()
        until(lambda: not metric(server, "serving_journal_waiting") + metric(server, "serving_feedback_waiting"))
        assert not metric(server, "serving_journal_failing")
        assert details(server) == ""
        with Load(server.port, asks(server, bundle)) as later:
            later.until_scored(100)
        assert statuses(full, later) == {200}
        assert server.stop() == 0
        answered = [*full.scored, *many, *later.scored]
        found = logged(disk / "log")
        assert len([told for told in answered if told.id not in found]) == dropped
        check_logged([told for told in answered if told.id in found or told not in many], disk)


def test_a_disk_too_small_for_the_bundle_holds_no_piece_of_it(made: Made, tmp_path: Path) -> None:
    bundle, folder = made("binary-onnx"), tmp_path / "disk"
    with (
        small_disk(folder, "size=20k") as (python, look),
        serving(tmp_path, bundle, python, SERVING_DATA_DIR=str(folder)) as server,
    ):
        assert ask(server, body_of(bundle, 1), "a").status == 200
        until(lambda: events(server, "last good bundle not kept"))
        assert [path.name for path in (look(server) / "last-good").iterdir()] == []


def test_predictions_go_on_where_the_disk_may_only_be_read(made: Made, tmp_path: Path) -> None:
    bundle, folder = made("binary-onnx"), tmp_path / "disk"
    with (
        small_disk(folder, "size=1m,ro") as (python, _),
        serving(tmp_path, bundle, python, SERVING_DATA_DIR=str(folder)) as server,
    ):
        with Load(server.port, asks(server, bundle)) as loaded:
            loaded.until_scored(100)
        assert statuses(loaded) == {200}
        assert "Read-only file system" in details(server)
        assert metric(server, "serving_journal_failing") == 1
        assert metric(server, "serving_journal_waiting") == len(loaded.scored)
        assert server.stop() == 0
        assert [line["entries"] for line in events(server, "entries are lost")] == [len(loaded.scored)]


# Clocks


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the wall clock of servers that start from now on, at any time; the monotonic clock stays as it is."""
    found = ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"]
    library = subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()
    offset, new = tmp_path / "clock", tmp_path / "clock.new"

    def set_clock(by: str) -> None:
        new.write_text(by)
        new.rename(offset)

    set_clock("+0")
    for name in ("NO_CACHE", "DONT_FAKE_MONOTONIC"):
        monkeypatch.setenv(f"FAKETIME_{name}", "1")
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
    monkeypatch.setenv("LD_PRELOAD", library)
    before = set(SHARED.glob("*faketime_*"))
    yield set_clock
    for left in set(SHARED.glob("*faketime_*")) - before:  # by processes that end without a word to the library
        if not Path("/proc", left.name.rpartition("_")[2]).exists():
            left.unlink()


def keys_file(path: Path, key: str) -> None:
    """Let this key alone ask for scores."""
    new = path.with_suffix(".new")
    new.write_text(f'[client]\nscopes = ["predict"]\nsha256 = "{sha256(key.encode()).hexdigest()}"\n')
    new.rename(path)


def test_a_clock_that_jumps_changes_nothing_but_the_times_in_the_log(
    faulty: tuple[Bundle, Path], clock: Callable[[str], None], tmp_path: Path
) -> None:
    (bundle, fault), data, keys = faulty, tmp_path / "data", tmp_path / "keys.toml"
    keys_file(keys, "first")
    given = {"SERVING_DATA_DIR": str(data), "SERVING_OPEN": "0", "SERVING_KEYS_FILE": str(keys)}
    given |= {"SERVING_BREAKER_COOLDOWN_S": "2"}
    body = body_of(bundle, 1)
    answered: list[Exchange] = []
    with serving(tmp_path, bundle, **given) as server:

        def source(key: str) -> Any:
            answered.append(load.ask(server.port, PREDICT, body, f"source-{len(answered)}", key))
            return (answered[-1].answer or {}).get("source")

        with Load(server.port, asks(server, bundle), key="first") as loaded:
            for by in ("+400d", "-4000d", "+1d", "-1d", "+400d"):
                with half_sent(server.port, body, key="first") as rest:
                    clock(by)
                    loaded.until_scored(20)
                    assert rest(body).startswith(b"HTTP/1.1 200 ")
            assert statuses(loaded) == {200}
        assert metric(server, "serving_model_failures_total") + metric(server, "serving_refused_total") == 0
        assert details(server) == ""
        fault.write_text("MainThread raises")
        until(lambda: source("first") == "baseline" and metric(server, "serving_breaker_open"))
        fault.unlink()
        with half_sent(server.port, body, key="first") as rest:
            clock("-4000d")
            until(lambda: source("first") == "model" and not metric(server, "serving_breaker_open"))
            assert rest(b"").startswith(b"HTTP/1.1 408 ")
        keys_file(keys, "second")
        until(lambda: source("second") == "model")
        assert server.stop() == 0
    with serving(tmp_path, bundle, **given) as server:
        answered.append(load.ask(server.port, PREDICT, body, "last", "second"))
        assert server.stop() == 0
    answered = [told for told in answered if told.status == 200]
    check_logged([*loaded.scored, *answered], data)
    entries = list(read_entries(data / "log", PREDICTIONS))
    assert len({entry["time"][:4] for entry in entries}) >= 3, "the clock did not jump"
    order = [entry["request_id"] for entry in entries]
    assert [name for name in order if name in {told.id for told in answered}] == [told.id for told in answered]


@contextmanager
def half_sent(port: int, body: bytes, key: str) -> Iterator[Callable[[bytes], bytes]]:
    """A request whose body lacks its last ten bytes; what is called sends them, if it is given the body, and gives the
    answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = (
            f"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body[:-10])

        def rest(remaining: bytes) -> bytes:
            connection.sendall(remaining[-10:])
            return connection.recv(65536)

        yield rest


# Stops


def test_a_stop_under_load_answers_what_was_accepted_and_logs_it(made: Made, tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    for count in range(5):
        data = tmp_path / f"data-{count}"
        with (
            serving(tmp_path, bundle, SERVING_DATA_DIR=str(data)) as server,
            Load(server.port, asks(server, bundle)) as loaded,
        ):
            loaded.until_scored(50)
            time.sleep(random.uniform(0, 0.1))  # noqa: S311 - any moment
            assert server.stop() == 0
            loaded.wait()
        assert statuses(loaded) <= {200, None}  # whole, or not begun
        check_logged(loaded.scored, data)
        answered = {told.id for told in loaded.scored}
        assert set(logged(data / "log")) == answered
        assert answered <= {line["request_id"] for line in events(server, "request") if line["status"] == 200}
        assert server.lines()[-1]["event"].startswith("Finished server process")


def test_a_slow_request_is_answered_before_the_service_stops(faulty: tuple[Bundle, Path], tmp_path: Path) -> None:
    (bundle, fault), data = faulty, tmp_path / "data"
    given = {"SERVING_DATA_DIR": str(data), "SERVING_MODEL_BUDGET_S": "600", "SERVING_SHUTDOWN_S": "600"}
    fault.write_text("model hangs")
    with serving(tmp_path, bundle, **given) as server, ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, server, body_of(bundle, 300), "slow")
        until(lambda: metric(server, "serving_in_flight") == 2)
        server.process.terminate()
        until(lambda: events(server, "Shutting down"))
        assert ask(server, body_of(bundle, 1), "late").status is None
        fault.unlink()
        told = slow.result(60)
        assert (told.status, told.answer["source"]) == (200, "model")
        assert server.process.wait(60) == 0
    check_logged([told], data)


@pytest.mark.parametrize(("budget_s", "status"), [("0.5", 200), ("600", 503)])
def test_a_model_that_hangs_does_not_keep_the_service_from_stopping(
    faulty: tuple[Bundle, Path], tmp_path: Path, budget_s: str, status: int
) -> None:
    (bundle, fault), data = faulty, tmp_path / "data"
    given = {"SERVING_DATA_DIR": str(data), "SERVING_MODEL_BUDGET_S": budget_s, "SERVING_SHUTDOWN_S": "3"}
    fault.write_text("model hangs")
    with serving(tmp_path, bundle, **given) as server, ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, server, body_of(bundle, 300), "slow")
        until(lambda: metric(server, "serving_in_flight") == 2)
        assert server.stop() == 0
        told = slow.result(60)
    assert told.status == status
    assert "stopped" in told.answer["detail"] if status == 503 else told.answer["source"] == "baseline"
    check_logged([told] if status == 200 else [], data)


def test_a_stop_that_comes_while_the_server_is_made_is_heard(made: Made, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{STOPPED}' \"$@\"\n")
    python.chmod(0o755)
    bundle = made("binary-onnx")
    given = {"SERVING_MODEL_DIR": str(bundle.folder), "SERVING_DATA_DIR": str(tmp_path / "data"), "SERVING_OPEN": "1"}
    env = environment(SERVING_PORT="0", **given)
    done = subprocess.run(
        command(bundle, str(python)), env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Shutting down" in done.stdout


# The model's stand-ins


@pytest.mark.parametrize(
    ("fault", "counted"),
    [("shadow hangs", "serving_shadow_dropped_total"), ("shadow raises", "serving_challenger_failures_total")],
)
def test_a_shadow_that_fails_costs_no_answer(
    faulty: tuple[Bundle, Path], tmp_path: Path, fault: str, counted: str
) -> None:
    bundle, told = faulty
    second = twin(bundle, tmp_path / "second")
    given = {"SERVING_DATA_DIR": str(tmp_path / "data"), "SERVING_CHALLENGER_DIR": str(second.folder)}
    told.write_text(fault)
    with serving(tmp_path, bundle, **given) as server:
        with Load(server.port, asks(server, bundle)) as loaded:
            until(lambda: metric(server, counted) > 0)
            loaded.until_scored(100)
        assert statuses(loaded) == {200}
        assert metric(server, "serving_challenger_rows_total") == 0
        assert server.stop() == 0
    check_logged(loaded.scored, tmp_path / "data")
    assert {entry["model"] for entry in read_entries(tmp_path / "data" / "log", PREDICTIONS)} == {bundle.hash}


def test_a_model_that_is_switched_off_at_the_start_stays_so_until_somebody_revives_it(
    made: Made, tmp_path: Path
) -> None:
    bundle, data = made("binary-onnx"), tmp_path / "data"
    with serving(tmp_path, bundle, SERVING_DATA_DIR=str(data), SERVING_KILLED="1") as server:
        for reloads in (0, 1):
            with Load(server.port, asks(server, bundle)) as loaded:
                loaded.until_scored(50)
            assert statuses(loaded) == {200}
            assert {told.answer.get("source", "baseline") for told in loaded.scored} == {"baseline"}
            assert {entry["source"] for entry in read_entries(data / "log", PREDICTIONS)} == {"baseline"}
            assert "SERVING_KILLED" in details(server)
            assert metric(server, "serving_breaker_open") == 1
            server.process.send_signal(signal.SIGHUP)
            until(lambda: metric(server, "serving_reloads_total") > reloads)  # noqa: B023 - called at once
