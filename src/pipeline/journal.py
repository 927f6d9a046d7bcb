"""The prediction log: what was answered, and what then came true, as lines of JSON in files that only grow. Change here
to keep it elsewhere.

The service writes entries of two kinds into one folder, each kind into segments of its own:
`predictions` {"time", "request_id", "model", "source", "scores": [...], "rows": [{...}] or "columns": {name: [...]}}
`feedback` {"time", "request_id", "row", "outcome", "by"}
A process begins a segment of its own, so nobody ever appends behind the torn line of one that was killed. Segments may
be moved away at any time, but for the newest of each kind, which is being written.
"""

import errno
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError

PREDICTIONS, FEEDBACK = "predictions", "feedback"
_RETRY_S = 1.0
_NONE = -1  # no file: what is done to it fails
_MODE = 0o640  # rows may tell of persons


class Prediction(NamedTuple):
    """A row that was scored: by which model (hash), from what source (model, baseline, ...), and what came true; both
    outcomes None where that is not known yet."""

    time: datetime
    request_id: str
    row: int
    model: str
    source: str
    inputs: dict[str, Any]
    score: float | list[float]
    outcome: bool | str | float | None
    outcome_time: datetime | None


class Journal:
    """Entries of one kind, appended to segments in a folder on a local disk. For one thread: there are no locks.

    What is appended survives the death of the process (kill -9); there is no fsync, so a loss of power takes what the
    kernel had not yet brought to the disk. Where a segment cannot be written, `failing` says why, and entries wait, up
    to `waiting_bytes` of them. Beyond that the newest are dropped and counted: whoever appends sees it happen, what
    once waits is not given up, and the log has one gap. A disk that fails is tried once a second at most.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        *,
        segment_bytes: int = 64_000_000,
        waiting_bytes: int = 16_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failing: str | None = None
        self.dropped = 0
        self._folder = folder
        self._kind = kind
        self._segment_bytes = segment_bytes
        self._waiting_bytes = waiting_bytes
        self._clock = clock
        self._descriptor = _NONE
        self._entries: deque[bytes] = deque()
        self._bytes = 0  # of them
        self._next_try = -inf

    @property
    def waiting(self) -> int:
        """How many entries wait to be written."""
        return len(self._entries)

    def append(self, entries: Sequence[bytes]) -> bool:
        """Write entries, each a JSON object without line breaks, behind those that wait: all by one system call. True
        once all are in the file; else they wait, or are dropped."""
        self._entries.extend(entries)
        self._bytes += sum(map(len, entries))
        if self.retry():
            return True
        while self._bytes > self._waiting_bytes:
            self._bytes -= len(self._entries.pop())
            self.dropped += 1
        return False

    def retry(self) -> bool:
        """Write what waits, if it is time to try again; whether nothing waits any more. For a timer."""
        if not self._entries:
            return True
        if self.failing and self._clock() < self._next_try:
            return False
        data = b"\n".join([*self._entries, b""])
        written = self._write(data)
        if written == len(data):
            self._entries.clear()
            self._bytes = 0
            return True
        for _ in range(data.count(b"\n", 0, written)):
            self._bytes -= len(self._entries.popleft())
        return False

    def close(self) -> bool:
        """Write what waits, whenever the last try was, and end; whether nothing is lost."""
        self._next_try = -inf
        done = self.retry()
        self._leave_segment()
        return done

    def _write(self, data: bytes) -> int:
        """Append lines; how many bytes of them are in the file, which then ends with a whole line."""
        length, written = -1, 0
        try:
            length = self._segment()
            written = os.write(self._descriptor, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.failing = None
        except OSError as error:
            self.failing = f"cannot write the {self._kind} into {self._folder}: {error.strerror}"
            self._next_try = self._clock() + _RETRY_S
            written = data.rfind(b"\n", 0, written) + 1
            self._cut(length + written)
        return written

    def _cut(self, length: int) -> None:
        """Take a torn line away; where that fails, or there was no segment, the next try begins a new one."""
        try:
            os.ftruncate(self._descriptor, length)
        except OSError:
            self._leave_segment()

    def _segment(self) -> int:
        """See to a segment to append to; its length. A new one follows where it is long enough, or was removed."""
        if self._descriptor != _NONE:
            found = os.fstat(self._descriptor)
            if found.st_nlink and found.st_size < self._segment_bytes:
                return found.st_size
            self._leave_segment()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._kind}-{self._start()}-{os.urandom(4).hex()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, _MODE)
        return 0

    def _start(self) -> int:
        """The time as the digits of a name, in UTC; later than every segment's, also where the clock was set back."""
        newest = max((int(path.name.split("-")[-2]) for path in _segments(self._folder, self._kind)), default=0)
        return max(int(datetime.now(UTC).strftime("%Y%m%d%H%M%S%f")), newest + 1)

    def _leave_segment(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = _NONE


def read_entries(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Every entry of a kind, in the order of writing (of processes side by side, segment by segment); none where the
    folder is missing.

    A last line that is torn was never acknowledged, and is skipped. InputError names a line that is damaged otherwise.
    """
    return (entry for _, entry in _located(folder, kind))


def read_predictions(folder: Path) -> Iterator[Prediction]:
    """Every row that was scored, in the order of writing, with what came true of it: the one way to read the log.

    Feedback is joined by request id and row, whichever was written first; of several outcomes the last that was written
    holds, whatever the clock said. Clients may choose their own request ids: where one repeats, an outcome is that of
    every row so named. Only the feedback is held in memory. InputError names a line that the service did not write.
    """
    outcomes: dict[tuple[str, int], tuple[datetime, Any]] = {}
    for where, entry in _located(folder, FEEDBACK):
        with _expecting(f"an entry of the {FEEDBACK}", where):
            outcomes[entry["request_id"], entry["row"]] = _moment(entry["time"]), entry["outcome"]
    for where, entry in _located(folder, PREDICTIONS):
        with _expecting(f"an entry of the {PREDICTIONS}", where):
            rows = list(_rows(entry, outcomes))
        yield from rows


def _rows(entry: Mapping[str, Any], outcomes: Mapping[tuple[str, int], tuple[datetime, Any]]) -> Iterator[Prediction]:
    columns = entry.get("columns")
    inputs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] if columns else []
    answered, request_id = _moment(entry["time"]), entry["request_id"]
    for row, (values, score) in enumerate(zip(inputs or entry["rows"], entry["scores"], strict=True)):
        came, outcome = outcomes.get((request_id, row), (None, None))
        yield Prediction(answered, request_id, row, entry["model"], entry["source"], values, score, outcome, came)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a time without its offset, {text}")
    return moment


def _segments(folder: Path, kind: str) -> list[Path]:
    """The segments of a kind, in the order in which they were begun."""
    named = re.compile(re.escape(kind) + r"-\d{20}-[0-9a-f]{8}\.jsonl")
    if not folder.exists():
        return []
    return sorted(path for path in folder.iterdir() if named.fullmatch(path.name))


def _located(folder: Path, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry of a kind, after the file and line where it stands."""
    for path in _segments(folder, kind):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    with _expecting("a JSON object", where):
        entry = json.loads(line)
        if isinstance(entry, dict):
            return entry
        raise TypeError(f"a {type(entry).__name__}")


@contextmanager
def _expecting(expected: str, where: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected {expected}, got something else ({error!r}); restore the file from a copy, or move it "
            "out of the folder to read without it"
        ) from error
