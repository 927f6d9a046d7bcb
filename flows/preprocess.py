"""The preprocess stage: `data/` in, `prepared/` out. Change here to read or write other files."""

from pathlib import Path

import pandas as pd

from flows.files import write_whole
from flows.stage import io, run_stage, say
from pipeline.canonical import json_bytes, parquet_bytes
from pipeline.params import read_section
from pipeline.partitions import read_manifest, read_partitions
from pipeline.prepared import SPLITS
from pipeline.preprocess import PreprocessParams
from pipeline.preprocess import preprocess as prepare
from problem.features import features
from problem.schema import CONTRACT

DATA = Path("data")


def preprocess(folder: str = "prepared") -> None:
    """Verify the raw table, turn it into features, and split it."""
    params = read_section(Path("params.yaml"), "preprocess", PreprocessParams)
    table, locations = io(read_partitions)(DATA, CONTRACT)
    periods = read_manifest(DATA)["periods"]
    prepared = prepare(
        table,
        contract=CONTRACT,
        features=features,
        params=params,
        locations=locations,
        quarantined={period: entry["reasons"] for period, entry in periods.items()},
    )
    splits = {name: getattr(prepared, name) for name in SPLITS}
    io(write_tables)(splits, Path(folder))
    write_whole(Path(folder, "quality.json"), json_bytes(prepared.quality))
    say(", ".join(f"{name} {len(rows):,} rows" for name, rows in splits.items()))


def write_tables(splits: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each split as Parquet."""
    for name, rows in splits.items():
        write_whole(folder / f"{name}.parquet", parquet_bytes(rows))


if __name__ == "__main__":
    run_stage(preprocess)
