import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline.canonical import parquet_bytes, sha256
from pipeline.errors import InputError
from pipeline.partitions import read_manifest, read_partitions
from tests.synthetic import make_contract, make_table, write_partitions

CONTRACT = make_contract()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_partitions(tmp_path / "data", make_table(60))


def record(data: Path, period: str, content: bytes) -> None:
    """Put a partition there, and its hash into the manifest."""
    (data / f"{period}.parquet").write_bytes(content)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["periods"][period] = {"rows": 1, "reasons": {}, "sha256": sha256(content)}
    (data / "manifest.json").write_text(json.dumps(manifest))


def test_partitions_are_read_as_one_table_in_the_order_of_time(data: Path) -> None:
    table, locations = read_partitions(data, CONTRACT)
    pd.testing.assert_frame_equal(table, make_table(60))
    assert [path.name for path, _ in locations] == [f"2020-0{month}.parquet" for month in range(1, 7)]
    assert sum(rows for _, rows in locations) == 60


def test_an_empty_partition_is_refused(data: Path) -> None:
    record(data, "2020-02", parquet_bytes(make_table(60).iloc[:0]))
    with pytest.raises(InputError, match=r"2020-02\.parquet: expected at least one row"):
        read_partitions(data, CONTRACT)


@pytest.mark.parametrize("content", [b"", b"month,rows\n1,2\n", None], ids=["nothing", "CSV", "truncated"])
def test_what_is_no_parquet_is_refused(data: Path, content: bytes | None) -> None:
    path = data / "2020-02.parquet"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match=r"2020-02\.parquet: expected a Parquet file, got \d+ bytes .*dvc checkout"):
        read_partitions(data, CONTRACT)


def test_other_columns_are_refused_by_file(data: Path) -> None:
    record(data, "2020-02", parquet_bytes(make_table(60).drop(columns="site")))
    with pytest.raises(InputError, match=r"2020-02\.parquet: .*missing \['site'\]"):
        read_partitions(data, CONTRACT)


def test_a_partition_with_another_hash_than_the_manifests_is_refused(data: Path) -> None:
    (data / "2020-02.parquet").write_bytes(parquet_bytes(make_table(60, seed=1)))
    with pytest.raises(InputError, match=r"2020-02\.parquet: expected the hash [0-9a-f]{12} of the manifest"):
        read_partitions(data, CONTRACT)


def test_a_file_that_the_manifest_does_not_name_is_refused(data: Path) -> None:
    (data / "2020-07.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"missing \[\], not in the manifest \['2020-07'\]"):
        read_partitions(data, CONTRACT)


def test_a_file_that_is_gone_is_missed(data: Path) -> None:
    (data / "2020-03.parquet").unlink()
    with pytest.raises(
        InputError, match=r"missing \['2020-03'\], not in the manifest \[\]; run `git checkout data.dvc"
    ):
        read_partitions(data, CONTRACT)


def test_a_month_missing_in_the_middle_is_refused(tmp_path: Path) -> None:
    table = make_table(60)
    data = write_partitions(tmp_path / "data", table[~table["read_at"].dt.month.isin([3, 4])])
    with pytest.raises(InputError, match=r"\['2020-03', '2020-04'\] is missing; run .*--from 2020-03 --to 2020-04"):
        read_partitions(data, CONTRACT)


def test_periods_that_are_no_months_have_no_gaps(tmp_path: Path) -> None:
    content = parquet_bytes(make_table(20))
    (tmp_path / "manifest.json").write_text('{"periods": {}}')
    record(tmp_path, "all", content)
    assert len(read_partitions(tmp_path, CONTRACT)[0]) == 20


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the manifest .*found none; run `dvc pull"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"periods": 3}'])
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: expected JSON with 'periods'"):
        read_manifest(tmp_path)


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"periods": {}}')
    with pytest.raises(InputError, match=r"expected the partitions \[\] of its manifest"):
        read_partitions(tmp_path, CONTRACT)
