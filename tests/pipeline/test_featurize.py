from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.featurize import Guarded, featurize, raw_columns
from tests.synthetic import features, make_contract, make_table

CONTRACT = make_contract()
TABLE = make_table(20)


def one_feature(make: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda columns: {"made": make(columns)}


def test_raw_columns_come_as_the_arrays_that_features_take() -> None:
    table = TABLE.copy()
    table.loc[0, ["maker", "temperature", "measured_at"]] = None
    columns = raw_columns(table, CONTRACT)
    assert {name: values.dtype.kind for name, values in columns.items()} == {
        "read_at": "M",
        "site": "O",
        "maker": "O",
        "measured_at": "M",
        "temperature": "f",
        "cycles": "f",
        "guarded": "f",
    }
    assert columns["maker"][0] is None
    assert np.isnan(columns["temperature"][0])
    assert np.isnat(columns["measured_at"][0])
    assert set(columns["guarded"]) == {0.0, 1.0}


def test_features_are_text_or_float_with_the_index_of_the_table() -> None:
    made = featurize(TABLE.iloc[5:], CONTRACT, features)
    assert [str(kind) for kind in made.dtypes] == ["str", "str", "float64", "float64", "float64", "float64"]
    assert made.index.tolist() == list(range(5, 20))


def test_text_of_fixed_width_is_text() -> None:
    made = featurize(TABLE, CONTRACT, one_feature(lambda columns: columns["site"].astype("U9")))
    assert made["made"].tolist() == TABLE["site"].tolist()


def test_the_guard_is_a_mapping_of_the_inputs() -> None:
    guarded = Guarded(raw_columns(TABLE, CONTRACT), CONTRACT)
    assert list(guarded) == [c.name for c in CONTRACT.inputs]
    assert len(guarded) == 7


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("repair_cost", "which is known only after the moment of prediction: a leak; remove it from the features"),
        ("outcome", "which is known only after the moment of prediction: a leak"),
        ("serial", r"whose roles are \['ignored'\]; give it the role 'feature'"),
        ("colour", "which the contract does not have"),
    ],
)
def test_a_column_that_is_no_input_is_refused_by_name(name: str, reason: str) -> None:
    def peeks(columns: Any) -> dict[str, Any]:
        return {"made": columns[name]}

    where = r"peeks \(line \d+ of test_featurize\.py\)"
    with pytest.raises(InputError, match=f"{where} reads the column '{name}', {reason}"):
        featurize(TABLE, CONTRACT, peeks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c["cycles"][1:], r"'made': expected 20 values, got shape \(19,\)"),
        (lambda c: c["cycles"][:, None], r"expected 20 values, got shape \(20, 1\)"),
        (lambda _: 1.0, r"expected 20 values, got shape \(\)"),
        (lambda c: c["read_at"], "expected numbers, or text with None, got datetime64"),
        (lambda c: c["cycles"].astype(object), "expected numbers, or text with None, got object"),
        (lambda c: 1 / np.where(np.arange(len(c["cycles"])) == 3, 0, 1), "got inf in row 3 of the table; guard it"),
    ],
    ids=["short", "two-dimensional", "scalar", "time", "objects", "infinite"],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_feature_of_another_form_is_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        featurize(TABLE, CONTRACT, one_feature(make))
