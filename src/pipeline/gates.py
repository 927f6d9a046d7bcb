"""The inspection's gates: what each measures, and where it grounds a model. Change here to add one, or to judge by
another figure; a limit is changed in params.yaml.

A gate measures. Whether that passes is decided in one place, which fails what raises, is no number, or is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, StringConstraints

from pipeline.compare import EQUIVALENT
from pipeline.errors import InputError
from pipeline.metrics import LESS_IS_BETTER
from pipeline.params import Params
from pipeline.resamples import Estimate

if TYPE_CHECKING:
    from pipeline.duel import Duel
    from pipeline.evaluate import Evaluation

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=10)]
Waivers = dict[str, Reason]  # gate -> the reason for which it is disregarded


class Limits(Params):
    """Where the gates on a bundle's evaluation ground it."""

    test_rows: int = Field(ge=1)
    single_feature: float = Field(le=1)
    floor: float
    gain_over_naive: float
    gain_over_simple: float
    slice_floor: float
    group_gap: float = Field(ge=0)
    calibration: float = Field(ge=0)
    changed_by_noise: float = Field(ge=0, le=1)


class Measured(NamedTuple):
    """What a gate found: a figure, the bound that it must keep, and what it says in words."""

    value: float
    bound: Literal["at least", "at most"]
    limit: float
    reason: str


class Verdict(NamedTuple):
    """What came of a gate. `waived` is the reason for which params.yaml disregards it, else None."""

    gate: str
    passed: bool
    value: float | None
    bound: str | None
    limit: float | None
    reason: str
    waived: str | None


Gates = Mapping[str, Callable[[], Measured]]
_INTEGRITY = ("hashes", "recorded")  # without which no other verdict is about this model: nobody can waive them


def judge(gates: Gates, waived: Mapping[str, str]) -> list[Verdict]:
    """Every gate's verdict; one that raises, or measures no number, has failed."""
    waivable = [name for name in gates if name not in _INTEGRITY]
    if unknown := sorted(set(waived) - set(waivable)):
        raise InputError(f"params.yaml: expected names of gates under 'waived' ({', '.join(waivable)}), got {unknown}")
    return [_verdict(name, measure, waived.get(name)) for name, measure in gates.items()]


def _verdict(name: str, measure: Callable[[], Measured], waived: str | None) -> Verdict:
    try:
        measured, bound, limit, reason = measure()
        value = float(measured)
    except Exception as error:  # whatever it is, the gate has not passed
        said = " ".join(str(error).split()) or type(error).__name__
        return Verdict(name, False, None, None, None, f"could not be computed: {said}", waived)
    if not np.isfinite(value):
        return Verdict(name, False, None, bound, limit, f"no number came of it: {reason}", waived)
    passed = value >= limit if bound == "at least" else value <= limit
    return Verdict(name, bool(passed), float(f"{value:.6g}"), bound, limit, reason, waived)


def airworthy(verdicts: Sequence[Verdict], expected: Sequence[str]) -> bool:
    """Whether each expected gate stands there once, and has passed or is waived for a reason."""
    return [v.gate for v in verdicts] == list(expected) and all(v.passed or v.waived for v in verdicts)


def as_json(verdicts: Sequence[Verdict], expected: Sequence[str], bundle: str) -> dict[str, Any]:
    """The overall verdict on the bundle of a hash, and that of each gate."""
    found = [verdict._asdict() for verdict in verdicts]
    waived = [verdict.gate for verdict in verdicts if verdict.waived]
    return {"airworthy": airworthy(verdicts, expected), "waived": waived, "bundle": bundle, "gates": found}


def grounds(verdicts: Sequence[Verdict], expected: Sequence[str]) -> list[str]:
    """The gates that ground the model, those that are missing among them."""
    failed = [verdict.gate for verdict in verdicts if not (verdict.passed or verdict.waived)]
    held = [verdict.gate for verdict in verdicts]
    return failed + [f"{name} (missing)" for name in expected if name not in held]


# On the evaluation of a bundle


def test_rows(found: "Evaluation", limits: Limits) -> Measured:
    """Rows enough that the model never saw."""
    return Measured(found.rows, "at least", limits.test_rows, f"{found.rows:,} test rows")


