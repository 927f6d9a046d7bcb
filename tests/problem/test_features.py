import numpy as np
import pytest

from pipeline.featurize import raw_columns
from problem import source
from problem.features import features
from problem.schema import CONTRACT

FLIGHTS = source.read("2013-03", CONTRACT).iloc[:500]
COLUMNS = raw_columns(FLIGHTS, CONTRACT)


def changed(**given: object) -> dict[str, np.ndarray]:
    """The features of one flight, with some columns as given."""
    one = {name: values[:1] for name, values in COLUMNS.items()}
    return features(one | {name: np.array([value]) for name, value in given.items()})


def test_wind_is_split_into_north_and_east() -> None:
    west = changed(wind_dir=270.0, wind_speed=10.0)
    assert (west["north_wind_mph"][0], west["east_wind_mph"][0]) == (pytest.approx(0, abs=1e-9), pytest.approx(-10))


def test_a_flight_past_midnight_takes_as_long_as_it_takes() -> None:
    assert changed(departure_minute=23 * 60.0, arrival_minute=30.0)["scheduled_block_min"][0] == 90


def test_planes_age_and_weather_does() -> None:
    made = changed(
        plane_year=2003.0,
        scheduled_departure_at=np.datetime64("2013-03-01T12:30", "us"),
        weather_observed_at=np.datetime64("2013-03-01T10:00", "us"),
    )
    assert (made["plane_age_years"][0], made["weather_age_min"][0]) == (10, 150)


def test_what_is_missing_stays_missing() -> None:
    made = changed(plane_year=np.nan, temp=np.nan, weather_observed_at=np.datetime64("NaT", "us"))
    missing = ["plane_age_years", "temperature_f", "dew_point_spread_f", "weather_age_min"]
    assert [bool(np.isnan(made[name][0])) for name in missing] == [True] * 4


def test_one_flight_has_the_features_that_it_has_among_many() -> None:
    together = features(COLUMNS)
    for row in (0, 17, 499):
        alone = features({name: values[row : row + 1] for name, values in COLUMNS.items()})
        for name, values in alone.items():
            np.testing.assert_array_equal(values, together[name][row : row + 1])
