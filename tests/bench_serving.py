"""What the service costs beside its rivals: `make bench-serving` measures them in turn and prints what
docs/benchmarks.md shows. It needs wrk. ROUNDS and SECONDS (of a load) shorten a run, ONLY=mlflow,hello narrows it."""

import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.clones import ROOT
from tests.rivals.running import Running, ask, binaries, running, say, tree
from tests.rivals.servers import Rows, Server, servers
from tests.rivals.trained import save, trained

ROUNDS, SECONDS = int(os.environ.get("ROUNDS", "5")), int(os.environ.get("SECONDS", "3"))
CLIENTS, BATCH, SEED, SETTLES_S = 16, 1000, 5, 1
TOLERANCE = 1e-6  # between a server's scores and those of golden.json
WRK = ("wrk", "-t1", "--latency", "--timeout", "30s")
OURS, TENSORS, SKLEARN, HELLO = "service", "service-tensors", "service-sklearn", "hello"
GOALS = {  # the service's answers a second over the rival's, at least; its median alone over the rival's, at most
    "mlflow": (100, 1 / 60),
    "mlserver": (80, 1 / 60),
    "mlserver-batching": None,
    "bentoml": (60, 1 / 50),
    "bentoml-batching": (20, 1 / 50),
    "tutorial": (60, 1 / 30),
    HELLO: (1, 1.5),
    TENSORS: None,
    SKLEARN: None,
}
ROWS_TIMES, COLD_TIMES, MEMORY_MB, P99_MS = 3, 0.4, 150, 1
QUEUE_TIMES = 7  # what scoring together all that queued brings a model on scikit-learn, over one row at a time
SHOWN = "mlflow mlserver mlserver-sklearn bentoml fastapi starlette uvicorn uvloop httptools pydantic msgspec".split()
SHOWN += "onnxruntime numpy pandas scikit-learn".split()


class Load(NamedTuple):
    """What a server did under load; the processor time is that of one answer."""

    per_second: float
    median_ms: float
    p99_ms: float
    cpu_us: float


class Turn(NamedTuple):
    """What a server did in one turn: busy with `CLIENTS`, alone with one, and with batches of `BATCH` rows."""

    per_second: float
    median_ms: float  # this and the next alone
    p99_ms: float
    cpu_us: float
    rows_per_second: float
    memory_mb: float
    cold_s: float


COLUMNS = (
    "answers a second",
    "median alone, ms",
    "99th percentile alone, ms",
    "processor time, µs",
    f"rows a second, {BATCH:,} a request",
    "memory, MB",
    "start to first answer, s",
)

Group = dict[str, Server]
Rounds = list[dict[str, Turn]]
Show = Callable[[float], str]


def check(name: str, server: Server, url: str, rows: Rows, expected: list[float]) -> None:
    """End where a server's scores are not those that the bundle was shipped with."""
    for count in (1, len(rows)) if server.body else ():
        scores = server.scores(ask(server, url, rows[:count]))
        gaps = [abs(score - right) for score, right in zip(scores, expected[:count], strict=True)]
        if not max(gaps) <= TOLERANCE:
            sys.exit(f"{name}: expected the scores of golden.json within {TOLERANCE}, got one off by {max(gaps)}")


def load(server: Server, up: Running, rows: Rows, clients: int, folder: Path, seconds: int) -> Load:
    """Ask a server as fast as it answers."""
    script = folder / "ask.lua"
    headers = {"Content-Type": "application/json", **server.headers}
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    if server.body:
        lines.append(f"wrk.method, wrk.body = 'POST', [==[{json.dumps(server.body(rows))}]==]")
    script.write_text("\n".join(lines))
    before = _cpu_s(up.process)
    done = subprocess.run(
        [*WRK, f"-c{clients}", f"-d{seconds}s", "-s", str(script), up.url], check=False, capture_output=True, text=True
    )
    cpu_s = _cpu_s(up.process) - before
    answered = int((re.findall(r"(\d+) requests in", done.stdout) or ["0"])[0])
    if done.returncode or not answered or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        sys.exit(f"{done.stdout}{done.stderr}\nexpected every request to {server.command} to be answered with 200")
    per_second = float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])
    return Load(per_second, _percentile(50, done.stdout), _percentile(99, done.stdout), 1e6 * cpu_s / answered)


