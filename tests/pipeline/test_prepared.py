from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.canonical import parquet_bytes
from pipeline.errors import InputError
from pipeline.prepared import MAX_CATEGORIES, as_arrays, feature_spec, features_of, model_inputs, read_prepared
from pipeline.scoring import encode
from tests.synthetic import make_contract, prepared


def test_features_go_under_their_own_names() -> None:
    made = features_of(prepared().train)
    assert list(made) == ["site", "maker", "temperature", "cycles", "guarded", "age_min"]


def test_the_model_sees_numbers_and_codes() -> None:
    rows = prepared().train
    spec = feature_spec(features_of(rows))
    assert [f.codes and [*f.codes] for f in spec[:3]] == [["north", "south"], ["acme", "bolt", "core"], None]
    inputs = model_inputs(rows, make_contract(), spec)
    assert inputs.matrix.shape == (len(rows), 6)
    assert inputs.matrix.dtype == inputs.target.dtype == np.float64
    assert np.array_equal(inputs.matrix[:, 0], (rows["site"] == "south").to_numpy(float))
    assert np.isnan(inputs.matrix[:, 1]).sum() == rows["maker"].isna().sum() > 0


def test_classes_stay_text() -> None:
    rows = prepared("multiclass").train
    assert set(model_inputs(rows, make_contract("multiclass"), feature_spec(features_of(rows))).target) == {
        "fine",
        "worn",
        "broken",
    }


def test_of_too_many_categories_the_rarest_count_as_never_seen() -> None:
    common = [f"c{i:03}" for i in range(MAX_CATEGORIES)]
    made = pd.DataFrame({"code": pd.Series([*common, *common, "rare", "even rarer"], dtype="str")})
    spec = feature_spec(made)
    assert [*(spec[0].codes or ())] == [*common]
    codes = encode(as_arrays(made), spec)[:, 0]
    assert np.isnan(codes[-2:]).all()
    assert codes[:-2].max() == MAX_CATEGORIES - 1


def test_a_prepared_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(parquet_bytes(prepared().train))
    pd.testing.assert_frame_equal(read_prepared(tmp_path / "train.parquet"), prepared().train)


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_a_prepared_table_that_is_missing_or_damaged_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "train.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"train\.parquet: expected a prepared table, found none that reads .*dvc repro"
    ):
        read_prepared(path)
