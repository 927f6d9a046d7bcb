import numpy as np
import pytest

from pipeline.reference import reference

FEATURES = {
    "cycles": np.append(np.arange(99.0), np.nan),
    "flag": np.array([0.0] * 95 + [1.0] * 5),
    "empty": np.full(100, np.nan),
    "maker": np.array(["acme"] * 60 + ["bolt"] * 30 + [None] * 10, dtype=object),
}


def test_numbers_are_shares_between_deciles_and_of_missing_ones() -> None:
    found = reference(FEATURES, np.full((7, 1), 0.5), None)
    cycles = found["features"]["cycles"]
    assert found["rows"] == 100
    assert (len(cycles["edges"]), len(cycles["shares"])) == (9, 10)
    assert cycles["missing"] == pytest.approx(0.01)
    assert sum(cycles["shares"]) + cycles["missing"] == pytest.approx(1)
    assert max(cycles["shares"]) <= 0.1


def test_few_values_have_a_bin_each() -> None:
    found = reference(FEATURES, np.full((7, 1), 0.5), None)
    flag = {"kind": "number", "missing": 0.0, "edges": [0.0, 1.0], "shares": [0.95, 0.05, 0.0]}
    assert found["features"]["flag"] == flag
    assert found["features"]["empty"] == {"kind": "number", "missing": 1.0, "edges": [], "shares": [0.0]}
    assert found["scores"] == {"score": {"kind": "number", "missing": 0.0, "edges": [0.5], "shares": [1.0, 0.0]}}


def test_numbers_that_are_mostly_zero_keep_zero_apart() -> None:
    rain = {"rain": np.append(np.zeros(90), np.arange(1.0, 12.0))}
    assert reference(rain, np.zeros((1, 1)), None)["features"]["rain"]["shares"][0] == pytest.approx(90 / 101)


def test_categories_are_shares_by_name() -> None:
    assert reference(FEATURES, np.zeros((7, 1)), None)["features"]["maker"] == {
        "kind": "category",
        "missing": pytest.approx(0.1),
        "shares": {"acme": 0.6, "bolt": 0.3},
    }


def test_every_class_has_its_scores() -> None:
    classes = ["fine", "worn", "broken"]
    assert list(reference(FEATURES, np.zeros((7, 3)), classes)["scores"]) == classes