def turns(group: Group, rows: Rows, scores: list[float], folder: Path) -> dict[str, Turn]:
    """Start servers, check what they answer, measure them second by second in turn, stop them."""
    with ExitStack() as stack:
        ups = {name: stack.enter_context(running(server, rows[:1], folder)) for name, server in group.items()}

        def measured(servers: Group, asked: Rows, clients: int) -> dict[str, Load]:
            times, seconds = (SECONDS, 1) if len(servers) > 1 else (1, SECONDS)
            loads = [
                {name: load(server, ups[name], asked, clients, folder, seconds) for name, server in servers.items()}
                for _ in range(1 + times)
            ][1:]  # the first warms them
            return {
                name: Load(*map(statistics.median, zip(*(told[name] for told in loads), strict=True)))
                for name in servers
            }

        for name, server in group.items():
            check(name, server, ups[name].url, rows, scores)
        alone, busy = measured(group, rows[:1], 1), measured(group, rows[:1], CLIENTS)
        time.sleep(SETTLES_S)  # what their clients left behind is answered
        models = {name: server for name, server in group.items() if server.body}
        batches = measured(models, rows, 1)  # last: they write 100 MB of log
        return {
            name: Turn(
                busy[name].per_second,
                alone[name].median_ms,
                alone[name].p99_ms,
                busy[name].cpu_us,
                BATCH * batches[name].per_second if name in models else math.nan,
                sum(process.memory_info().rss for process in tree(ups[name].process)) / 1e6,
                ups[name].cold_s,
            )
            for name in group
        }


def order(known: Group, chance: random.Random) -> list[Group]:
    """A round's turns by chance: each server has its own, but the service and hello world share one, since there a few
    hundredths decide, and the machine changes from one second to the next."""
    pair = [name for name in known if name in (OURS, HELLO)]
    groups = [pair, *([name] for name in known if name not in pair)]
    chance.shuffle(pair)
    chance.shuffle(groups)
    return [{name: known[name] for name in group} for group in groups]


