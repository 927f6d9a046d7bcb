import io

import pandas as pd
import pytest

from pipeline.errors import InputError
from pipeline.ingest import Partition, sort_rows
from tests.synthetic import make_contract, make_table

CONTRACT = make_contract()


def sort(table: pd.DataFrame, share: float = 0.2) -> Partition:
    return sort_rows(table, CONTRACT, period="2020-01", max_quarantined_share=share)


def rows_of(content: bytes | None) -> pd.DataFrame:
    assert content is not None
    return pd.read_parquet(io.BytesIO(content))


def broken() -> pd.DataFrame:
    table = make_table(30)
    table.loc[[3, 9], "cycles"] = -1
    table.loc[9, "site"] = "west"
    return table


def test_every_row_is_kept_or_quarantined() -> None:
    partition = sort(broken())
    kept, quarantined = rows_of(partition.kept), rows_of(partition.quarantined)
    assert (len(kept), len(quarantined)) == (28, 2)
    both = pd.concat([kept, quarantined.drop(columns="reason")]).sort_values("read_at", ignore_index=True)
    pd.testing.assert_frame_equal(both, broken())


def test_a_quarantined_row_carries_every_reason() -> None:
    assert rows_of(sort(broken()).quarantined)["reason"].tolist() == [
        "cycles = -1: greater_than_or_equal_to(0)",
        "cycles = -1: greater_than_or_equal_to(0); site = west: isin(['north', 'south'])",
    ]


def test_the_manifest_counts_rows_by_reason() -> None:
    entry = sort(broken()).entry
    assert (entry["rows"], entry["quarantined"]) == (28, 2)
    assert entry["reasons"] == {"cycles: greater_than_or_equal_to(0)": 2, "site: isin(['north', 'south'])": 1}


def test_good_rows_leave_no_quarantine() -> None:
    partition = sort(make_table(30), share=0)
    assert partition.quarantined is None
    assert partition.entry["reasons"] == {}


def test_the_same_rows_give_the_same_bytes_in_whatever_order_they_come() -> None:
    assert sort(broken()) == sort(broken().sample(frac=1, random_state=0))


def test_other_rows_give_another_hash() -> None:
    assert sort(make_table(30)).entry["sha256"] != sort(make_table(30, seed=1)).entry["sha256"]


def test_too_many_bad_rows_fail() -> None:
    with pytest.raises(
        InputError, match=r"2020-01: expected at most 5\.00% bad rows, got 2 of 30 \(first: row 3, cycles = -1"
    ):
        sort(broken(), share=0.05)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_period_without_a_good_row_fails(rows: int) -> None:
    with pytest.raises(InputError, match=f"expected at least one good row, got {rows}"):
        sort(make_table(30).head(rows).assign(cycles=-1), share=1.0)


def test_other_columns_fail() -> None:
    with pytest.raises(InputError, match=r"period 2020-01: .*missing \['site'\]"):
        sort(make_table(30).drop(columns="site"))
