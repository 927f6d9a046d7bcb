"""New raw rows, sorted into those that keep the contract and those that do not. Change here to be stricter."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from pydantic import Field

from pipeline.canonical import parquet_bytes, sha256
from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.params import Params
from pipeline.verify import check_columns, violations


class IngestParams(Params):
    """What `ingest` may be told."""

    max_quarantined_share: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class Partition:
    """One period: the rows that keep the contract, those that do not with their `reason`, both as Parquet."""

    kept: bytes
    quarantined: bytes | None
    entry: dict[str, Any]


def sort_rows(table: pd.DataFrame, contract: Contract, *, period: str, max_quarantined_share: float) -> Partition:
    """Quarantine the rows of one period that break the contract; none is lost. They come out in the order of the keys.

    InputError where the columns are not the contract's, or the share of bad rows is above `max_quarantined_share`.
    """
    check_columns(table, contract, source=f"period {period}")
    table = (
        table.sort_values(contract.keys, kind="stable", ignore_index=True)
        if contract.keys
        else table.reset_index(drop=True)
    )
    found = violations(table, contract)
    reasons = (found["column"] + " = " + found["value"] + ": " + found["reason"]).groupby(found["row"]).agg("; ".join)
    bad = table.index.isin(reasons.index)
    kept, quarantined = table[~bad], table[bad].assign(reason=reasons)
    assert len(table) == len(kept) + len(quarantined), "a row was lost"  # noqa: S101 - cannot be, and must not
    if len(quarantined) > max_quarantined_share * len(table):
        raise InputError(
            f"period {period}: expected at most {max_quarantined_share:.2%} bad rows, got {len(quarantined):,} of "
            f"{len(table):,} (first: row {reasons.index[0]}, {reasons.iloc[0]}); fix the source, or allow more with "
            "ingest.max_quarantined_share in params.yaml"
        )
    if kept.empty:
        raise InputError(f"period {period}: expected at least one good row, got {len(table)}; check the source")
    data = parquet_bytes(kept)
    broken = found.groupby(found["column"] + ": " + found["reason"])["row"].nunique()
    reasons_count = {str(rule): int(rows) for rule, rows in broken.items()}
    entry = {"rows": len(kept), "quarantined": len(quarantined), "reasons": reasons_count, "sha256": sha256(data)}
    return Partition(data, parquet_bytes(quarantined) if len(quarantined) else None, entry)