def schema(found: "Evaluation", _limits: Limits) -> Measured:
    """Every prepared row keeps the contract, and the bundle tells its clients the same contract."""
    said = found.violations[0] if found.violations else "every row keeps the contract, and the bundle states the same"
    return Measured(len(found.violations), "at most", 0, said)


def leak(found: "Evaluation", limits: Limits) -> Measured:
    """Nothing was observed after the moment of prediction, and no feature gives the target away alone."""
    if found.late:
        return Measured(len(found.late), "at most", 0, found.late[0])
    scores = list(found.single_features.values())
    worst = int(np.argmax(scores))  # or the first that is no number
    name, score = list(found.single_features)[worst], scores[worst]
    return Measured(score, "at most", limits.single_feature, f"the most telling feature alone, '{name}', {score:.3f}")


def parity(found: "Evaluation", _limits: Limits) -> Measured:
    """The bundle gives its golden rows the scores that the trained pipeline gave them."""
    said = f"golden rows: {found.golden_gap:.2g} at most between the bundle and the trained pipeline"
    return Measured(found.golden_gap, "at most", found.tolerance, said)


def floor(found: "Evaluation", limits: Limits) -> Measured:
    """The main metric is good enough, at the worse end of its interval."""
    return _worse_end(found, found.metric, limits.floor)


def beats_naive(found: "Evaluation", limits: Limits) -> Measured:
    """Surely better than to say the mean of all, by a proper score (Gneiting and Raftery, 2007)."""
    return _beats(found, "naive", limits.gain_over_naive)


def beats_simple(found: "Evaluation", limits: Limits) -> Measured:
    """Surely better than the historical rate per key, by a proper score."""
    return _beats(found, "simple", limits.gain_over_simple)


def slices(found: "Evaluation", limits: Limits) -> Measured:
    """No slice that can be judged lies below the floor with its whole interval: of a hundred, some do by chance with
    their value alone."""
    less, metric = found.metric in LESS_IS_BETTER, found.metric
    table = found.tables["slices"]
    bound: Literal["at least", "at most"] = "at most" if less else "at least"
    if table.empty:
        return Measured(limits.slice_floor, bound, limits.slice_floor, "no column is marked as a slice")
    table = table[table["judged"]]
    if table.empty:
        return Measured(np.nan, bound, limits.slice_floor, "no slice can be judged; lower evaluate.slice_rows")
    ends = table[f"{metric}_{'low' if less else 'high'}"].to_numpy()
    worst = int(ends.argmax() if less else ends.argmin())
    name, value = table["slice"].iloc[worst], table[metric].iloc[worst]
    said = f"of {len(table)} slices the worst is {name}: {metric} {value:.3f}, at best {ends[worst]:.3f}"
    return Measured(float(ends[worst]), bound, limits.slice_floor, said)


def groups(found: "Evaluation", limits: Limits) -> Measured:
    """No gap between sensitive groups can be larger than allowed."""
    table = found.tables["groups"]
    if table.empty:
        return Measured(0, "at most", limits.group_gap, "no column is marked sensitive")
    unit = {"rmse": found.deviation, "mae": found.deviation, "cost_per_1000": 1000}
    ends = table["gap_high"].to_numpy() / table["figure"].map(lambda figure: unit.get(figure, 1)).to_numpy()
    worst = int(ends.argmax())  # or the first that is no number
    column, figure, groups = table[["column", "figure", "groups"]].iloc[worst]
    said = f"{column}, {figure}: {groups or 'no two groups have rows enough'}"
    return Measured(float(ends[worst]), "at most", limits.group_gap, said)


def calibration(found: "Evaluation", limits: Limits) -> Measured:
    """Scores are right on average: the calibration error, or for a number the bias in standard deviations."""
    if found.proper != "rmse":
        return _worse_end(found, "calibration_error", limits.calibration)
    bias = _figure(found.metrics["model"], "bias")
    end = max(abs(bias.low), abs(bias.high)) / found.deviation
    return Measured(end, "at most", limits.calibration, f"bias {bias.value:.4g}, at most {end:.3f} deviations")


