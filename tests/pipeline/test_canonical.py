import hashlib
import io
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from pipeline.canonical import csv_bytes, file_hash, files_hash, folder_files, json_bytes, parquet_bytes, sha256


def test_json_keeps_order_and_text_and_ends_with_a_newline() -> None:
    assert json_bytes({"b": [1.5, None], "a": "grün"}).decode() == '{\n "b": [\n  1.5,\n  null\n ],\n "a": "grün"\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes({"score": value})


def test_parquet_depends_on_the_content_alone() -> None:
    table = pd.DataFrame({"x": [1.0, None], "t": pd.Series(["a", None], dtype="str")})
    shifted = table.set_axis([7, 8])
    assert parquet_bytes(table) == parquet_bytes(shifted)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet_bytes(shifted))), table)


def test_csv_has_six_digits() -> None:
    assert csv_bytes(pd.DataFrame({"x": [1 / 3, 2.0]})) == b"x\n0.333333\n2\n"


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    assert file_hash(tmp_path / "a") == sha256(b"a") == hashlib.sha256(b"a").hexdigest()


def test_hash_of_several_files_depends_on_each_and_on_their_order(tmp_path: Path) -> None:
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"a")
    other.write_bytes(b"b")
    before = file_hash(one, other)
    assert before != file_hash(other, one)
    other.write_bytes(b"c")
    assert before != file_hash(one, other)


def test_a_folder_is_known_by_what_sha256sum_gives_for_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("model.onnx", "contract.json", "sub/a.json"):
        (tmp_path / name).write_text(name)
    command = "sha256sum contract.json model.onnx sub/a.json | sha256sum"
    expected = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True).stdout
    assert files_hash(folder_files(tmp_path)) == expected.split()[0]


def test_a_renamed_file_changes_the_hash_of_its_folder() -> None:
    assert files_hash({"a": b"x"}) != files_hash({"b": b"x"})
