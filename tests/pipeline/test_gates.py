from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from pipeline import gates
from pipeline.duel import Duel
from pipeline.errors import InputError
from pipeline.evaluate import Evaluation
from pipeline.gates import Measured, Verdict, airworthy, as_json, judge
from pipeline.resamples import Estimate
from tests.synthetic import TASKS, evaluate_params, evaluation, make_evaluation

REASON = "known, and to be mended in May"
LIMITS = gates.Limits(
    test_rows=150,
    single_feature=0.9,
    floor=0.7,
    gain_over_naive=0.01,
    gain_over_simple=0.02,
    slice_floor=0.6,
    group_gap=0.3,
    calibration=0.05,
    changed_by_noise=0.02,
)
AT_LEAST, AT_MOST = "at least", "at most"


def measuring(value: Any, bound: Any = AT_LEAST, limit: float = 0.5) -> Callable[[], Measured]:
    return lambda: Measured(value, bound, limit, "as made")


def raising(error: BaseException) -> Callable[[], Measured]:
    def gate() -> Measured:
        raise error

    return gate


def one(gate: Callable[[], Measured], waived: str | None = None) -> Verdict:
    return judge({"gate": gate}, {"gate": waived} if waived else {})[0]


@pytest.mark.parametrize(
    ("bound", "passing", "failing"),
    [
        (AT_LEAST, [0.5, np.nextafter(0.5, 1), 1e300], [np.nextafter(0.5, 0), -1e300, np.nan, np.inf, -np.inf]),
        (AT_MOST, [0.5, np.nextafter(0.5, 0), -1e300], [np.nextafter(0.5, 1), 1e300, np.nan, np.inf, -np.inf]),
    ],
)
def test_a_gate_passes_at_its_limit_and_not_beyond_it(bound: str, passing: list[float], failing: list[float]) -> None:
    assert [one(measuring(value, bound)).passed for value in passing] == [True] * len(passing)
    assert [one(measuring(value, bound)).passed for value in failing] == [False] * len(failing)


def test_a_verdict_tells_what_was_measured() -> None:
    assert one(measuring(1 / 3)) == Verdict("gate", False, 0.333333, AT_LEAST, 0.5, "as made", None)
    assert one(measuring(np.float64(0.5)), REASON) == Verdict("gate", True, 0.5, AT_LEAST, 0.5, "as made", REASON)
    assert type(one(measuring(np.bool_(True))).passed) is bool


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bound", [AT_LEAST, AT_MOST])
def test_what_is_no_number_fails_and_leaves_none(value: float, bound: str) -> None:
    expected = Verdict("gate", False, None, bound, 0.5, "no number came of it: as made", None)
    assert one(measuring(value, bound)) == expected


def test_a_limit_that_is_no_number_lets_nothing_pass() -> None:
    for bound in (AT_LEAST, AT_MOST):
        assert not one(measuring(0.5, bound, np.nan)).passed


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (raising(KeyError("roc_auc")), "'roc_auc'"),
        (raising(InputError("no row\n   is left")), "no row is left"),
        (raising(ZeroDivisionError()), "ZeroDivisionError"),
        (raising(MemoryError()), "MemoryError"),
        (measuring(None), "float() argument must be a string or a real number, not 'NoneType'"),
        (measuring(pd.NA), "float() argument must be a string or a real number, not 'NAType'"),
        (measuring("much"), "could not convert string to float: 'much'"),
        (lambda: None, "cannot unpack non-iterable NoneType object"),
    ],
)
def test_a_gate_that_could_not_be_computed_has_failed(gate: Any, said: str) -> None:
    assert one(gate, REASON) == Verdict("gate", False, None, None, None, f"could not be computed: {said}", REASON)


def test_whoever_stops_the_inspection_is_not_taken_for_a_gate() -> None:
    with pytest.raises(KeyboardInterrupt):
        one(raising(KeyboardInterrupt()))


def test_every_gate_is_judged_though_one_before_it_fails() -> None:
    listed = {"a": raising(ValueError("no")), "b": measuring(0.4), "c": measuring(0.6)}
    assert [(v.gate, v.passed) for v in judge(listed, {})] == [("a", False), ("b", False), ("c", True)]


def test_a_waiver_of_no_gate_is_refused_by_name() -> None:
    listed = {"a": measuring(1), "b": measuring(1)}
    with pytest.raises(InputError, match=r"names of gates under 'waived' \(a, b\), got \['c', 'flor'\]"):
        judge(listed, {"flor": REASON, "a": REASON, "c": REASON})


