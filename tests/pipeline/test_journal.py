import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.journal import FEEDBACK, PREDICTIONS, Journal, Prediction, read_entries, read_predictions

SRC = Path(__file__).resolve().parents[2] / "src"
KILLS = 25


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entries(first: int, last: int, length: int = 0) -> list[bytes]:
    """Numbered entries, each of that many bytes at least."""
    return [json.dumps({"n": n, "filling": "x" * length}).encode() for n in range(first, last)]


def numbers(folder: Path, kind: str = PREDICTIONS) -> list[int]:
    return [entry["n"] for entry in read_entries(folder, kind)]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: the kernel writes what fits, and refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_entries_are_read_in_the_order_of_writing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "folder", PREDICTIONS)
    assert journal.append(entries(0, 3))
    assert journal.append(entries(3, 4))
    assert numbers(tmp_path / "new" / "folder") == [0, 1, 2, 3]  # before it is closed
    assert (journal.waiting, journal.dropped, journal.failing) == (0, 0, None)
    assert journal.close()


def test_nothing_is_made_before_there_is_an_entry(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", PREDICTIONS)
    assert journal.append([])
    assert journal.retry()
    assert journal.close()
    assert not (tmp_path / "log").exists()
    assert not list(read_entries(tmp_path / "log", PREDICTIONS))
    assert not list(read_predictions(tmp_path / "log"))


def test_one_append_is_one_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, PREDICTIONS)
    written, write = [], os.write

    def count(descriptor: int, data: bytes) -> int:
        written.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", count)
    assert journal.append(entries(0, 1000))
    assert len(written) == 1


def test_each_kind_and_each_process_has_segments_of_its_own(tmp_path: Path) -> None:
    journals = [Journal(tmp_path, kind) for kind in ("feedback", "feedback-late", "feedback")]
    for n, journal in enumerate(journals):
        assert journal.append(entries(n, n + 1))
    assert len(segments(tmp_path)) == 3
    assert numbers(tmp_path, "feedback") == [0, 2]
    assert numbers(tmp_path, "feedback-late") == [1]


def test_a_segment_that_is_long_enough_is_followed_by_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path, PREDICTIONS, segment_bytes=1000)
    for n in range(40):
        assert journal.append(entries(n, n + 1, 100))
    assert len(segments(tmp_path)) >= 4
    assert all(1000 <= path.stat().st_size < 1200 for path in segments(tmp_path)[:-1])
    assert numbers(tmp_path) == list(range(40))


def test_a_clock_that_was_set_back_changes_no_order(tmp_path: Path) -> None:
    ahead = tmp_path / f"{PREDICTIONS}-20991231235959999999-00000000.jsonl"  # written before it was set right
    ahead.write_bytes(entries(0, 1)[0] + b"\n")
    journal = Journal(tmp_path, PREDICTIONS, segment_bytes=1)
    for n in range(1, 20):
        assert journal.append(entries(n, n + 1))
    assert numbers(tmp_path) == list(range(20))
    assert len(segments(tmp_path)) == 20


def test_a_removed_segment_is_not_written_any_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log", PREDICTIONS)
    assert journal.append(entries(0, 1))
    segments(tmp_path / "log")[0].unlink()
    (tmp_path / "log").rmdir()
    assert journal.append(entries(1, 2))
    assert numbers(tmp_path / "log") == [1]


def test_other_files_of_the_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("{}\n")
    (tmp_path / "predictions-20260131120000000000-0a1b2c3d.jsonl.gz").write_bytes(b"\x1f\x8b\n")
    assert not list(read_entries(tmp_path, PREDICTIONS))


