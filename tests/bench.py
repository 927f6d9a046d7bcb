"""What the pipeline costs, as ratios measured in one run: `make bench` prints the tables of docs/benchmarks.md."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil

from tests.clones import ROOT, Clone, environment, make_clone

ROUNDS = 2
PYTHON = str(ROOT / ".venv/bin/python")
PLAIN = """
import os, sys
sys.path[:0] = [".", "src"]
import flows
os.environ.update(flows.environment())
from flows.preprocess import preprocess
from flows.tune import tune
from flows.train import train
from flows.evaluate import evaluate
for stage in (preprocess, tune, train, evaluate):
    stage()
"""
SPEED = """
import sys, time
sys.path[:0] = [".", "src"]
from pathlib import Path
from flows.preprocess import CONTRACT, DATA, PreprocessParams, features, prepare, read_partitions, read_section
params = read_section(Path("params.yaml"), "preprocess", PreprocessParams)
best = 0
for _ in range(5):
    start = time.process_time()
    table, locations = read_partitions(DATA, CONTRACT)
    prepare(table, contract=CONTRACT, features=features, params=params, locations=locations, quarantined={})
    best = max(best, len(table) / (time.process_time() - start))
print(best)
"""


class Peak:
    """The most memory that a process and all below it held at once, in GB: shared pages counted once."""

    def __init__(self, process: psutil.Process) -> None:
        self.gb, self._process, self._done = 0.0, process, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            held = 0
            for process in [self._process, *self._process.children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.gb = max(self.gb, held / 1e9)

    @contextmanager
    def watched(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()


def timed(clone: Clone, *command: str, **env: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command that succeeds."""
    log = clone.path.with_suffix(".log")
    with log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=clone.path, env=environment(**env), stdout=output, stderr=subprocess.STDOUT
        )
        peak = Peak(psutil.Process(process.pid))
        with peak.watched():
            code = process.wait()
    if code:
        sys.exit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - start, peak.gb


def overhead(clone: Clone) -> list[str]:
    """`dvc repro --force` under Prefect and MLflow against the same functions in one plain process."""
    server = subprocess.Popen(
        [PYTHON, "-m", "flows.server"],
        cwd=clone.path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for_server(clone)
        plain, full = [], []
        for _ in range(ROUNDS):
            plain.append(timed(clone, PYTHON, "-c", PLAIN)[0])
            full.append(timed(clone, "dvc", "repro", "--force")[0])
    finally:
        server.terminate()
        server.wait()
    ratio = statistics.median(b / a for a, b in zip(plain, full, strict=True))
    more = statistics.median(b - a for a, b in zip(plain, full, strict=True))
    return [
        f"| `dvc repro --force` with Prefect and MLflow, over one plain process ({statistics.median(plain):.1f} s) "
        f"| {ratio:.2f} times, {more:+.1f} s | at most 1.35 times, 15 s |"
    ]


def inspection(clone: Clone) -> list[str]:
    """What the verdict costs: the evaluation, and the inspection, which makes all but the search again."""
    train, judge, inspect = (timed(clone, PYTHON, "-m", f"flows.{s}")[0] for s in ("train", "evaluate", "inspect"))
    both = judge + inspect
    row = f"| `evaluate` ({judge:.0f} s) and the inspection ({inspect:.0f} s), {both / train:.1f} times `train` "
    return [f"{row}| {both:.0f} s | at most 40 s |"]


def no_op(clone: Clone) -> list[str]:
    """A pipeline that is up to date."""
    repro, status = [], []
    for _ in range(5):
        status.append(timed(clone, "dvc", "status")[0])
        repro.append(timed(clone, "dvc", "repro")[0])
    ratio = statistics.median(repro) / statistics.median(status)
    rival = f"`dvc status` ({statistics.median(status):.2f} s)"
    return [f"| `dvc repro` with nothing to do, over {rival} | {ratio:.2f} times | at most 1.5 times |"]


def whole(clone: Clone) -> list[str]:
    """`make repro` after the installation."""
    seconds, gb = timed(clone, "make", "repro")
    return [
        f"| `make repro` after the installation, tuning included | {seconds:.0f} s | at most 150 s |",
        f"| its peak memory, all processes together | {gb:.2f} GB | at most 1.5 GB |",
    ]


def preprocess_speed(clone: Clone) -> list[str]:
    """Raw rows a second of processor time."""
    done = clone.run(PYTHON, "-c", SPEED, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    return [f"| `preprocess`, raw rows a second and core | {float(done.stdout):,.0f} | at least 250,000 |"]


def ten_copies(clone: Clone, copies: int = 10) -> list[str]:
    """Ten times the data; the search is cut to two trials, which hold as much memory as twelve."""
    sys.path[:0] = [str(ROOT / "src")]
    from pipeline.canonical import json_bytes, parquet_bytes, sha256
    from pipeline.partitions import MANIFEST, read_manifest
    from problem.schema import CONTRACT

    data = clone.path / "data"
    manifest = read_manifest(data)
    for period, entry in manifest["periods"].items():
        rows = pd.read_parquet(data / f"{period}.parquet")
        # A key stands once: every copy is a millisecond later than the one before.
        moment = CONTRACT.time.name
        shifted = [rows.assign(**{moment: rows[moment] + pd.Timedelta(milliseconds=i)}) for i in range(copies)]
        content = parquet_bytes(pd.concat(shifted, ignore_index=True))
        (data / f"{period}.parquet").unlink()
        (data / f"{period}.parquet").write_bytes(content)
        entry |= {"rows": copies * len(rows), "sha256": sha256(content)}
    (data / MANIFEST).unlink()
    (data / MANIFEST).write_bytes(json_bytes(manifest))
    clone.dvc("add", "--quiet", "data")
    clone.edit_params(tune__trials=2)
    seconds, gb = timed(clone, "dvc", "repro")
    return [f"| ten copies of the data ({seconds:.0f} s, two trials), peak memory | {gb:.2f} GB | at most 4 GB |"]


def _wait_for_server(clone: Clone) -> None:
    deadline = time.monotonic() + 90
    while not (clone.path / ".prefect/server.json").exists():
        if time.monotonic() > deadline:
            sys.exit("expected Prefect's server to start; see .prefect/server.log")
        time.sleep(0.2)


def main(parts: Sequence[str]) -> None:
    """Measure, and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder) / "clone")
        clone.dvc("pull", "--quiet", "data.dvc")
        sys.stdout.write(f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}\n\n")
        sys.stdout.write("| what | measured | goal |\n| --- | --- | --- |\n")
        for part in (whole, inspection, overhead, no_op, preprocess_speed, ten_copies):
            if not parts or part.__name__ in parts:
                sys.stdout.write("\n".join(part(clone)) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
