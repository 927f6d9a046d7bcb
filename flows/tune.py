"""The tune stage: `prepared/` in, `tuning/` out. Change here to read or write other files."""

from pathlib import Path

from tqdm import tqdm

from flows.files import write_whole
from flows.stage import io, run, say
from pipeline.canonical import file_hash, json_bytes
from pipeline.lineage import loaded_code
from pipeline.params import read_section
from pipeline.plots import trials_plot
from pipeline.prepared import read_prepared
from pipeline.tune import TuneParams
from pipeline.tune import tune as search
from problem.models import CANDIDATES
from problem.schema import CONTRACT

TRAIN = Path("prepared/train.parquet")
JOURNALS = Path(".tuning")


def tune() -> None:
    """Search for the best candidate and its settings."""
    params = read_section(Path("params.yaml"), "tune", TuneParams)
    train = io(read_prepared)(TRAIN)
    JOURNALS.mkdir(exist_ok=True)
    inputs = file_hash(TRAIN, Path("params.yaml"), *loaded_code(Path("src")))
    journal = JOURNALS / f"{inputs}.log"
    with tqdm(total=params.trials, desc="tune", unit="trial") as bar:
        best, trials = search(
            train, contract=CONTRACT, candidates=CANDIDATES, params=params, journal=journal, after_trial=bar.update
        )
    table = trials.to_csv(index=False, lineterminator="\n").encode()
    files = {"best.json": json_bytes(best), "trials.csv": table, "trials.svg": trials_plot(trials, best["metric"])}
    io(write_whole)(Path("tuning"), files)
    journal.unlink()
    say(f"best of {len(trials)} trials: {best['candidate']}, {best['metric']} {best['score']:.5f}")


if __name__ == "__main__":
    run(tune)
