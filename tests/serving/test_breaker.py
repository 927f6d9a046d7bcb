import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.baselines import baseline_scores
from pipeline.errors import InputError
from pipeline.scoring import Scorer, parse_columns
from serving.breaker import Breaker, Fallback, Reason, check_scores
from tests.serving.made import Bundle

COOLDOWN_S = 10.0
PROBES = 3


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(window=4, rate=0.5, cooldown_s=COOLDOWN_S, clock=clock)


def _leave(breaker: Breaker) -> int:
    leave = breaker.allows()
    assert leave is not None
    return leave


def _succeed(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.succeeded(_leave(breaker))


def _fail(breaker: Breaker, reason: Reason = "raised") -> None:
    breaker.failed(_leave(breaker), reason)


def _open(breaker: Breaker) -> None:
    _fail(breaker)
    _fail(breaker, "slow")
    assert breaker.state == "open"


def test_it_opens_at_the_stated_rate_of_failures_and_says_why(breaker: Breaker) -> None:
    assert (breaker.state, breaker.detail) == ("closed", "the model answers")
    _succeed(breaker, 3)
    _fail(breaker, "slow")
    assert breaker.state == "closed"
    _fail(breaker, "not_finite")
    assert breaker.state == "open"
    assert breaker.allows() is None
    assert breaker.detail == (
        "the baseline answers: 2 of the model's last 4 calls failed (not_finite, slow); it is tried again in 10 s"
    )


def test_few_calls_open_nothing() -> None:
    breaker = Breaker()
    for _ in range(9):
        _fail(breaker)
    assert breaker.state == "closed"
    _succeed(breaker)
    assert breaker.state == "open"


def test_failures_that_lie_far_apart_open_nothing(breaker: Breaker) -> None:
    for _ in range(50):
        _succeed(breaker, 3)
        _fail(breaker)
    assert breaker.state == "closed"


def test_after_a_while_it_is_tried_one_call_at_a_time_and_closes_when_three_went_well(
    breaker: Breaker, clock: Clock
) -> None:
    _open(breaker)
    clock.now += COOLDOWN_S - 0.5
    assert breaker.allows() is None
    clock.now += 0.5
    assert breaker.state == "half_open"
    for passed in range(PROBES):
        assert breaker.state == "half_open"
        assert breaker.detail.endswith(f"; {passed} of 3 new tries went well")
        probe = _leave(breaker)
        assert breaker.allows() is None
        breaker.succeeded(probe)
    assert breaker.state == "closed"
    _fail(breaker)
    assert breaker.state == "closed"  # what was before it opened is forgotten


def test_one_try_that_fails_opens_it_for_as_long_again(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    clock.now += COOLDOWN_S
    _succeed(breaker, 2)
    _fail(breaker, "out_of_range")
    assert breaker.state == "open"
    assert breaker.detail == (
        "the baseline answers: the model was tried again, and failed (out_of_range); it is tried again in 10 s"
    )
    clock.now += COOLDOWN_S
    _succeed(breaker, 2)
    assert breaker.state == "half_open"


def test_a_try_that_was_abandoned_leaves_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    clock.now += COOLDOWN_S
    abandoned = _leave(breaker)
    breaker.abandoned(abandoned)
    breaker.failed(abandoned, "raised")
    _succeed(breaker, PROBES)
    assert breaker.state == "closed"


def test_a_call_that_was_abandoned_while_it_was_closed_counts_as_none(breaker: Breaker) -> None:
    _fail(breaker)
    for _ in range(9):
        breaker.abandoned(_leave(breaker))
    assert breaker.state == "closed"
    _fail(breaker)
    assert breaker.state == "open"


def test_a_try_that_never_ends_counts_as_failed(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    clock.now += COOLDOWN_S
    _succeed(breaker, 2)
    lost = _leave(breaker)
    clock.now += COOLDOWN_S
    second = _leave(breaker)
    assert breaker.allows() is None
    breaker.succeeded(lost)
    assert breaker.allows() is None
    breaker.succeeded(second)
    _succeed(breaker)
    assert breaker.state == "half_open"
    _succeed(breaker)
    assert breaker.state == "closed"


def test_what_was_under_way_when_it_opened_is_not_heard_later(breaker: Breaker, clock: Clock) -> None:
    late = [_leave(breaker) for _ in range(9)]
    _open(breaker)
    breaker.failed(late.pop(), "raised")
    breaker.succeeded(late.pop())
    breaker.abandoned(late.pop())
    assert (breaker.state, breaker.allows()) == ("open", None)
    clock.now += COOLDOWN_S
    probe = _leave(breaker)
    breaker.succeeded(late.pop())
    breaker.failed(late.pop(), "raised")
    breaker.abandoned(late.pop())
    assert (breaker.state, breaker.allows()) == ("half_open", None)
    breaker.succeeded(probe)
    _succeed(breaker, PROBES - 1)
    breaker.failed(late.pop(), "raised")
    breaker.failed(late.pop(), "raised")
    assert breaker.state == "closed"


def test_one_that_was_killed_lets_nothing_through_until_it_is_revived(breaker: Breaker, clock: Clock) -> None:
    begun = _leave(breaker)
    breaker.kill("wrong since noon", by="ops")
    assert (breaker.state, breaker.allows()) == ("killed", None)
    assert breaker.detail == "the baseline answers: the model was switched off by ops: wrong since noon"
    clock.now += 100 * COOLDOWN_S
    breaker.succeeded(begun)
    assert (breaker.state, breaker.allows()) == ("killed", None)
    breaker.revive(by="ann")
    assert (breaker.state, breaker.detail) == ("closed", "the model answers, switched on again by ann")
    _succeed(breaker)


def test_one_that_was_open_before_it_was_killed_is_tried_first(breaker: Breaker, clock: Clock) -> None:
    _open(breaker)
    breaker.kill("again", by="ops")
    clock.now += COOLDOWN_S
    breaker.revive(by="ops")
    assert breaker.state == "half_open"


VERDICTS = st.sampled_from(["succeeded", "failed", "succeeded", "failed", "abandoned"])


class Agreement(RuleBasedStateMachine):
    """Any order of calls, verdicts, waits and kills, beside a model of what a breaker is to do."""

    WINDOW, RATE = 5, 0.6

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(window=self.WINDOW, rate=self.RATE, cooldown_s=COOLDOWN_S, clock=self.clock)
        self.under_way: list[tuple[int, object]] = []
        self.era = object()  # calls of another have no say
        self.closed, self.killed = True, False
        self.history: list[bool] = []
        self.passed = 0
        self.again_at = 0.0
        self.probe_until: float | None = None

    def _next(self, *, closed: bool, wait_s: float = 0) -> None:
        self.era, self.closed, self.probe_until = object(), closed, None
        self.again_at = self.clock.now + wait_s

    @rule(times=st.integers(1, 3))
    def ask(self, times: int) -> None:
        for _ in range(times):
            self._ask()

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100), verdict=VERDICTS)
    def end(self, which: int, verdict: str) -> None:
        self._end(which % len(self.under_way), verdict)

    @rule(verdicts=st.lists(VERDICTS, min_size=1, max_size=4))
    def ask_and_end(self, verdicts: list[str]) -> None:
        for verdict in verdicts:
            if self._ask():
                self._end(-1, verdict)

    def _ask(self) -> bool:
        leave, now = self.breaker.allows(), self.clock.now
        probing = self.probe_until is not None and now < self.probe_until
        allowed = not self.killed and (self.closed or (now >= self.again_at and not probing))
        assert (leave is not None) == allowed
        if leave is None:
            return False
        if not self.closed:
            if self.probe_until is not None:
                self.passed = 0
            self._next(closed=False)
            self.probe_until = now + COOLDOWN_S
        self.under_way.append((leave, self.era))
        return True

    def _end(self, which: int, verdict: str) -> None:
        leave, era = self.under_way.pop(which)
        if verdict == "failed":
            self.breaker.failed(leave, "raised")
        else:
            getattr(self.breaker, verdict)(leave)
        if era is not self.era:
            return
        if self.closed and verdict != "abandoned":
            self.history.append(verdict == "failed")
            last = self.history[-self.WINDOW :]
            if len(last) >= 3 and sum(last) >= self.RATE * len(last):
                self._next(closed=False, wait_s=COOLDOWN_S)
                self.passed = 0
        elif not self.closed:
            self.passed = {"succeeded": self.passed + 1, "abandoned": self.passed}.get(verdict, 0)
            self._next(closed=self.passed == PROBES, wait_s=COOLDOWN_S if verdict == "failed" else 0)
            self.history = []

    @rule(seconds=st.sampled_from([COOLDOWN_S, COOLDOWN_S / 2, 1.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(killed=st.sampled_from([False, False, True]))
    def switch(self, killed: bool) -> None:
        if killed:
            self.breaker.kill("a drill", by="ops")
        else:
            self.breaker.revive(by="ops")
        self.killed = killed

    @invariant()
    def at_most_one_probe(self) -> None:
        assert self.closed or sum(era is self.era for _, era in self.under_way) <= 1

    @invariant()
    def states_agree(self) -> None:
        trying = self.probe_until is not None or self.clock.now >= self.again_at
        expected = "killed" if self.killed else "closed" if self.closed else "half_open" if trying else "open"
        assert self.breaker.state == expected
        assert self.breaker.detail

    def teardown(self) -> None:
        """Whatever was: once it is revived, time alone lets calls through again, and a model that is well closes it."""
        self.breaker.revive(by="ops")
        for _ in range(self.WINDOW + PROBES):
            self.clock.now += COOLDOWN_S
            _succeed(self.breaker)
        assert self.breaker.state == "closed"


Agreement.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None, database=None)
TestAgreement = Agreement.TestCase


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("task", "scores", "found"),
    [
        ("binary", [[0.0]], None),
        ("binary", [[1.0]], None),
        ("binary", [[1 + 2e-16]], None),
        ("binary", [[1.01]], "out_of_range"),
        ("binary", [[-0.01]], "out_of_range"),
        ("binary", [[NAN]], "not_finite"),
        ("binary", [[-INF]], "not_finite"),
        ("binary", [[0.1], [0.9]], None),
        ("binary", [[0.1], [2.0]], "out_of_range"),
        ("binary", [[-2.0], [0.1]], "out_of_range"),
        ("binary", [[0.1], [NAN], [0.2]], "not_finite"),
        ("binary", [[0.1], [INF]], "not_finite"),
        ("binary", [[NAN], [INF]], "not_finite"),
        ("multiclass", [[0.2, 0.3, 0.5]], None),
        ("multiclass", [[0.2, 0.3, 0.5 + 1e-7]], None),
        ("multiclass", [[0.2, 0.3, 0.5], [0.2, 0.3, 0.4]], "out_of_range"),
        ("multiclass", [[0.7, -0.2, 0.5]], "out_of_range"),
        ("multiclass", [[0.7, NAN, 0.3]], "not_finite"),
        ("regression", [[-1e300]], None),
        ("regression", [[1e308], [1e308]], None),
        ("regression", [[NAN]], "not_finite"),
        ("regression", [[5.0], [INF]], "not_finite"),
    ],
)
def test_scores_are_finite_and_where_they_are_probabilities_in_range(
    task: str, scores: list[list[float]], found: str | None
) -> None:
    assert check_scores(np.array(scores), {"task": task}) == found


def _fallback(bundle: Bundle) -> Fallback:
    return Fallback(bundle.folder / "baseline.json", bundle.load().scorer)


def _columns(bundle: Bundle) -> dict[str, np.ndarray]:
    return parse_columns(bundle.golden["rows"], bundle.read("contract.json")["inputs"])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_simple_baseline_of_the_bundle_answers(made: Callable[[str], Bundle], task: str) -> None:
    bundle = made(f"{task}-onnx")
    fallback, columns, written = _fallback(bundle), _columns(bundle), bundle.read("baseline.json")
    scores = fallback.score(columns)
    features = bundle.load().scorer.features(columns)
    assert scores.tolist() == baseline_scores(written["simple"], features).tolist()
    assert len({tuple(row) for row in scores.tolist()}) > 1
    assert check_scores(scores, bundle.read("contract.json")) is None
    assert fallback.threshold == written["simple"].get("threshold")
    assert (fallback.threshold is None) == (task != "binary")


def test_where_the_simple_baseline_fails_the_naive_one_answers(made: Callable[[str], Bundle]) -> None:
    bundle = made("multiclass-onnx")

    def broken(_columns: Any) -> Any:
        raise RuntimeError

    sound = bundle.load().scorer
    fallback = Fallback(bundle.folder / "baseline.json", Scorer(sound.contract, broken, sound.spec, sound.model))
    columns = _columns(bundle)
    naive = bundle.read("baseline.json")["naive"]
    assert fallback.score(columns).tolist() == baseline_scores(naive, columns).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"simple": None}, "`object`"),
        ({"keys": ["nothing"]}, "no such features: nothing"),
        ({"keys": 5}, "array"),
        ({"overall": []}, "number of dimensions|inhomogeneous"),
        ({"overall": [0.5, 0.5]}, "inhomogeneous"),
        ({"overall": [0.5, 0.5], "groups": {}}, "wanted 1 scores for each group"),
        ({"overall": [1.5]}, "wanted 1 scores"),
        ({"groups": {"north": ["x"]}}, "float"),
        ({"threshold": 2}, "<= 1.0"),
        ({"threshold": None}, "float"),
        ({"threshold": ...}, "a binary target and a threshold"),
    ],
)
def test_a_baseline_that_training_did_not_write_is_refused_by_path(
    made: Callable[[str], Bundle], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    bundle, path = made("binary-onnx"), tmp_path / "baseline.json"
    baselines = bundle.read("baseline.json")
    changed = change if "simple" in change else {"simple": baselines["simple"] | change}
    if change.get("threshold") is ...:
        del changed["simple"]["threshold"]
    path.write_text(json.dumps(baselines | changed))
    with pytest.raises(InputError, match=rf"^{path}: expected the JSON that training writes, got another.*({said})"):
        Fallback(path, bundle.load().scorer)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"simple": {}}', "NaN"])
def test_a_file_that_holds_no_baseline_is_refused_by_path(
    made: Callable[[str], Bundle], tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"^{path}: expected the JSON that training writes, got another"):
        Fallback(path, made("binary-onnx").load().scorer)
