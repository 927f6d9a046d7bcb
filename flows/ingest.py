"""New raw data: periods are pulled from the source, checked, and put under `data/`, which DVC tracks. Change here to
keep more than one table."""

import argparse
from pathlib import Path
from typing import Any

from flows.files import write_whole
from flows.repro import dvc
from flows.stage import io, run, say
from pipeline.canonical import json_bytes, sha256
from pipeline.errors import InputError
from pipeline.ingest import IngestParams, Partition, sort_rows
from pipeline.params import read_section
from pipeline.partitions import MANIFEST, QUARANTINE, read_manifest
from problem import source
from problem.schema import CONTRACT

DATA = Path("data")
RECORD = Path("data.dvc")


def ingest(first: str, last: str) -> None:
    """Put the periods `first` to `last` of the source under `data/`; what is there and unchanged stays untouched."""
    periods = [period for period in source.periods() if first <= period <= last]
    if not periods or (periods[0], periods[-1]) != (first, last):
        raise InputError(
            f"expected --from and --to to be periods that {source.NAME} holds ({', '.join(source.periods())}), "
            f"got {first} and {last}; correct them"
        )
    params = read_section(Path("params.yaml"), "ingest", IngestParams)
    held = held_periods()
    made = {period: io(read_period)(period, params) for period in periods}
    for period, partition in made.items():
        say(_what_happened(period, held.get(period), partition))
        io(write_partition)(period, partition)
    entries = dict(sorted((held | {period: partition.entry for period, partition in made.items()}).items()))
    write_whole(DATA / MANIFEST, json_bytes({"source": source.NAME, "periods": entries}))
    dvc("add", "--quiet", str(DATA))


def ingest_next() -> str | None:
    """Ingest the first period of the source after what `data/` holds, and name it; None where it has none."""
    last = max(held_periods(), default="")
    period = next((period for period in source.periods() if period > last), None)
    if period is not None:
        ingest(period, period)
    return period


def held_periods() -> dict[str, Any]:
    """The manifest's entry per period under `data/`; InputError where DVC records periods that are not there."""
    if not (DATA / MANIFEST).is_file():
        if RECORD.is_file():
            raise InputError(
                f"{DATA}/: expected the periods that {RECORD} records, found none; run `dvc pull {RECORD}`"
            )
        return {}
    periods: dict[str, Any] = read_manifest(DATA)["periods"]
    return periods


def read_period(period: str, params: IngestParams) -> Partition:
    """One period of the source, its rows sorted into kept and quarantined."""
    table = source.read(period, CONTRACT)
    return sort_rows(table, CONTRACT, period=period, max_quarantined_share=params.max_quarantined_share)


def write_partition(period: str, partition: Partition) -> None:
    """Write one period's rows, and the quarantined ones beside them; the manifest follows when all are written."""
    quarantine = DATA / QUARANTINE / f"{period}.parquet"
    if partition.quarantined is None:
        quarantine.unlink(missing_ok=True)
    else:
        write_whole(quarantine, partition.quarantined)
    path = DATA / f"{period}.parquet"
    if not path.is_file() or sha256(path.read_bytes()) != partition.entry["sha256"]:
        write_whole(path, partition.kept)


def _what_happened(period: str, before: dict[str, Any] | None, partition: Partition) -> str:
    came = f"{partition.entry['rows']:,} rows kept, {partition.entry['quarantined']} quarantined"
    if before is None:
        return f"{period}: new, {came}"
    if before == partition.entry:
        return f"{period}: unchanged, {came}"
    return (
        f"{period}: REVISION: {came}, hash {before['sha256'][:8]} became {partition.entry['sha256'][:8]}; the version "
        "before stays in DVC under the data.dvc that git recorded (git checkout REVISION data.dvc && dvc checkout)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.ingest", description=ingest.__doc__)
    parser.add_argument("--from", dest="first", required=True, metavar="PERIOD", help="the first period, as in 2013-01")
    parser.add_argument("--to", dest="last", required=True, metavar="PERIOD", help="the last period, included")
    arguments = parser.parse_args()
    run(ingest, {"first": arguments.first, "last": arguments.last}, tracked=False)