@pytest.mark.parametrize(
    ("reason", "fits"), [("too short", False), ("", False), (" " * 20, False), (REASON, True), (None, False)]
)
def test_a_waiver_needs_a_reason(reason: Any, fits: bool) -> None:
    if fits:
        assert evaluate_params(waived={"floor": reason}).waived == {"floor": REASON}
    else:
        with pytest.raises(ValidationError, match=r"waived\.floor"):
            evaluate_params(waived={"floor": reason})


def verdicts(*passed: bool, waived: Sequence[str | None] = ()) -> list[Verdict]:
    reasons = [*waived, *[None] * len(passed)]
    return [
        Verdict(name, p, 1.0, AT_LEAST, 0.5, "as made", w) for name, p, w in zip("abc", passed, reasons, strict=False)
    ]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (verdicts(True, True, True), True),
        (verdicts(True, False, True), False),
        (verdicts(True, True), False),
        (verdicts(True, True, True)[1:], False),
        ([], False),
        (verdicts(True, True, True)[::-1], False),
        ([*verdicts(True, True, True), verdicts(True)[0]], False),
        ([*verdicts(True, True), verdicts(True)[0], verdicts(True, True, True)[2]], False),
        (verdicts(True, False, True, waived=[None, REASON]), True),
        (verdicts(False, False, True, waived=[None, REASON]), False),
        (verdicts(True, False, True, waived=[None, ""]), False),
    ],
    ids=[
        "all passed", "one failed", "last missing", "first missing", "none", "another order", "one doubled",
        "one in another's place", "failed and waived", "another waived", "waived for no reason",
    ],
)  # fmt: skip
def test_a_bundle_is_airworthy_where_each_expected_gate_stands_once_and_has_passed_or_is_waived(
    found: list[Verdict], expected: bool
) -> None:
    assert airworthy(found, ["a", "b", "c"]) is expected
    assert as_json(found, ["a", "b", "c"], "f00")["airworthy"] is expected


def test_the_whole_verdict_holds_the_hash_and_each_gate() -> None:
    found = as_json(verdicts(True, waived=[REASON]), ["a"], "f00")
    gate = {
        "gate": "a",
        "passed": True,
        "value": 1.0,
        "bound": "at least",
        "limit": 0.5,
        "reason": "as made",
        "waived": REASON,
    }
    assert found == {"airworthy": True, "waived": ["a"], "bundle": "f00", "gates": [gate]}


def test_what_grounds_is_what_has_failed_and_is_not_waived_and_what_is_missing() -> None:
    found = verdicts(True, False, False, waived=[None, REASON])
    assert gates.grounds(found, ["a", "b", "c"]) == ["c"]
    assert gates.grounds(found[:2], ["a", "b", "c"]) == ["c (missing)"]
    assert gates.grounds(found[1:], ["a", "b", "c"]) == ["c", "a (missing)"]
    assert gates.grounds(verdicts(True, True, True), ["a", "b", "c"]) == []


# The gates on an evaluation


def held(gate: Callable[..., Measured], found: Evaluation, limits: gates.Limits = LIMITS) -> Verdict:
    return one(partial(gate, found, limits))


def with_figure(name: str, estimate: Estimate, task: str = "binary") -> Evaluation:
    found = evaluation(task)
    return found._replace(metrics=found.metrics | {"model": found.metrics["model"] | {name: estimate}}, metric=name)


def with_gain(baseline: str, low: float, task: str = "binary") -> Evaluation:
    found = evaluation(task)
    gains = found.gains[baseline] | {found.proper: Estimate(low + 0.1, low, low + 0.2)}
    return found._replace(gains=found.gains | {baseline: gains})


def with_slices(ends: dict[str, tuple[float, bool]], metric: str = "roc_auc") -> Evaluation:
    """Slices by name with the better end of their interval, and whether they are judged."""
    sign = -1 if metric == "rmse" else 1
    rows = [
        {
            "slice": name,
            "judged": judged,
            metric: end - 0.1 * sign,
            f"{metric}_low": end - 0.2 * sign,
            f"{metric}_high": end,
        }
        for name, (end, judged) in ends.items()
    ]
    table = pd.DataFrame(rows)
    if metric == "rmse":
        table = table.rename(columns={"rmse_low": "rmse_high", "rmse_high": "rmse_low"})
    return evaluation()._replace(metric=metric, tables={"slices": table})