def stability(found: "Evaluation", limits: Limits) -> Measured:
    """Little noise changes few decisions, and no disturbance breaks a score."""
    table = found.tables["stability"]
    share = table["changed_decisions"].iloc[0] if table["largest_move"].notna().all() else np.nan
    said = (
        f"{table['disturbance'].iloc[0]}: {share:.2%} of decisions change, largest move {table['largest_move'][0]:.3f}"
    )
    return Measured(float(share), "at most", limits.changed_by_noise, said)


EVALUATION = (
    test_rows, schema, leak, parity, floor, beats_naive, beats_simple, slices, groups, calibration, stability,
)  # fmt: skip


def names(listed: Sequence[Callable[..., Measured]]) -> tuple[str, ...]:
    """What these gates are called."""
    return tuple(gate.__name__ for gate in listed)


def on_evaluation(found: Callable[[], "Evaluation"], limits: Limits) -> Gates:
    """The gates on an evaluation by name; `found` makes it, and where that raises each of them has failed."""
    return dict(zip(names(EVALUATION), (partial(_on, gate, found, limits) for gate in EVALUATION), strict=True))


def _on(gate: Callable[..., Measured], found: Callable[[], "Evaluation"], limits: Limits) -> Measured:
    return gate(found(), limits)


def _figure(figures: Mapping[str, Estimate], metric: str) -> Estimate:
    if metric not in figures:
        raise InputError(f"{metric} is no number on these rows")
    return figures[metric]


def _worse_end(found: "Evaluation", metric: str, limit: float) -> Measured:
    each = _figure(found.metrics["model"], metric)
    said = f"{metric.replace('_', ' ')} {each.value:.4g} ({each.low:.4g} to {each.high:.4g})"
    if metric in LESS_IS_BETTER:
        return Measured(each.high, "at most", limit, said)
    return Measured(each.low, "at least", limit, said)


def _beats(found: "Evaluation", baseline: str, limit: float) -> Measured:
    gain = _figure(found.gains[baseline], found.proper)
    said = f"{found.proper} better by {gain.value:.4g} ({gain.low:.4g} to {gain.high:.4g}) than the {baseline} baseline"
    return Measured(gain.low, "at least", limit, said)


# On what an inspection finds beside the evaluation


def hashes(broken: Sequence[str]) -> Measured:
    """Every file is the one that is recorded."""
    return Measured(len(broken), "at most", 0, "; ".join(broken) or "every file has its recorded hash")


def recorded(different: Sequence[str]) -> Measured:
    """The recorded reports are those that the bundle and the data give."""
    said = "; ".join(different) or "the evaluation made again gives the recorded figures and verdicts"
    return Measured(len(different), "at most", 0, said)


def reproducible(different: Sequence[str], gap: float) -> Measured:
    """Made again from the raw data, the same tables and the same bundle: the same bytes, or on another platform the
    same figures, and scores within 1e-6. `gap` is the largest between the scores of any row."""
    said = "; ".join(different) or "prepared and trained again"
    if different:
        return Measured(len(different), "at most", 0, f"made again otherwise: {said}")
    return Measured(gap, "at most", EQUIVALENT, f"{said}: scores differ by {gap:.2g} at most")


def size(megabytes: float, limit: float) -> Measured:
    """The bundle is small enough to ship and load."""
    return Measured(megabytes, "at most", limit, f"the bundle weighs {megabytes:.2f} MB")


def latency(milliseconds: Sequence[float], limit: float) -> Measured:
    """One raw row is scored fast enough; the median, since a busy machine stretches the rest."""
    middle, slow = np.quantile(milliseconds, [0.5, 0.99])
    said = f"one row: {middle:.2f} ms in the median, {slow:.2f} ms at the 99th percentile"
    return Measured(float(middle), "at most", limit, said)


def champion(duel: "Duel | None", margin: float) -> Measured:
    """Not worse than the champion, by more than the margin, on rows that neither has seen; `None` is no champion."""
    if duel is None:
        return Measured(0, "at least", -margin, "first: no champion has flown yet")
    said = (
        f"{duel.metric} {duel.gain.value:+.4g} ({duel.gain.low:+.4g} to {duel.gain.high:+.4g}) against {duel.champion}"
    )
    return Measured(duel.gain.low, "at least", -margin, f"{said}, on {duel.rows:,} rows that neither has seen")


INSPECTION = (*EVALUATION, hashes, recorded, reproducible, champion, size, latency)
