"""The raw data on disk: one Parquet file per period, and a manifest. Change here to store it otherwise."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.canonical import sha256
from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.verify import check_columns

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"
# DVC may have recorded the damage before a stage saw it.
RESTORE = "run `git checkout data.dvc && dvc checkout --force data.dvc`, or ingest again"


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest of a data folder: per period its rows, quarantined rows with reasons, and hash."""
    path = data / MANIFEST
    if not path.is_file():
        raise InputError(f"expected the manifest {path}, found none; run `dvc pull data.dvc`, or ingest again")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        _ = [(entry["rows"], entry["reasons"], entry["sha256"]) for entry in manifest["periods"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected JSON with 'periods', each with 'rows', 'reasons' and 'sha256', got something else "
            f"({error!r}); {RESTORE}"
        ) from error
    return manifest


def read_partitions(data: Path, contract: Contract) -> tuple[pd.DataFrame, list[tuple[Path, int]]]:
    """Every partition that the manifest names, as one table in the order of time, with each file's number of rows."""
    manifest = read_manifest(data)["periods"]
    periods = sorted(manifest)
    _check_files(data, periods)
    _check_gaps(data, periods)
    paths = [data / f"{period}.parquet" for period in periods]
    tables = [_read(path, contract, manifest[path.stem]["sha256"]) for path in paths]
    table, locations = pd.concat(tables, ignore_index=True), [(p, len(t)) for p, t in zip(paths, tables, strict=True)]
    del tables
    pa.default_memory_pool().release_unused()  # else as much again as the table
    return table, locations


def _check_files(data: Path, periods: Sequence[str]) -> None:
    found = {path.stem for path in data.glob("*.parquet")}
    if not periods or found != set(periods):
        raise InputError(
            f"{data}: expected the partitions {list(periods)} of its manifest; missing {sorted(set(periods) - found)}, "
            f"not in the manifest {sorted(found - set(periods))}; {RESTORE}"
        )


def _check_gaps(data: Path, periods: Sequence[str]) -> None:
    if not all(len(period) == len("2013-01") and period[4] == "-" for period in periods):
        return
    expected = pd.period_range(periods[0], periods[-1], freq="M").strftime("%Y-%m")
    missing = [month for month in expected if month not in periods]
    if missing:
        raise InputError(
            f"{data}: expected every month from {periods[0]} to {periods[-1]}, but {missing} is missing; "
            f"run `python -m flows.ingest --from {missing[0]} --to {missing[-1]}`"
        )


def _read(path: Path, contract: Contract, recorded: str) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises whatever it meets
        raise InputError(
            f"{path}: expected a Parquet file, got {path.stat().st_size} bytes that do not read as one ({error}); "
            f"{RESTORE}"
        ) from error
    check_columns(table, contract, source=str(path))
    if table.empty:
        raise InputError(f"{path}: expected at least one row, got an empty table; ingest this period again")
    if sha256(path.read_bytes()) != recorded:
        raise InputError(
            f"{path}: expected the hash {recorded[:12]} of the manifest, got another; ingest this period again"
        )
    return table
