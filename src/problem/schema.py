"""The contract: every column of the raw table, described once. Change here to predict something else."""

from datetime import datetime, timedelta
from functools import partial

import pandas as pd
import pandera.pandas as pa

from pipeline.contract import Contract, column

_weather = partial(column, roles=["feature"], nullable=True, observed_at="weather_observed_at")
_afterwards = partial(column, roles=["ignored"], nullable=True, known="after")


class Flights(pa.DataFrameModel):
    """One row per flight scheduled to leave a New York airport."""

    # When, and which flight
    scheduled_departure_at: datetime = column("Scheduled departure", unit="UTC", roles=["time", "key", "feature"])
    carrier: str = column(
        "Operating carrier, two-character IATA code",
        roles=["key", "feature", "slice"],
        open_categories=True,
        str_length={"min_value": 2, "max_value": 2},
    )
    flight: int = column("Flight number", roles=["key"], ge=1, le=9999)
    tailnum: str = column("Tail number of the plane", roles=["entity"], open_categories=True, nullable=True)
    origin: str = column("Airport of departure", roles=["feature", "slice", "sensitive"], isin=["EWR", "JFK", "LGA"])
    dest: str = column(
        "Airport of arrival, three-letter IATA code",
        roles=["feature"],
        open_categories=True,
        str_length={"min_value": 3, "max_value": 3},
    )

    # The schedule, in the airports' local time
    month: int = column("Month of departure", unit="month of the year", roles=["slice"], ge=1, le=12)
    weekday: int = column("Day of departure, Monday is 0", unit="day of the week", roles=["feature"], ge=0, le=6)
    departure_minute: int = column(
        "Scheduled departure",
        unit="minute of the local day",
        roles=["feature", "slice"],
        ge=0,
        le=1439,
        spans={"night": 0, "morning": 6 * 60, "afternoon": 12 * 60, "evening": 18 * 60},
    )
    arrival_minute: int = column(
        "Scheduled arrival", unit="minute of the destination's local day", roles=["feature"], ge=0, le=1439
    )
    distance: int = column("Distance flown", unit="mi", roles=["feature"], ge=10, le=6000)
    origin_hourly_flights: int = column(
        "Flights scheduled from the same airport in the same clock hour",
        unit="flights",
        roles=["feature"],
        ge=1,
        le=200,
    )
    destination_monthly_flights: int = column(
        "Flights scheduled from New York to the same airport in the same month",
        unit="flights",
        roles=["feature", "slice"],
        ge=1,
        le=5000,
        spans={"small": 0, "middling": 100, "large": 400},
    )

    # The plane, where its register is known
    plane_year: float = column("Year of manufacture", unit="year", roles=["feature"], ge=1940, le=2013, nullable=True)
    seats: float = column("Seats of the plane", unit="seats", roles=["feature"], ge=1, le=600, nullable=True)

    # The weather at the airport of departure, as known at the moment of prediction
    weather_observed_at: datetime = column(
        "When the weather was observed", unit="UTC", roles=["observed_at", "feature"], nullable=True
    )
    temp: float = _weather("Temperature", unit="F", ge=-40, le=130)
    dewp: float = _weather("Dew point", unit="F", ge=-60, le=100)
    humid: float = _weather("Relative humidity", unit="%", ge=0, le=100)
    wind_dir: float = _weather("Direction that the wind comes from", unit="degrees", ge=0, le=360)
    wind_speed: float = _weather("Wind speed", unit="mph", ge=0, le=150)
    wind_gust: float = _weather("Gust speed, absent when calm", unit="mph", ge=0, le=200)
    precip: float = _weather("Precipitation", unit="in/h", ge=0, le=10)
    pressure: float = _weather("Sea level pressure", unit="mbar", ge=870, le=1090)
    visib: float = _weather("Visibility", unit="mi", ge=0, le=100)

    # What is known only once the flight has flown
    dep_time: float = _afterwards("Actual departure", unit="local hhmm", ge=1, le=2400)
    dep_delay: float = _afterwards("Delay at departure", unit="min", ge=-120, le=2880)
    arr_time: float = _afterwards("Actual arrival", unit="local hhmm", ge=1, le=2400)
    arr_delay: float = _afterwards("Delay at arrival", unit="min", ge=-180, le=2880)
    air_time: float = _afterwards("Time in the air", unit="min", ge=1, le=1200)
    is_late: pd.BooleanDtype = column(
        "Whether the flight arrived more than 15 minutes late; unknown when it never arrived",
        known="after",
        roles=["target"],
        nullable=True,
    )

    class Config:
        """No other column may come, and no type is guessed."""

        strict = True


CONTRACT = Contract.of(Flights, noun="flights", lead=timedelta(hours=2))
