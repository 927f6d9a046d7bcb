import pandas as pd

from pipeline.bundle import golden_positions, golden_rows, input_entries
from pipeline.canonical import json_bytes
from pipeline.featurize import raw_columns
from pipeline.scoring import parse_columns
from tests.synthetic import make_contract, prepared

CONTRACT = make_contract()
INPUTS = input_entries(CONTRACT, prepared().train)
ENTRY = {entry["name"]: entry for entry in INPUTS}


def test_a_client_sends_the_inputs_of_the_contract() -> None:
    assert list(ENTRY) == [c.name for c in CONTRACT.inputs]
    assert ENTRY["temperature"] == {
        "name": "temperature",
        "kind": "number",
        "description": "Its temperature",
        "unit": "C",
        "nullable": True,
        "minimum": -50,
        "maximum": 150,
        "observed_at": "measured_at",
    }


def test_a_closed_category_lists_its_values_and_an_open_one_those_of_training() -> None:
    assert (ENTRY["site"]["categories"], ENTRY["site"]["open"]) == (["north", "south"], False)
    assert (ENTRY["maker"]["categories"], ENTRY["maker"]["open"]) == (["acme", "bolt", "core"], True)


def test_golden_rows_are_spread_over_all_and_never_repeat() -> None:
    positions = golden_positions(1_000)
    assert (len(positions), positions[0], positions[-1]) == (50, 0, 999)
    assert golden_positions(3).tolist() == [0, 1, 2]


def test_golden_rows_survive_json() -> None:
    chosen = prepared().validation.iloc[:5]
    rows = golden_rows(chosen, INPUTS)
    json_bytes(rows)
    parsed = parse_columns(rows, INPUTS)
    for name, values in raw_columns(chosen, CONTRACT).items():
        pd.testing.assert_series_equal(pd.Series(parsed[name][:5]), pd.Series(values))


def test_golden_rows_go_to_the_limits_of_the_contract_and_no_further() -> None:
    chosen = prepared().validation.dropna().iloc[:5]
    rows = pd.DataFrame(golden_rows(chosen, INPUTS)).iloc[5:].reset_index(drop=True)
    assert rows["temperature"].isna().sum() == 2  # itself missing, and its observation
    assert rows.loc[rows["measured_at"].isna(), "temperature"].isna().all()
    assert {-50, 150} < set(rows["temperature"])
    assert {0, 1000} < set(rows["cycles"])
    assert set(rows["site"]) == {chosen["site"].iloc[0]}
    assert "~~~~" in set(rows["maker"])
    assert len(rows) == 1 + 3 + 2 + 2 + 1 - 1