def with_gaps(*highs: float) -> Evaluation:
    rows = [("site", f"figure {i}", "a 0.1, b 0.2", 0.1, 0.0, high) for i, high in enumerate(highs)]
    columns = ["column", "figure", "groups", "gap", "gap_low", "gap_high"]
    return evaluation()._replace(tables={"groups": pd.DataFrame(rows, columns=columns)})


def with_noise(share: float, moves: Sequence[float] = (0.1, 0.2)) -> Evaluation:
    table = pd.DataFrame(
        {"disturbance": ["noise", "gaps"], "changed_decisions": [share, 0.9], "largest_move": moves, "size": 0.1}
    )
    return evaluation()._replace(tables={"stability": table})


BIAS = evaluation("regression").deviation * 0.05
CASES: dict[str, tuple[Any, Callable[[float], Evaluation], float, str]] = {
    "test_rows": (gates.test_rows, lambda v: evaluation()._replace(rows=v), 150, AT_LEAST),
    "leak": (gates.leak, lambda v: evaluation()._replace(single_features={"a": 0.5, "b": v, "c": 0.6}), 0.9, AT_MOST),
    "parity": (gates.parity, lambda v: evaluation()._replace(golden_gap=v), 1e-9, AT_MOST),
    "floor": (gates.floor, lambda v: with_figure("roc_auc", Estimate(0.9, v, 0.95)), 0.7, AT_LEAST),
    "floor, less is better": (gates.floor, lambda v: with_figure("brier", Estimate(0.2, 0.1, v)), 0.7, AT_MOST),
    "beats_naive": (gates.beats_naive, lambda v: with_gain("naive", v), 0.01, AT_LEAST),
    "beats_naive, of a number": (gates.beats_naive, lambda v: with_gain("naive", v, "regression"), 0.01, AT_LEAST),
    "beats_simple": (gates.beats_simple, lambda v: with_gain("simple", v), 0.02, AT_LEAST),
    "slices": (gates.slices, lambda v: with_slices({"a": (0.9, True), "b": (v, True)}), 0.6, AT_LEAST),
    "slices of a number": (gates.slices, lambda v: with_slices({"a": (0, True), "b": (v, True)}, "rmse"), 0.6, AT_MOST),
    "groups": (gates.groups, lambda v: with_gaps(0.1, v, 0.2), 0.3, AT_MOST),
    "calibration": (gates.calibration, lambda v: with_figure("calibration_error", Estimate(0.01, 0, v)), 0.05, AT_MOST),
    "stability": (gates.stability, with_noise, 0.02, AT_MOST),
    "hashes": (lambda v, _: gates.hashes(["a"] * int(v)), lambda v: v, 0, AT_MOST),
    "recorded": (lambda v, _: gates.recorded(["a"] * int(v)), lambda v: v, 0, AT_MOST),
    "size": (lambda v, _: gates.size(v, 20), lambda v: v, 20, AT_MOST),
    "latency": (lambda v, _: gates.latency([v - 1, v, 900.0], 5), lambda v: v, 5, AT_MOST),
    "reproducible": (lambda v, _: gates.reproducible([], v), lambda v: v, 1e-6, AT_MOST),
}  # fmt: skip
WHOLE = ("test_rows", "hashes", "recorded")


