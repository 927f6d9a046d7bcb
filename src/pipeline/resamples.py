"""How sure a figure is: the same resamples of whole blocks of rows for everything that is judged. Change here to draw
otherwise."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import Contract
from pipeline.errors import InputError

Floats = NDArray[np.float64]
Blocks = NDArray[np.intp]  # [n]: the number of the block that each row belongs to, from 0
Draws = Floats  # [1 + resamples]: a figure on all rows, then on each resample
MOST_BLOCKS = 200  # more are merged: an interval's width is then known to 5% (1 / sqrt(2 * 200)), and costs no more


class Estimate(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float
    high: float


class Bootstrap(NamedTuple):
    """How intervals are made: draws, share of draws inside, seed."""

    resamples: int
    confidence: float
    seed: int


def blocks_of(rows: pd.DataFrame, contract: Contract) -> tuple[Blocks, str]:
    """The rows that are drawn together, and what they share: those of a day, or else of an entity, are too much alike
    to count as so many independent ones. Rows that share neither are drawn in random groups."""
    entities = contract.having("entity")
    if contract.time is not None:
        shared, name = rows[contract.time.name].dt.floor("D"), f"days of {contract.time.name}"
    elif entities:
        shared, name = rows[entities[0].name], f"values of {entities[0].name}"
    else:
        shared, name = pd.Series(np.random.default_rng(0).permutation(len(rows))), "rows"
    blocks, found = pd.factorize(shared, use_na_sentinel=False, sort=True)
    if len(found) < 2:
        raise InputError(
            f"expected test rows of two {name} at least, for intervals; got {len(found)}; widen the test split"
        )
    if len(found) > MOST_BLOCKS:
        return blocks * MOST_BLOCKS // len(found), f"groups of {name}"
    return blocks, name


def times_drawn(blocks: Blocks, bootstrap: Bootstrap) -> Floats:
    """How often each block counts, [1 + resamples, blocks]: once each in the first row, as drawn with replacement in
    the others (Davison and Hinkley, 1997). The same blocks and seed give the same draws, so that figures are paired."""
    generator, count = np.random.default_rng(bootstrap.seed), int(blocks.max()) + 1
    drawn = generator.integers(count, size=(bootstrap.resamples, count))
    drawn += count * np.arange(bootstrap.resamples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=bootstrap.resamples * count).reshape(bootstrap.resamples, count)
    return np.vstack([np.ones((1, count)), times])


def estimate(draws: Draws, confidence: float, *, centred: bool = False) -> Estimate:
    """A figure and its percentile interval; `centred` takes out the bias that resampling adds to what cannot fall
    below zero, such as a distance (Efron and Tibshirani, 1993, chapter 10)."""
    value, drawn = draws[0], draws[1:]
    if centred:
        drawn = np.maximum(drawn - (np.nanmean(drawn) - value), 0)
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(value), float(low), float(high))


def rounded(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Estimates for a report, to six significant digits."""
    return {name: {k: float(f"{v:.6g}") for k, v in each._asdict().items()} for name, each in found.items()}
