"""The train stage: `prepared/` and `tuning/` in, `bundle/` out. Change here to read or write other files."""

import json
from pathlib import Path

from flows.files import write_whole
from flows.stage import io, run_stage, say
from pipeline.canonical import file_hash
from pipeline.lineage import lineage
from pipeline.params import read_section
from pipeline.prepared import read_prepared
from pipeline.train import TrainParams
from pipeline.train import train as fit
from problem.features import features
from problem.models import CANDIDATES
from problem.schema import CONTRACT

SPLITS = {name: Path(f"prepared/{name}.parquet") for name in ("train", "validation")}
BEST, LOCK = Path("tuning/best.json"), Path("requirements.lock")


def train(folder: str = "bundle") -> None:
    """Fit the chosen candidate, calibrate it, set its threshold, and export the bundle."""
    params = read_section(Path("params.yaml"), "train", TrainParams)
    splits = {name: io(read_prepared)(path) for name, path in SPLITS.items()}
    files = [*SPLITS.values(), BEST, LOCK]
    bundle = fit(
        splits["train"],
        splits["validation"],
        contract=CONTRACT,
        features=features,
        candidates=CANDIDATES,
        best=json.loads(BEST.read_text()),
        params=params,
        features_hash=file_hash(Path("src/problem/features.py")),
        lineage=lineage(splits, contract=CONTRACT, files=files, params=params.model_dump(), source=Path("src")),
    )
    io(write_whole)(Path(folder), bundle)
    contract = json.loads(bundle["contract.json"])
    reason = contract["runtime_reason"] and f": {contract['runtime_reason']}"
    say(f"runtime {contract['runtime']}{reason}, {sum(map(len, bundle.values())) / 1e6:.1f} MB")


if __name__ == "__main__":
    run_stage(train)