def main() -> None:
    """Measure in rounds, and print."""
    if shutil.which("wrk") is None:
        sys.exit("expected wrk, which asks the servers; on Debian or Ubuntu: apt install wrk")
    if not (ROOT / "bundle/golden.json").exists():
        sys.exit("expected a bundle in bundle/, found none; run `make repro`")
    golden = json.loads((ROOT / "bundle/golden.json").read_text())
    inputs = json.loads((ROOT / "bundle/contract.json").read_text())["inputs"]
    shipped = [dict(zip(golden["rows"], values, strict=True)) for values in zip(*golden["rows"].values(), strict=True)]
    rows = [shipped[i % len(shipped)] for i in range(BATCH)]
    scores = [golden["scores"][i % len(shipped)][0] for i in range(BATCH)]
    (ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as scratch:
        folder = Path(scratch)
        known = servers(folder, inputs)
        only = os.environ.get("ONLY", ",".join(GOALS)).split(",")
        if unknown := set(only) - set(GOALS):
            sys.exit(f"ONLY: expected some of {', '.join(GOALS)}, got {', '.join(unknown)}")
        known = {name: known[name] for name in (OURS, *GOALS) if name in (OURS, *only)}
        for server in known.values():
            binaries(server)
        save(trained({column["name"]: column["kind"] for column in inputs}), folder)
        chance = random.Random(SEED)  # noqa: S311 - an order, and no secret
        rounds: Rounds = []
        for number in range(ROUNDS):
            rounds.append({})
            for group in order(known, chance):
                say(f"round {number + 1} of {ROUNDS}: {', '.join(group)}")
                rounds[-1] |= turns(group, rows, scores, folder)
        lines = [*against(rounds), "", *by_itself(rounds), "", *figures(rounds), "", *conditions(known, folder)]
    sys.stdout.write("\n".join(lines) + "\n")


def against(rounds: Rounds) -> list[str]:
    """The service over each rival, round by round."""
    out = [f"| the service over | answers a second, {CLIENTS} clients | goal | median alone | goal | processor time |"]
    out.append("| --- | --- | --- | --- | --- | --- |")
    for name in [name for name in GOALS if name in rounds[0]]:
        pairs = [zip(turns[OURS], turns[name], strict=True) for turns in rounds]
        ratios = [Turn(*(ours / theirs for ours, theirs in pair)) for pair in pairs]
        faster, sooner, _, cheaper, *_ = ([*values] for values in zip(*ratios, strict=True))
        least, most = GOALS[name] or (None, None)
        out.append(
            f"| {name} | {_spread(faster)} times | {_goal(faster, least=least)} "
            f"| {_spread(sooner, _share)} | {_goal(sooner, _share, most=most)} | {_spread(cheaper, _share)} |"
        )
    return out


def by_itself(rounds: Rounds) -> list[str]:
    """The service's other goals; hello world, which has no model, is no rival there."""
    ours = [turns[OURS] for turns in rounds]
    models = [[turn for name, turn in turns.items() if name not in (OURS, TENSORS, SKLEARN, HELLO)] for turns in rounds]
    out = ["| the service | measured | goal |", "| --- | --- | --- |"]
    if all(models):
        both = list(zip(ours, models, strict=True))
        best = [max(other.rows_per_second for other in others) for others in models]
        cold = [turn.cold_s / min(other.cold_s for other in others) for turn, others in both]
        for name, form in ((TENSORS, "in columns"), (OURS, "row by row")):
            if name in rounds[0]:
                rows = [turns[name].rows_per_second / most for turns, most in zip(rounds, best, strict=True)]
                said = f"{COLUMNS[4]} {form}, over the best rival's"
                out.append(f"| {said} | {_spread(rows)} times | {_goal(rows, least=ROWS_TIMES)} |")
        out.append(
            f"| start to first answer, over the best rival's | {_spread(cold)} | {_goal(cold, most=COLD_TIMES)} |"
        )
    memory, p99 = [turn.memory_mb for turn in ours], [turn.p99_ms for turn in ours]
    out.append(f"| {COLUMNS[5]} | {_spread(memory)} | {_goal(memory, most=MEMORY_MB)} |")
    out.append(f"| {COLUMNS[2]} | {_spread(p99)} | {_goal(p99, most=P99_MS)} |")
    if SKLEARN in rounds[0]:
        queued = [turns[SKLEARN].per_second * turns[SKLEARN].median_ms / 1000 for turns in rounds]
        told = f"on scikit-learn: answers a second to {CLIENTS} clients, over one at a time"
        out.append(f"| {told} | {_spread(queued)} times | {_goal(queued, least=QUEUE_TIMES)} |")
    return out


def figures(rounds: Rounds) -> list[str]:
    """What each server did, in medians of the rounds."""
    out = [f"| server | {' | '.join(COLUMNS)} |", f"| --- |{' --- |' * len(COLUMNS)}"]
    for name in [name for name in (OURS, *GOALS) if name in rounds[0]]:
        columns = zip(*(turns[name] for turns in rounds), strict=True)
        out.append(f"| {name} | {' | '.join(_number(statistics.median(values)) for values in columns)} |")
    return out


def conditions(known: dict[str, Server], folder: Path) -> list[str]:
    """Where, how and with what it was measured."""
    wrk = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True).stdout.split(" [")[0]
    ask = f"`{' '.join(WRK)} -c{CLIENTS} -d{SECONDS}s -s ask.lua URL`"
    out = [
        f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {wrk}. {ROUNDS} rounds in shuffled order (seed "
        f"{SEED}), in which every server is started, checked, measured and stopped in turn: all give the scores of "
        f"golden.json within {TOLERANCE}. Medians, with the least and the most of the rounds; a ratio is of one round.",
        f"{ask}, one row a request; with -c1 for a client alone and for batches. The second of two such "
        "loads counts; the service and hello world are asked second by second in turn, and the median counts. "
        f"Processor time is that of one answer at {CLIENTS} clients, memory the resident set at the end, both of all "
        "processes.",
        "",
    ]
    for name, server in known.items():
        own = [f"{variable}={value}" for variable, value in server.environment.items()]
        command = " ".join([*own, server.command]).replace(str(folder), "SCRATCH").replace("{bin}/", "")
        out.append(f"- {name}: `{command}`, {server.path}; {_versions(server)}")
    return out


def _versions(server: Server) -> str:
    uv = [sys.executable, "-m", "uv", "pip", "freeze", "--quiet", "--python", str(binaries(server) / "python")]
    frozen = subprocess.run(uv, check=True, capture_output=True, text=True).stdout.splitlines()
    return ", ".join(line.replace("==", " ") for line in frozen if line.partition("==")[0] in SHOWN)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float) -> str:
    return _number(value) if value > 0.2 else f"1/{1 / value:.0f}"


def _spread(values: list[float], show: Show = _number) -> str:
    return f"{show(statistics.median(values))} ({show(min(values))} to {show(max(values))})"


def _goal(values: list[float], show: Show = _number, *, least: float | None = None, most: float | None = None) -> str:
    median = statistics.median(values)
    if least is not None:
        return f"at least {show(least)}: {'met' if median >= least else '**not met**'}"
    if most is not None:
        return f"at most {show(most)}: {'met' if median <= most else '**not met**'}"
    return "none"


def _percentile(which: int, told: str) -> float:
    value, unit = re.findall(rf"^\s+{which}%\s+([\d.]+)(us|ms|s)\b", told, re.MULTILINE)[0]
    return float(value) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]


def _cpu_s(process: psutil.Popen) -> float:
    times = [each.cpu_times() for each in tree(process)]
    return sum(spent.user + spent.system for spent in times)


if __name__ == "__main__":
    main()
