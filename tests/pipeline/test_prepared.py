import numpy as np
import pandas as pd

from pipeline.prepared import MAX_CATEGORIES, as_arrays, feature_spec, features_of, model_inputs
from pipeline.scoring import encode
from tests.synthetic import make_contract, prepared


def test_features_go_under_their_own_names() -> None:
    made = features_of(prepared().train)
    assert list(made) == ["site", "maker", "temperature", "cycles", "guarded", "age_min"]


def test_the_model_sees_numbers_and_codes() -> None:
    rows = prepared().train
    spec = feature_spec(features_of(rows))
    assert [f.categories for f in spec[:3]] == [("north", "south"), ("acme", "bolt", "core"), None]
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
    assert spec[0].categories == tuple(common)
    codes = encode(as_arrays(made), spec)[:, 0]
    assert np.isnan(codes[-2:]).all()
    assert codes[:-2].max() == MAX_CATEGORIES - 1
