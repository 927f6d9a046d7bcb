import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.metrics import Judged, draws
from pipeline.resamples import MOST_BLOCKS, Bootstrap, Estimate, blocks_of, estimate, rounded, times_drawn
from tests.synthetic import make_contract, make_table

HOW = Bootstrap(resamples=400, confidence=0.95, seed=1)


def days(count: int, rows_a_day: int = 1) -> pd.DataFrame:
    day, hour = np.divmod(np.arange(count * rows_a_day), rows_a_day)
    moments = pd.Timestamp("2020-01-01") + pd.to_timedelta(day * 24 + hour * 23 // rows_a_day, "h")
    return pd.DataFrame({"read_at": moments.astype("datetime64[us]")})


def test_the_rows_of_a_day_are_a_block_in_the_order_of_the_days() -> None:
    shuffled = days(30, 3).sample(frac=1, random_state=0)
    blocks, name = blocks_of(shuffled, make_contract())
    assert blocks.tolist() == (shuffled["read_at"].dt.day_of_year - 1).tolist()
    assert name == "days of read_at"


def test_without_time_the_rows_of_an_entity_are_a_block_and_those_of_none_too() -> None:
    table = make_table(100)
    table.loc[[3, 50, 70], "machine"] = None
    blocks, name = blocks_of(table, make_contract(timed=False))
    assert name == "values of machine"
    assert table["machine"].fillna("none").groupby(blocks).nunique().eq(1).all()
    assert blocks.max() + 1 == table["machine"].nunique(dropna=False)


def test_rows_that_share_nothing_are_drawn_alone_or_in_random_groups() -> None:
    contract = make_contract(timed=False, entity=False)
    alone, name = blocks_of(make_table(100), contract)
    assert (sorted(alone), name) == (list(range(100)), "rows")
    groups, name = blocks_of(make_table(500), contract)
    assert name == "groups of rows"
    assert set(np.bincount(groups)) == {2, 3}
    assert abs(np.corrcoef(groups, np.arange(500))[0, 1]) < 0.15
    np.testing.assert_array_equal(groups, blocks_of(make_table(500), contract)[0])


@pytest.mark.parametrize("count", [MOST_BLOCKS, MOST_BLOCKS + 1, 365, 1000])
def test_more_days_than_need_be_are_merged_with_their_neighbours(count: int) -> None:
    blocks, name = blocks_of(days(count), make_contract())
    assert name == ("days of read_at" if count == MOST_BLOCKS else "groups of days of read_at")
    assert (np.diff(blocks) >= 0).all()
    sizes = np.bincount(blocks)
    assert len(sizes) == MOST_BLOCKS
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("given_contract", "shared", "got"),
    [
        ({}, "days of read_at", 1),
        ({"timed": False}, "values of machine", 1),
        ({"timed": False, "entity": False}, "rows", 1),
        ({}, "days of read_at", 0),
    ],
)
def test_fewer_than_two_blocks_are_refused(given_contract: dict[str, bool], shared: str, got: int) -> None:
    with pytest.raises(InputError, match=f"expected test rows of two {shared} at least, for intervals; got {got}"):
        blocks_of(make_table(100).iloc[:got], make_contract(**given_contract))


@given(st.integers(2, 30), st.integers(0, 2**31 - 1))
def test_every_block_counts_once_and_then_as_drawn(count: int, seed: int) -> None:
    times = times_drawn(np.arange(count), Bootstrap(7, 0.9, seed))
    assert times.shape == (8, count)
    assert (times[0] == 1).all()
    assert (times.sum(axis=1) == count).all()
    assert ((times >= 0) & (times == times.round())).all()
    np.testing.assert_array_equal(times, times_drawn(np.arange(count).repeat(3), Bootstrap(7, 0.9, seed)))


def test_blocks_are_drawn_with_replacement_each_as_likely() -> None:
    times = times_drawn(np.arange(20), Bootstrap(20_000, 0.9, 0))[1:]
    assert times.mean(axis=0) == pytest.approx(np.ones(20), abs=0.03)
    assert times.var(axis=0) == pytest.approx(np.full(20, 1 - 1 / 20), abs=0.05)
    assert np.corrcoef(times.T)[0, 1] == pytest.approx(-1 / 19, abs=0.03)
    assert (times[0] != times_drawn(np.arange(20), Bootstrap(20_000, 0.9, 1))[1]).any()


def interval(error: np.ndarray, blocks: np.ndarray, seed: int = 1) -> Estimate:
    """Of the mean error, by the given blocks."""
    judged = Judged(np.zeros(len(error)), error[:, None], None)
    return estimate(draws(judged, blocks, times_drawn(blocks, HOW._replace(seed=seed)), only=["bias"])["bias"], 0.95)


def test_an_interval_over_days_holds_the_truth_where_one_over_rows_does_not() -> None:
    rows = days(50, 10)
    together, alone = blocks_of(rows, make_contract())[0], np.arange(500)
    held = {"days": 0, "rows": 0}
    for seed in range(200):
        random = np.random.default_rng(seed)
        error = 0.3 + np.repeat(random.normal(size=50), 10) + random.normal(size=500)
        for name, blocks in (("days", together), ("rows", alone)):
            found = interval(error, blocks, seed)
            held[name] += found.low <= 0.3 <= found.high
    assert 180 <= held["days"] <= 198  # 95% of 200 is 190
    assert held["rows"] < 140


def test_merged_blocks_give_nearly_the_same_width() -> None:
    random = np.random.default_rng(0)
    error = np.repeat(random.normal(size=1000), 3) + random.normal(size=3000)
    merged = blocks_of(days(1000, 3), make_contract())[0]
    widths = [found.high - found.low for found in (interval(error, merged), interval(error, np.arange(3000) // 3))]
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    assert widths[1] == pytest.approx(2 * 1.96 * np.sqrt((1 + 1 / 3) / 1000), rel=0.1)


def test_an_interval_holds_the_share_of_the_draws_that_it_says() -> None:
    drawn = np.random.default_rng(0).normal(size=999)
    found = estimate(np.append(5.0, drawn), 0.9)
    assert found == pytest.approx((5.0, *np.quantile(drawn, [0.05, 0.95])))


def test_draws_that_leave_a_figure_undefined_do_not_count() -> None:
    assert estimate(np.array([2.0, 1.0, np.nan, 3.0, np.nan]), 0.5) == Estimate(2.0, 1.5, 2.5)


def test_a_centred_interval_is_moved_by_the_bias_of_its_draws_and_ends_at_zero() -> None:
    draws_of_a_distance = np.array([0.1, 0.2, 0.3, np.nan, 0.4])
    found = estimate(draws_of_a_distance, 0.98, centred=True)
    assert found == pytest.approx((0.1, 0.002, 0.198))
    assert estimate(np.array([0.0, 0.2, 0.4]), 0.98, centred=True) == pytest.approx((0.0, 0.001, 0.099))


def test_a_report_has_six_digits() -> None:
    found = rounded({"x": Estimate(1 / 3, 0.1, 12345678.0)})
    assert found == {"x": {"value": 0.333333, "low": 0.1, "high": 12345700.0}}