def test_what_does_not_fit_waits_and_the_whole_entries_before_it_stay(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(tmp_path, PREDICTIONS, clock=clock)
    assert journal.append(entries(0, 2, 1000))
    with room(4500):
        assert not journal.append(entries(2, 6, 1000))  # two of them fit, and a part of the third
        assert journal.waiting == 2
        assert journal.failing == f"cannot write the predictions into {tmp_path}: No space left on device"
        assert numbers(tmp_path) == [0, 1, 2, 3]
        assert segments(tmp_path)[0].read_bytes().endswith(b"\n")
        clock.now += 1.5
        assert not journal.append(entries(6, 7, 1000))
        assert journal.failing == f"cannot write the predictions into {tmp_path}: No space left on device"
    assert journal.waiting == 3
    clock.now += 1.5
    assert journal.retry()
    assert (journal.waiting, journal.dropped, journal.failing) == (0, 0, None)
    assert numbers(tmp_path) == list(range(7))
    assert len(segments(tmp_path)) == 1


def test_a_torn_line_that_cannot_be_taken_away_ends_its_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    journal = Journal(tmp_path, PREDICTIONS, clock=clock)

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(5, f"no {length} for {descriptor}")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with room(2500):
        assert not journal.append(entries(0, 4, 1000))
    assert not segments(tmp_path)[0].read_bytes().endswith(b"\n")
    clock.now += 1.5
    assert journal.append(entries(4, 5))
    assert len(segments(tmp_path)) == 2
    assert numbers(tmp_path) == list(range(5))  # each once


def test_a_disk_that_fails_is_tried_once_a_second(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "log"
    folder.write_text("a file where the folder should be")
    journal = Journal(folder, PREDICTIONS, clock=clock)
    assert not journal.append(entries(0, 1))
    assert journal.failing == f"cannot write the predictions into {folder}: File exists"
    folder.unlink()
    clock.now += 0.9
    assert not journal.append(entries(1, 2))
    assert not journal.retry()
    assert not folder.exists()
    clock.now += 0.2
    assert journal.append(entries(2, 3))
    assert journal.failing is None
    assert numbers(folder) == [0, 1, 2]


def test_closing_tries_at_once_and_tells_what_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.write_text("a file where the folder should be")
    journal = Journal(folder, PREDICTIONS, clock=Clock())
    assert not journal.append(entries(0, 2))
    assert not journal.close()
    assert journal.waiting == 2
    folder.unlink()
    assert journal.close()
    assert numbers(folder) == [0, 1]


def test_the_newest_are_dropped_where_there_is_no_room_to_wait(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "log"
    folder.write_text("a file where the folder should be")
    size = len(entries(0, 1, 100)[0])
    journal = Journal(folder, PREDICTIONS, waiting_bytes=5 * size, clock=clock)
    for n in range(0, 9, 3):
        assert not journal.append(entries(n, n + 3, 100))
    assert (journal.waiting, journal.dropped) == (5, 4)
    folder.unlink()
    clock.now += 1.5
    assert journal.append(entries(9, 10, 100))
    assert numbers(folder) == [0, 1, 2, 3, 4, 9]


def test_what_has_been_written_makes_room_for_others_to_wait(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(tmp_path, PREDICTIONS, waiting_bytes=4500, clock=clock)
    with room(2500):
        assert not journal.append(entries(0, 4, 1000))  # two of them fit
        assert not journal.append(entries(4, 6, 1000))
        assert (journal.waiting, journal.dropped) == (4, 0)
    clock.now += 1.5
    assert journal.retry()
    with room(0):
        assert not journal.append(entries(6, 11, 1000))
    assert (journal.waiting, journal.dropped) == (4, 1)


def test_a_journal_has_one_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - is opened for the listing, and closed
    journal = Journal(tmp_path, PREDICTIONS, segment_bytes=1)
    for n in range(9):
        assert journal.append(entries(n, n + 1))
    assert len(os.listdir("/proc/self/fd")) == before + 1  # noqa: PTH208
    assert journal.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


DISKS = """
import json, os, subprocess, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from pipeline.journal import Journal, read_entries

folder, now = Path(sys.argv[1]), 100.0
made = 0

def batch():
    global made
    made += 7
    return [json.dumps({"n": n, "filling": "x" * 1000}).encode() for n in range(made - 7, made)]

def seen(journal, done):
    numbers = [entry["n"] for entry in read_entries(folder, "predictions")]
    return {"done": done, "failing": journal.failing, "waiting": journal.waiting, "dropped": journal.dropped,
        "read": len(numbers), "in order": numbers == list(range(len(numbers))), "made": made,
        "whole": all(path.read_bytes().endswith(b"\\n") for path in folder.glob("*.jsonl") if path.stat().st_size),
        "free": os.statvfs(folder).f_bavail, "segments": len(list(folder.glob("*.jsonl")))}

def filled(journal):
    while journal.append(batch()):
        pass
    return seen(journal, False)

journal = Journal(folder, "predictions", clock=lambda: now)
told = {}
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
told["read-only"] = seen(journal, journal.append(batch()))
now += 2
told["still read-only"] = seen(journal, journal.append(batch()))
subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
now += 2
told["writable"] = seen(journal, journal.append(batch()))
filler = folder / "filler"
filler.write_bytes(bytes(700_000))
told["full"] = filled(journal)
now += 2
told["still full"] = seen(journal, journal.append(batch()))
os.truncate(filler, 690_000)
now += 2
told["a little room"] = seen(journal, journal.retry())
filler.unlink()
now += 2
told["room"] = seen(journal, journal.append(batch()))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a journal told on a disk of a megabyte that was read-only, then writable, then full, then not."""
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$0" -c "$3" "$1" "$2"'
    arguments = [sys.executable, str(tmp_path_factory.mktemp("disk")), str(SRC), DISKS]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("moment", ["read-only", "still read-only"])
def test_entries_wait_while_the_disk_is_read_only(told: Any, moment: str) -> None:
    found = told[moment]
    assert not found["done"]
    assert found["failing"].endswith(": Read-only file system")
    assert found["waiting"] == found["made"]
    assert found["segments"] == 0


def test_entries_wait_while_the_disk_is_full(told: Any) -> None:
    for moment in ("full", "still full", "a little room"):
        found = told[moment]
        assert not found["done"]
        assert found["failing"].endswith(": No space left on device")
        assert found["free"] == 0
        assert found["whole"], moment
        assert found["in order"]
        assert found["waiting"] == found["made"] - found["read"]
        assert found["segments"] == 1
    assert told["still full"]["read"] == told["full"]["read"] < told["a little room"]["read"]


@pytest.mark.parametrize("moment", ["writable", "room"])
def test_what_waited_is_written_once_the_disk_can_be(told: Any, moment: str) -> None:
    found = told[moment]
    assert found["done"]
    assert found["failing"] is None
    assert (found["waiting"], found["dropped"]) == (0, 0)
    assert found["in order"]
    assert found["read"] == found["made"]


WRITER = """
import itertools, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[3]]
from pipeline.journal import Journal

fillings = [b"x" * length for length in (10, 1_000_000, 100, 20_000, 10)]  # most of the time is spent in the writing
journal = Journal(Path(sys.argv[1]), "predictions", segment_bytes=5_000_000)
for first in itertools.count(0, 5):
    made = [b'{"process": %s, "n": %d, "filling": "%b"}' % (sys.argv[2].encode(), first + n, filling)
        for n, filling in enumerate(fillings)]
    assert journal.append(made)
    os.write(1, b"%d\\n" % (first + 4))
"""


def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311 - when to kill
    acknowledged = []
    for process in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(process), str(SRC)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            told = [writer.stdout.readline() for _ in range(chance.randrange(1, 9))]
            for _ in range(chance.randrange(10_000)):  # so that it is anywhere in its next
                pass
            writer.kill()
            told += writer.stdout.readlines()
        acknowledged.append(max(int(line) for line in told if line.endswith(b"\n")))
    found: list[list[int]] = [[] for _ in acknowledged]
    for entry in read_entries(tmp_path, PREDICTIONS):
        found[entry["process"]].append(entry["n"])
    for last, read in zip(acknowledged, found, strict=True):
        assert read == list(range(len(read)))
        assert len(read) > last


def test_a_torn_last_line_is_skipped_in_every_segment(tmp_path: Path) -> None:
    for n in range(3):
        assert Journal(tmp_path, PREDICTIONS).append(entries(n, n + 1))
        with segments(tmp_path)[-1].open("ab") as file:
            file.write(entries(9, 10)[0][:-3])
    assert numbers(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"\xff{}\n", b'{"n": 1\n', b"[1]\n", b"\n", b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    assert Journal(tmp_path, PREDICTIONS).append(entries(0, 2))
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes() + damage + entries(2, 3)[0] + b"\n")
    found = []
    with pytest.raises(InputError) as raised:
        found += [entry["n"] for entry in read_entries(tmp_path, PREDICTIONS)]
    assert str(raised.value).startswith(f"{path}, line 3: expected a JSON object, got something else (")
    assert str(raised.value).endswith("restore the file from a copy, or move it out of the folder to read without it")


def written(folder: Path, kind: str, *made: dict[str, Any]) -> None:
    """A segment with these entries."""
    journal = Journal(folder, kind)
    assert journal.append([json.dumps(entry).encode() for entry in made])
    assert journal.close()


def answered(minute: int, request_id: str, scores: list[Any], **changed: Any) -> dict[str, Any]:
    rows = [{"x": n} for n in range(len(scores))]
    said = {"time": f"2026-01-31T12:{minute:02}:00Z", "request_id": request_id, "model": "abc", "source": "model"}
    return said | {"rows": rows, "scores": scores} | changed


def true(second: str, request_id: str, row: int, outcome: Any) -> dict[str, Any]:
    said = {"time": f"2026-01-31T13:00:{second}Z", "request_id": request_id, "row": row}
    return said | {"outcome": outcome, "by": "warehouse"}


def test_each_scored_row_is_one_prediction(tmp_path: Path) -> None:
    columns = {"x": [1, None], "name": ["a", "b"]}
    several = answered(1, "b", [[0.1, 0.9], [0.5, 0.5]], source="baseline", columns=columns)
    del several["rows"]
    written(tmp_path, PREDICTIONS, answered(0, "a", [0.25]), several)
    first, second, third = read_predictions(tmp_path)
    noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert first == Prediction(noon, "a", 0, "abc", "model", {"x": 0}, 0.25, None, None)
    later = noon.replace(minute=1)
    assert second == Prediction(later, "b", 0, "abc", "baseline", {"x": 1, "name": "a"}, [0.1, 0.9], None, None)
    assert third == Prediction(later, "b", 1, "abc", "baseline", {"x": None, "name": "b"}, [0.5, 0.5], None, None)


def test_outcomes_are_joined_by_request_and_row_whichever_came_first(tmp_path: Path) -> None:
    written(tmp_path, FEEDBACK, true("01", "b", 1, True), true("02", "nobody's", 0, True))
    written(tmp_path, PREDICTIONS, answered(0, "a", [0.1]))
    written(tmp_path, PREDICTIONS, answered(1, "b", [0.2, 0.3]))
    written(tmp_path, FEEDBACK, true("03", "a", 0, False))
    joined = [(found.request_id, found.row, found.outcome) for found in read_predictions(tmp_path)]
    assert joined == [("a", 0, False), ("b", 0, None), ("b", 1, True)]
    assert next(read_predictions(tmp_path)).outcome_time == datetime(2026, 1, 31, 13, 0, 3, tzinfo=UTC)


def test_the_last_outcome_to_be_written_holds_whatever_the_clock_said(tmp_path: Path) -> None:
    written(tmp_path, PREDICTIONS, answered(0, "a", [0.1, 0.2]))
    written(tmp_path, FEEDBACK, true("06", "a", 0, "first"), true("05", "a", 1, "first"))
    written(tmp_path, FEEDBACK, true("05", "a", 0, "second"), true("06", "a", 1, "second"))
    assert [found.outcome for found in read_predictions(tmp_path)] == ["second", "second"]


def test_an_outcome_is_that_of_every_row_so_named(tmp_path: Path) -> None:
    written(tmp_path, PREDICTIONS, answered(0, "again", [0.1]), answered(1, "again", [0.2]))
    written(tmp_path, FEEDBACK, true("00", "again", 0, 1.5))
    assert [(found.score, found.outcome) for found in read_predictions(tmp_path)] == [(0.1, 1.5), (0.2, 1.5)]


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        (PREDICTIONS, {"time": "2026-01-31T12:00:00Z", "request_id": "a"}),
        (PREDICTIONS, answered(0, "a", [0.1, 0.2], rows=[{}])),
        (PREDICTIONS, answered(0, "a", [0.1, 0.2], columns={"x": [1, 2], "y": [1]})),
        (PREDICTIONS, answered(0, "a", [0.1], columns=[1])),
        (PREDICTIONS, answered(0, "a", [0.1]) | {"time": "2026-01-31T13:00:00"}),
        (FEEDBACK, true("05", "a", 0, True) | {"time": "yesterday"}),
        (FEEDBACK, true("05", "a", 0, True) | {"time": 5}),
        (FEEDBACK, true("05", "a", 0, True) | {"time": "2026-01-31T13:00:00"}),
    ],
)
def test_an_entry_of_another_form_is_named(tmp_path: Path, kind: str, entry: dict[str, Any]) -> None:
    written(tmp_path, PREDICTIONS, answered(0, "a", [0.1]))
    written(tmp_path, FEEDBACK, true("00", "a", 0, True))
    written(tmp_path, kind, entry)
    path = sorted(tmp_path.glob(f"{kind}-*"))[-1]
    with pytest.raises(InputError) as raised:
        list(read_predictions(tmp_path))
    assert str(raised.value).startswith(f"{path}, line 1: expected an entry of the {kind}, got something else (")
