"""The evaluate stage: `bundle/` and the test rows in, `reports/` out. Change here to read or write other files."""

import json
from pathlib import Path

from flows.files import write_whole
from flows.stage import artifact, io, run, say
from pipeline.evaluate import EvaluateParams, report_files
from pipeline.evaluate import evaluate as judge
from pipeline.params import read_section
from pipeline.prepared import read_prepared
from pipeline.scoring import Scorer
from problem.features import features
from problem.schema import CONTRACT

BUNDLE = Path("bundle")


def evaluate() -> None:
    """Judge the bundle on the test rows, beside the baselines."""
    params = read_section(Path("params.yaml"), "evaluate", EvaluateParams)
    test = io(read_prepared)(Path("prepared/test.parquet"))
    evaluation = judge(
        test,
        contract=CONTRACT,
        scorer=io(Scorer.load)(BUNDLE, features),
        baselines=json.loads((BUNDLE / "baseline.json").read_text()),
        params=params,
    )
    files = report_files(evaluation, CONTRACT)
    io(write_whole)(Path("reports"), files)
    summary = files["summary.md"].decode()
    artifact("report", summary)
    say(f"{evaluation.rows:,} {CONTRACT.noun}: reports/summary.md")


if __name__ == "__main__":
    run(evaluate)