@pytest.mark.parametrize("case", CASES)
def test_a_gate_refuses_just_beyond_its_limit_and_nowhere_before(case: str) -> None:
    gate, made, limit, bound = CASES[case]
    step = 1 if case in WHOLE else limit * 1e-5
    away = step if bound == AT_LEAST else -step
    if limit != 0:
        assert held(gate, made(limit + away)).passed
    at, beyond = held(gate, made(limit)), held(gate, made(limit - away))
    assert at.passed
    assert (at.bound, at.limit) == (bound, pytest.approx(limit))
    assert not beyond.passed
    assert beyond.value == pytest.approx(limit - away, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("case", [name for name in CASES if name not in WHOLE])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_gate_that_gets_no_number_fails(case: str, value: float) -> None:
    gate, made, _, bound = CASES[case]
    found = held(gate, made(value))
    hidden = {"leak": -np.inf, "groups": -np.inf, "slices": np.inf, "slices of a number": -np.inf}
    if hidden.get(case) == value:  # another one is worse
        assert found.value is not None
    else:
        assert (found.passed, found.value, found.bound) == (False, None, bound)


def test_the_bias_of_a_number_is_judged_in_its_deviations_whichever_way_it_goes() -> None:
    for sign in (1, -1):
        for size, passed in ((0.99, True), (1.01, False)):
            ends = sorted([sign * size * BIAS, -sign * 0.1 * BIAS])
            found = with_figure("bias", Estimate(0.0, *ends), "regression")
            assert held(gates.calibration, found).passed is passed
    lacking = evaluation("regression")
    constant = lacking._replace(deviation=0.0)
    assert held(gates.calibration, constant).reason == "could not be computed: float division by zero"


def test_a_figure_that_is_missing_grounds_by_name() -> None:
    found = evaluation()
    without = {name: each for name, each in found.metrics["model"].items() if name != "roc_auc"}
    verdict = held(gates.floor, found._replace(metrics={"model": without}))
    assert (verdict.passed, verdict.reason) == (False, "could not be computed: roc_auc is no number on these rows")
    verdict = held(gates.calibration, found._replace(metrics={"model": {}}))
    assert verdict.reason == "could not be computed: calibration_error is no number on these rows"
    verdict = held(gates.beats_naive, found._replace(gains={"naive": {}}))
    assert verdict.reason == "could not be computed: log_loss is no number on these rows"


def test_one_broken_rule_grounds_and_is_told() -> None:
    assert held(gates.schema, evaluation()).reason.startswith("every row keeps the contract")
    verdict = held(gates.schema, evaluation()._replace(violations=["column 'a' has 2", "column 'b' has 1"]))
    assert (verdict.passed, verdict.value, verdict.reason) == (False, 2, "column 'a' has 2")


def test_what_was_observed_too_late_is_a_leak_though_no_feature_tells() -> None:
    verdict = held(gates.leak, evaluation()._replace(late=["weather came late"]))
    assert (verdict.passed, verdict.value, verdict.limit, verdict.reason) == (False, 1, 0, "weather came late")


def test_the_most_telling_feature_is_named() -> None:
    verdict = held(gates.leak, evaluation()._replace(single_features={"a": 0.5, "bill": 0.97, "c": 0.96}))
    assert verdict.reason == "the most telling feature alone, 'bill', 0.970"
    assert not held(gates.leak, evaluation()._replace(single_features={"a": 0.5, "b": np.nan})).passed
    assert not held(gates.leak, evaluation()._replace(single_features={})).passed


def test_the_worst_slice_that_is_judged_is_named() -> None:
    verdict = held(gates.slices, with_slices({"a": (0.9, True), "b": (0.5, True), "c": (0.1, False)}))
    assert verdict.reason == "of 2 slices the worst is b: roc_auc 0.400, at best 0.500"
    assert held(gates.slices, with_slices({"a": (0.9, True), "c": (0.1, False)})).passed


def test_slices_of_which_none_can_be_judged_ground_and_a_contract_without_any_does_not() -> None:
    verdict = held(gates.slices, with_slices({"a": (0.9, False)}))
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.reason == "no number came of it: no slice can be judged; lower evaluate.slice_rows"
    none = evaluation()._replace(tables={"slices": evaluation().tables["slices"].iloc[:0]})
    assert held(gates.slices, none).passed
    assert held(gates.slices, none).reason == "no column is marked as a slice"


def test_the_worst_gap_is_named_and_one_that_cannot_be_measured_grounds() -> None:
    assert held(gates.groups, with_gaps(0.1, 0.4)).reason == "site, figure 1: a 0.1, b 0.2"
    unknown = with_gaps(0.1, 0.2, np.nan)
    unknown.tables["groups"].loc[2, "groups"] = ""
    verdict = held(gates.groups, unknown)
    assert (verdict.passed, verdict.value) == (False, None)
    assert verdict.reason == "no number came of it: site, figure 2: no two groups have rows enough"
    none = held(gates.groups, with_gaps())
    assert (none.passed, none.reason) == (True, "no column is marked sensitive")


def test_groups_too_small_to_be_compared_ground() -> None:
    assert held(gates.groups, make_evaluation(slice_rows=80), evaluate_params().limits).passed
    verdict = held(gates.groups, make_evaluation(slice_rows=83), evaluate_params().limits)
    assert (verdict.passed, verdict.value) == (False, None)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_score_that_any_disturbance_breaks_grounds(broken: int) -> None:
    moves = [0.1, 0.1]
    assert held(gates.stability, with_noise(0.0, moves)).passed
    moves[broken] = np.nan
    assert not held(gates.stability, with_noise(0.0, moves)).passed


def test_latency_is_judged_in_the_median() -> None:
    verdict = held(lambda *_: gates.latency([1.0] * 60 + [100.0] * 40, 5), evaluation())
    assert (verdict.passed, verdict.value) == (True, 1.0)
    assert verdict.reason == "one row: 1.00 ms in the median, 100.00 ms at the 99th percentile"
    assert not one(lambda: gates.latency([], 5)).passed


def test_what_is_made_again_otherwise_grounds_whatever_its_scores() -> None:
    assert one(lambda: gates.reproducible([], 0.0)).passed
    assert not one(lambda: gates.reproducible(["model.onnx line 1"], 0.0)).passed
    assert gates.reproducible(["a", "b"], 0).reason == "made again otherwise: a; b"
    assert gates.reproducible([], 1e-9).reason == "prepared and trained again: scores differ by 1e-09 at most"


@pytest.mark.parametrize("name", ["hashes", "recorded"])
def test_the_integrity_of_what_is_judged_cannot_be_waived(name: str) -> None:
    with pytest.raises(InputError, match="expected names of gates under 'waived'"):
        judge({name: measuring(1), "size": measuring(1)}, {name: REASON})


def test_gaps_of_errors_are_judged_in_deviations_and_of_costs_in_a_thousandth() -> None:
    for figure, unit in (("rmse", evaluation().deviation), ("mae", evaluation().deviation), ("cost_per_1000", 1000)):
        found = with_gaps(0.6)
        found.tables["groups"]["figure"] = figure
        assert gates.groups(found, evaluate_params().limits).value == pytest.approx(0.6 / unit)


def test_hashes_and_records_tell_what_differs() -> None:
    assert gates.hashes(["a is not", "b is not"]).reason == "a is not; b is not"
    assert gates.hashes([]).reason == "every file has its recorded hash"
    assert gates.recorded(["metrics.json line 3"]).reason == "metrics.json line 3"
    assert "gives the recorded figures" in gates.recorded([]).reason


def test_a_challenger_may_be_worse_by_the_margin_and_no_more() -> None:
    def against(low: float) -> Verdict:
        fought = Duel("model/v3", "roc_auc", 1200, Estimate(low + 0.1, low, low + 0.2), {})
        return one(lambda: gates.champion(fought, 0.01))

    assert against(-0.01).passed
    assert against(-0.0099).passed
    assert not against(-0.0101).passed
    assert not against(np.nan).passed
    assert (
        against(-0.02).reason == "roc_auc +0.08 (-0.02 to +0.18) against model/v3, on 1,200 rows that neither has seen"
    )


def test_the_first_model_has_no_champion_to_fear_and_one_that_cannot_be_read_grounds() -> None:
    first = one(lambda: gates.champion(None, 0.01))
    assert (first.passed, first.reason) == (True, "first: no champion has flown yet")
    assert not one(raising(InputError("model/v3 cannot be read"))).passed


@pytest.mark.parametrize("task", TASKS)
def test_the_made_bundles_pass_what_their_rows_allow_to_judge(task: str) -> None:
    limits = evaluate_params(task).limits
    found = judge(gates.on_evaluation(lambda: evaluation(task), limits), {})
    expected = gates.names(gates.EVALUATION)
    assert [verdict.gate for verdict in found] == list(expected)
    assert gates.grounds(found, expected) == (
        ["slices"] if task == "binary" else []
    )  # twenty of each outcome in none of them


def test_where_there_is_no_evaluation_every_gate_on_it_has_failed() -> None:
    found = judge(gates.on_evaluation(raising(InputError("no rows")), LIMITS), {"floor": REASON})
    assert len(found) == len(gates.EVALUATION)
    assert {(v.passed, v.reason) for v in found} == {(False, "could not be computed: no rows")}
    assert not airworthy(found, gates.names(gates.EVALUATION))


def test_an_inspection_expects_every_gate_of_the_evaluation_and_six_more() -> None:
    names = gates.names(gates.INSPECTION)
    assert len(set(names)) == len(names)
    assert names[: len(gates.EVALUATION)] == gates.names(gates.EVALUATION)
    assert set(names[len(gates.EVALUATION) :]) == {"hashes", "recorded", "reproducible", "champion", "size", "latency"}
