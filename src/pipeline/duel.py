"""The duel: challenger and champion on rows that neither has seen. Change here to compare them otherwise."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.evaluate import EvaluateParams, judged_rows
from pipeline.metrics import draws, gain
from pipeline.resamples import Estimate, blocks_of, estimate, times_drawn
from pipeline.scoring import Scorer

Lineage = Mapping[str, Any]


class Duel(NamedTuple):
    """How much better the challenger is than the champion, in the units of the metric, and on how many rows; and what
    each of them reaches there."""

    champion: str
    metric: str
    rows: int
    gain: Estimate
    figures: dict[str, dict[str, float]]


def duel(
    test: pd.DataFrame,
    *,
    contract: Contract,
    challenger: tuple[Scorer, Lineage],
    champion: tuple[Scorer, Lineage],
    name: str,
    params: EvaluateParams,
) -> Duel:
    """Hold the duel by a paired bootstrap; InputError where no row is left that neither has seen, or the champion
    cannot score these rows. `name` is what the champion is called."""
    rows = _unseen(test, contract, challenger[1], champion[1])
    least = params.limits.test_rows
    if len(rows) < least:
        raise InputError(
            f"expected {least:,} rows or more that neither model has seen (evaluate.limits.test_rows), found "
            f"{len(rows):,}; widen the test, or ingest a later period"
        )
    if champion[0].contract["classes"] != challenger[0].contract["classes"]:
        raise InputError(f"expected {name} to tell the same classes apart, got {champion[0].contract['classes']}")
    try:
        theirs = judged_rows(rows, contract, champion[0])
    except KeyError as error:
        raise InputError(
            f"expected {name} to score today's rows, but it needs a column that they lack: {error}; keep the "
            "column, or say under inspect.waived.champion in params.yaml why the next model may fly without a duel"
        ) from error
    ours = judged_rows(rows, contract, challenger[0])
    if ours.decision is not None and theirs.decision is not None:  # a wrong decision costs both the same
        theirs = theirs._replace(decision=theirs.decision._replace(costs=ours.decision.costs))
    blocks, _ = blocks_of(rows, contract)
    times = times_drawn(blocks, params.bootstrap)
    mine, their = draws(ours, blocks, times), draws(theirs, blocks, times)
    for side, found in ((name, their), ("the challenger", mine)):
        if params.metric not in found:
            raise InputError(f"expected a {params.metric} of {side} on {len(rows):,} rows, which leave it undefined")
    difference = estimate(gain(params.metric, mine[params.metric], their[params.metric]), params.confidence)
    figures = {"challenger": mine, "champion": their}
    reached = {side: {k: float(f"{v[0]:.6g}") for k, v in found.items()} for side, found in figures.items()}
    return Duel(name, params.metric, len(rows), difference, reached)


def _unseen(test: pd.DataFrame, contract: Contract, challenger: Lineage, champion: Lineage) -> pd.DataFrame:
    """The test rows after everything that either was fitted, calibrated or given its threshold on; without time, all of
    them if both were made from the same splits."""
    if contract.time is None:
        files = [f"prepared/{split}.parquet" for split in challenger["rows"]]
        if any(challenger["files"][name] != champion["files"][name] for name in files):
            raise InputError(
                "expected rows that neither model has seen; without a time column that needs both to be made from the "
                "same splits, and these were not; declare a time column in src/problem/schema.py"
            )
        return test
    seen = max(pd.Timestamp(span["last"]) for lineage in (challenger, champion) for span in lineage["rows"].values())
    rows = test[test[contract.time.name] > seen].reset_index(drop=True)
    if rows.empty:
        raise InputError(
            f"expected test rows after {seen}, up to which the models have seen them, found none; move the test to a "
            "later period, or ingest one"
        )
    return rows
