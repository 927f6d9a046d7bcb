"""The evaluate stage: `bundle/` and the prepared rows in, `reports/` out. Change here to read or write other files."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from flows.files import write_whole
from flows.stage import artifact, io, run, say
from pipeline import gates
from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError
from pipeline.evaluate import EvaluateParams, Evaluation
from pipeline.evaluate import evaluate as judge
from pipeline.params import read_section
from pipeline.pictures import report_plots
from pipeline.prepared import SPLITS, read_prepared
from pipeline.report import Release, report_files
from pipeline.scoring import Scorer
from problem.features import features
from problem.models import CANDIDATES
from problem.schema import CONTRACT

BUNDLE, TUNING, PREPARED, REPORTS = Path("bundle"), Path("tuning"), Path("prepared"), Path("reports")
PROBLEM = Path("docs/problem.md")


def evaluate() -> None:
    """Judge the bundle on the test rows, beside the baselines, and hold the gates on it alone."""
    params = read_params()
    evaluation = evaluated(params)
    verdicts = gates.judge(gates.on_evaluation(lambda: evaluation, params.limits), params.waived)
    expected = gates.names(gates.EVALUATION)
    verdict = gates.as_json(verdicts, expected, bundle_hash())
    files = report_files(released(evaluation)._replace(verdict=verdict))
    io(write_whole)(REPORTS, files)
    artifact("report", files["card.md"].decode())
    stopped = ", ".join(gates.grounds(verdicts, expected)) or "none"
    say(f"{evaluation.rows:,} {CONTRACT.noun}: reports/index.html; gates that ground the bundle: {stopped}")


def read_params() -> EvaluateParams:
    """The stage's section of params.yaml."""
    return read_section(Path("params.yaml"), "evaluate", EvaluateParams)


def evaluated(params: EvaluateParams) -> Evaluation:
    """The evaluation of the files on disk."""
    if not BUNDLE.is_dir():
        raise InputError(f"expected a bundle in {BUNDLE}/, found none; run `dvc repro --pull`")
    return judge(
        {name: io(read_prepared)(PREPARED / f"{name}.parquet") for name in SPLITS},
        contract=CONTRACT,
        scorer=io(Scorer.load)(BUNDLE, features),
        bundle={name: read_json(BUNDLE / name) for name in ("baseline.json", "golden.json")},
        candidates=CANDIDATES,
        best=read_json(TUNING / "best.json"),
        trials=pd.read_csv(TUNING / "trials.csv"),
        params=params,
    )


def released(evaluation: Evaluation) -> Release:
    """What a report is made from, still without a verdict: the evaluation, and the files that tell of the bundle."""
    if not PROBLEM.is_file():
        raise InputError(f"expected {PROBLEM}, which says what the model is for, found none; write it, or restore it")
    problem = PROBLEM.read_text()
    described = read_json(BUNDLE / "contract.json")
    return Release(
        evaluation=evaluation,
        plots=report_plots(evaluation, described),
        verdict={},
        contract=CONTRACT,
        described=described,
        lineage=read_json(BUNDLE / "lineage.json"),
        quality=read_json(PREPARED / "quality.json"),
        problem=problem,
        name=problem.partition("\n")[0].removeprefix("# "),
    )


def bundle_hash() -> str:
    """What the bundle on disk is known by."""
    return files_hash(folder_files(BUNDLE))


def read_json(path: Path) -> Any:
    """A JSON file; InputError names one that is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON, found none that reads ({error}); run `dvc checkout`") from error


if __name__ == "__main__":
    run(evaluate)
