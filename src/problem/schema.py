"""The contract: every column of the raw table, described once. Change here to predict something else."""

from datetime import datetime, timedelta

import pandas as pd
import pandera.pandas as pa

from pipeline.contract import Contract, column


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
    origin: str = column("Airport of departure", roles=["feature", "slice"], isin=["EWR", "JFK", "LGA"])
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
        "Scheduled departure", unit="minute of the local day", roles=["feature", "slice"], ge=0, le=1439
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
    )

    # The plane, where its register is known
    plane_year: float = column("Year of manufacture", unit="year", roles=["feature"], ge=1940, le=2013, nullable=True)
    seats: float = column("Seats of the plane", unit="seats", roles=["feature"], ge=1, le=600, nullable=True)

    # The weather at the airport of departure, as known at the moment of prediction
    weather_observed_at: datetime = column(
        "When the weather was observed", unit="UTC", roles=["observed_at", "feature"], nullable=True
    )
    temp: float = column(
        "Temperature", unit="F", roles=["feature"], ge=-40, le=130, nullable=True, observed_at="weather_observed_at"
    )
    dewp: float = column(
        "Dew point", unit="F", roles=["feature"], ge=-60, le=100, nullable=True, observed_at="weather_observed_at"
    )
    humid: float = column(
        "Relative humidity", unit="%", roles=["feature"], ge=0, le=100, nullable=True, observed_at="weather_observed_at"
    )
    wind_dir: float = column(
        "Direction that the wind comes from",
        unit="degrees",
        roles=["feature"],
        ge=0,
        le=360,
        nullable=True,
        observed_at="weather_observed_at",
    )
    wind_speed: float = column(
        "Wind speed", unit="mph", roles=["feature"], ge=0, le=150, nullable=True, observed_at="weather_observed_at"
    )
    wind_gust: float = column(
        "Gust speed, absent when calm",
        unit="mph",
        roles=["feature"],
        ge=0,
        le=200,
        nullable=True,
        observed_at="weather_observed_at",
    )
    precip: float = column(
        "Precipitation", unit="in/h", roles=["feature"], ge=0, le=10, nullable=True, observed_at="weather_observed_at"
    )
    pressure: float = column(
        "Sea level pressure",
        unit="mbar",
        roles=["feature"],
        ge=870,
        le=1090,
        nullable=True,
        observed_at="weather_observed_at",
    )
    visib: float = column(
        "Visibility", unit="mi", roles=["feature"], ge=0, le=100, nullable=True, observed_at="weather_observed_at"
    )

    # What is known only once the flight has flown
    dep_time: float = column(
        "Actual departure", unit="local hhmm", known="after", roles=["ignored"], ge=1, le=2400, nullable=True
    )
    dep_delay: float = column(
        "Delay at departure", unit="min", known="after", roles=["ignored"], ge=-120, le=2880, nullable=True
    )
    arr_time: float = column(
        "Actual arrival", unit="local hhmm", known="after", roles=["ignored"], ge=1, le=2400, nullable=True
    )
    arr_delay: float = column(
        "Delay at arrival", unit="min", known="after", roles=["ignored"], ge=-180, le=2880, nullable=True
    )
    air_time: float = column(
        "Time in the air", unit="min", known="after", roles=["ignored"], ge=1, le=1200, nullable=True
    )
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
