"""The inspection: is the bundle on disk airworthy? Every hash checked, the evaluation and the training made again, the
duel with the champion held. Change here to inspect more. `python -m flows.inspect` exits with 0 for airworthy, 1 for
grounded, 2 where it could not inspect.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field

from flows import ledger, tracking
from flows.evaluate import BUNDLE, PREPARED, REPORTS, bundle_hash, evaluated, read_json, read_params, released
from flows.files import write_whole
from flows.repository import Repository
from flows.stage import artifact, child_environment, run, say
from pipeline import gates
from pipeline.canonical import file_hash, folder_files, json_bytes
from pipeline.compare import differences, same_table, score_gap
from pipeline.duel import Duel, duel
from pipeline.errors import InputError
from pipeline.evaluate import EvaluateParams
from pipeline.featurize import raw_columns
from pipeline.params import Params, read_section
from pipeline.prepared import read_prepared
from pipeline.report import Release, page, report_files
from pipeline.scoring import Scorer, parse_columns
from problem.features import features
from problem.schema import CONTRACT

INSPECTION = Path("inspection")
_ROWS = 500  # scored one by one, for the latency


class InspectParams(Params):
    """What an inspection may be told, beside what `evaluate` is."""

    size_mb: float = Field(gt=0)
    latency_ms: float = Field(gt=0)
    waived: gates.Waivers


def inspect() -> int:
    """Hold every gate on the bundle on disk, print and keep the verdicts; returns 0 for airworthy, 1 for grounded."""
    shutil.rmtree(INSPECTION, ignore_errors=True)  # an earlier verdict says nothing of this bundle
    params, repository = read_params(), Repository()
    own = read_section(Path("params.yaml"), "inspect", InspectParams)
    check_present(repository)
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        release = pool.submit(lambda: released(evaluated(params)))
        trained = pool.submit(made_again, "train", Path(scratch, "bundle"))
        prepared = pool.submit(made_again, "preprocess", Path(scratch, "prepared"))
        held = pool.submit(duel_with_champion, params)
        pool.submit(import_module, "mlflow")  # 2 s, which are needed at the end: now a core is free
        on_bundle = gates.on_evaluation(lambda: release.result().evaluation, params.limits)
        beside: gates.Gates = {
            "hashes": lambda: gates.hashes(broken_hashes(repository)),
            "recorded": lambda: gates.recorded(changed_reports(release.result(), params, trained.result())),
            "reproducible": lambda: reproduced(prepared.result(), trained.result()),
            "champion": lambda: gates.champion(held.result(), params.margin),
            "size": lambda: gates.size(megabytes(), own.size_mb),
            "latency": lambda: gates.latency(milliseconds(), own.latency_ms),
        }
        verdicts = gates.judge(on_bundle, params.waived) + gates.judge(beside, own.waived)
    expected = gates.names(gates.INSPECTION)
    verdict = gates.as_json(verdicts, expected, bundle_hash())
    fought = None if held.exception() else held.result()
    recorded = {"champion": state(held.exception(), fought), "dvc.lock": file_hash(Path("dvc.lock"))}
    files = {"gates.json": json_bytes({**verdict, **recorded})}
    if not release.exception():
        files["index.html"] = page(release.result()._replace(verdict=verdict, inspected=True, duel=fought))
    write_whole(INSPECTION, files)
    report(verdicts, verdict)
    stopped, waived = ", ".join(gates.grounds(verdicts, expected)), ", ".join(verdict["waived"])
    told = "AIRWORTHY" if verdict["airworthy"] else f"GROUNDED by {stopped}"
    told += f" (WAIVED: {waived})" if waived else ""
    say(f"\n{told}: bundle {verdict['bundle'][:12]}; see {INSPECTION}/{[*files][-1]}")
    return 0 if verdict["airworthy"] else 1


def report(verdicts: list[gates.Verdict], verdict: Mapping[str, Any]) -> None:
    """Show the verdicts on the terminal, in Prefect and in MLflow, which has no say in whether a model may fly."""
    say(table(verdicts))
    artifact("inspection", f"```text\n{table(verdicts)}\n```")
    try:
        tracking.log_inspection(INSPECTION, verdict)
    except Exception as error:
        say(f"MLflow did not take the inspection ({error})")


def check_present(repository: Repository) -> None:
    """InputError where there is no whole run of the pipeline to inspect."""
    paths = [path for stage in repository.stages for path in repository.outputs(stage)]
    missing = [str(path) for path in [*paths, Path("dvc.lock")] if not path.exists()]
    if missing:
        raise InputError(f"expected all that the pipeline makes, found no {', '.join(missing)}; run `dvc repro --pull`")


def broken_hashes(repository: Repository) -> list[str]:
    """Every file that is not the recorded one: by dvc.lock, by data.dvc, and by what the bundle was made from."""
    stages = [name for stage in repository.stages for name in repository.differing(stage, repository.outputs(stage))]
    broken = [f"{name} is not as dvc.lock records it" for name in dict.fromkeys(stages)]
    if not repository.has_data():
        broken.append("data is not as data.dvc records it")
    made_from = {Path(name): digest for name, digest in read_json(BUNDLE / "lineage.json")["files"].items()}
    made_from[Path("src/problem/features.py")] = read_json(BUNDLE / "contract.json")["features_hash"]
    other = [path for path, digest in made_from.items() if file_hash(path) != digest]
    return broken + [f"{path} is not what the bundle was made from" for path in other]


def changed_reports(release: Release, params: EvaluateParams, trained: Path) -> list[str]:
    """What the recorded reports say otherwise than an evaluation made now: not a byte on the same platform; on another
    one figures may be rounded, and pages, which are drawn from them, are compared by their words."""
    verdicts = gates.judge(gates.on_evaluation(lambda: release.evaluation, params.limits), params.waived)
    verdict = gates.as_json(verdicts, gates.names(gates.EVALUATION), bundle_hash())
    made, recorded = report_files(release._replace(verdict=verdict)), folder_files(REPORTS)
    if same_platform(trained):
        found = differences(recorded, made, "bytes")
    else:
        pages = (".html", ".md")
        found = [line for line in differences(recorded, made) if not line.split()[0].endswith(pages)]
        found += [line for line in differences(recorded, made, "words") if line.split()[0].endswith(pages)]
    return [f"{REPORTS}/{line}" for line in found]


def made_again(stage: str, folder: Path) -> Path:
    """Run a stage into another folder, by a process of its own, as DVC does."""
    command = [sys.executable, "-m", f"flows.{stage}", str(folder)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)  # noqa: S603 - the project's own
    if done.returncode:
        raise InputError(f"expected {stage} to succeed again, it ended with: {done.stderr.strip()[-300:]}")
    return folder


def same_platform(trained: Path) -> bool:
    """Whether the bundle says that it was trained on this platform."""
    here, there = (read_json(folder / "lineage.json")["platform"] for folder in (trained, BUNDLE))
    return bool(here == there)


def reproduced(prepared: Path, trained: Path) -> gates.Measured:
    """Whether the tables and the bundle on disk are what the data and the code give; the bundle by its bytes, or on
    another platform by its figures, and by the scores of every validation and test row."""
    tables, again = folder_files(PREPARED), folder_files(prepared)
    different = [f"{PREPARED}/{n}" for n in again if n not in tables or not same_content(n, tables[n], again[n])]
    ours, theirs = folder_files(BUNDLE), folder_files(trained)
    if same_platform(trained) or ours == theirs:
        return gates.reproducible([*different, *differences(ours, theirs, "bytes")], 0)
    for files in (ours, theirs):
        files["lineage.json"] = json_bytes({**json.loads(files["lineage.json"]), "platform": None})
    models = ("model.onnx", "pipeline.skops")
    told, made = ({n: b"" if n in models else content for n, content in files.items()} for files in (ours, theirs))
    rows = [read_prepared(PREPARED / f"{split}.parquet") for split in ("validation", "test")]
    scorers = [Scorer.load(folder, features) for folder in (BUNDLE, trained)]
    scores = [[scorer.score(raw_columns(table, CONTRACT)) for table in rows] for scorer in scorers]
    gap = max(score_gap(left, right) for left, right in zip(*scores, strict=True))
    return gates.reproducible([*different, *differences(told, made)], gap)


def same_content(name: str, recorded: bytes, made: bytes) -> bool:
    """Whether a prepared file is the same, whatever the platform."""
    return same_table(recorded, made) if name.endswith(".parquet") else not differences({name: recorded}, {name: made})


def megabytes() -> float:
    """The size of the bundle."""
    return sum(map(len, folder_files(BUNDLE).values())) / 1e6


def milliseconds() -> list[float]:
    """How long each of many raw rows takes to be scored alone, from JSON values to the score."""
    scorer, rows = Scorer.load(BUNDLE, features), read_json(BUNDLE / "golden.json")["rows"]
    inputs = scorer.contract["inputs"]
    count, taken = len(rows[inputs[0]["name"]]), []
    for number in range(_ROWS):
        row = {name: [values[number % count]] for name, values in rows.items()}
        start = time.perf_counter()
        scorer.score(parse_columns(row, inputs))
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def duel_with_champion(params: EvaluateParams) -> Duel | None:
    """The duel; None where nothing has flown yet."""
    entry = ledger.champion()
    if entry is None:
        return None
    with ledger.bundle_of(entry) as (folder, its_features):
        return duel(
            read_prepared(PREPARED / "test.parquet"),
            contract=CONTRACT,
            challenger=(Scorer.load(BUNDLE, features), read_json(BUNDLE / "lineage.json")),
            champion=(Scorer.load(folder, its_features), read_json(folder / "lineage.json")),
            name=entry.tag,
            params=params,
        )


def state(error: BaseException | None, fought: Duel | None) -> dict[str, Any]:
    """The champion as the inspection found it: `first` (there is none yet), `duel`, or `unreadable`."""
    if error is not None:
        return {"state": "unreadable", "why": str(error)}
    entry = ledger.champion()
    if fought is None or entry is None:
        return {"state": "first"}
    return {"state": "duel", **entry._asdict(), "rows": fought.rows}


def table(verdicts: list[gates.Verdict]) -> str:
    """The verdicts as lines for a terminal."""
    lines = []
    for gate in verdicts:
        passed = "passed" if gate.passed else "FAILED"
        limit = "" if gate.limit is None else f"{gate.bound} {gate.limit:g}"
        value = "" if gate.value is None else f"{gate.value:.4g}"
        waived = f" [WAIVED: {gate.waived}]" if gate.waived else ""
        lines.append(f"{gate.gate:<13} {passed}  {value:>10}  {limit:<16} {gate.reason}{waived}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(inspect, tracked=False, failed=2)
