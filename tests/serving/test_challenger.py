import math
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import InputError
from pipeline.scoring import parse_columns
from serving.challenger import _MOST_BATCHES, ChallengerMetrics, Shadow, check_comparable, in_canary
from tests.serving.made import Bundle

BINARY: dict[str, Any] = {
    "task": "binary",
    "target": "fails",
    "classes": None,
    "threshold": 0.5,
    "inputs": [{"name": "x", "kind": "number", "unit": "C", "nullable": False, "categories": ["a"]}],
}
MULTICLASS = BINARY | {"task": "multiclass", "classes": ["a", "b", "c"], "threshold": None}
REGRESSION = BINARY | {"task": "regression", "threshold": None}
Made = Callable[..., Shadow]


class Counted:
    """Metrics in a registry of their own, and what they say."""

    def __init__(self, spread: float = 1) -> None:
        self.registry = CollectorRegistry()
        self.metrics = ChallengerMetrics(self.registry, spread=spread)

    def __getitem__(self, name: str) -> float:
        value = self.registry.get_sample_value(f"serving_{name}")
        assert value is not None
        return value

    def within(self, edge: float) -> float | None:
        return self.registry.get_sample_value("serving_challenger_difference_bucket", {"le": str(edge)})

    def wait(self, **expected: float) -> None:
        """Until the shadow has come so far."""
        until = monotonic() + 30
        while any(self[name] != value for name, value in expected.items()) and monotonic() < until:
            sleep(0.002)
        assert {name: self[name] for name in expected} == expected


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def made_shadow(counted: Counted) -> Iterator[Made]:
    shadows: list[Shadow] = []

    def make(score: Any, champion: Any = BINARY, challenger: Any = None) -> Shadow:
        shadows.append(Shadow(score, counted.metrics, champion=champion, challenger=challenger or champion))
        return shadows[-1]

    yield make
    for shadow in shadows:
        shadow.stop()


def _x(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values)}


def _scores(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_what_the_champion_scored_is_compared_row_by_row(made_shadow: Made, counted: Counted) -> None:
    threads = []

    def score(columns: Any) -> np.ndarray:
        threads.append(threading.current_thread())
        return np.asarray(columns["x"][:, None])

    shadow = made_shadow(score)
    shadow.offer(_x(0.1, 0.2, 0.9), _scores(0.1, 0.6, 0.2))
    shadow.offer(_x(0.3), _scores(0.32))
    counted.wait(challenger_rows_total=4)
    assert counted["challenger_changed_total"] == 2
    assert counted["challenger_difference_sum"] == pytest.approx(0.4 + 0.7 + 0.02)
    assert [counted.within(edge) for edge in (1e-9, 0.01, 0.025, 0.25, 0.5, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert counted["challenger_failures_total"] == counted["shadow_dropped_total"] == 0
    assert {(thread.name, thread.daemon) for thread in threads} == {("shadow", True)}


def test_each_decides_by_its_own_threshold(made_shadow: Made, counted: Counted) -> None:
    shadow = made_shadow(lambda columns: columns["x"][:, None], challenger=BINARY | {"threshold": 0.8})
    shadow.offer(_x(0.4, 0.7, 0.9), _scores(0.4, 0.7, 0.9))
    counted.wait(challenger_rows_total=3, challenger_changed_total=1, challenger_difference_sum=0)


def test_of_several_classes_the_largest_difference_counts(made_shadow: Made, counted: Counted) -> None:
    theirs = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    shadow = made_shadow(lambda _: theirs, MULTICLASS)
    shadow.offer(_x(1, 2), np.array([[0.6, 0.1, 0.3], [0.1, 0.2, 0.7]]))
    counted.wait(challenger_rows_total=2, challenger_changed_total=1)
    assert counted["challenger_difference_sum"] == pytest.approx(0.5)


def test_of_predictions_no_decision_changes(made_shadow: Made, counted: Counted) -> None:
    shadow = made_shadow(lambda columns: columns["x"][:, None], REGRESSION)
    shadow.offer(_x(1e6), _scores(-5))
    counted.wait(challenger_rows_total=1, challenger_changed_total=0)
    assert counted["challenger_difference_sum"] == 1e6 + 5


@pytest.mark.parametrize(
    "answer",
    [np.array([[np.nan]]), np.array([[1.5]]), np.array([[0.5], [0.5]]), np.array([[0.5, 0.5]]), np.empty((0, 1)), None],
)
def test_what_are_no_scores_is_a_failure(made_shadow: Made, counted: Counted, answer: Any) -> None:
    shadow = made_shadow(lambda columns: answer if columns["x"][0] else _scores(0.5))
    shadow.offer(_x(1), _scores(0.5))
    shadow.offer(_x(0), _scores(0.5))
    counted.wait(challenger_failures_total=1, challenger_rows_total=1)


def test_a_challenger_that_raises_goes_on_with_the_next_rows(made_shadow: Made, counted: Counted) -> None:
    def score(columns: Any) -> np.ndarray:
        if columns["x"][0]:
            raise RuntimeError("broken")
        return _scores(0.5)

    shadow = made_shadow(score)
    for x in (1, 1, 0):
        shadow.offer(_x(x), _scores(0.5))
    counted.wait(challenger_failures_total=2, challenger_rows_total=1)


class Hanging:
    """A challenger that answers nothing before it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, columns: Any) -> np.ndarray:
        self.began.set()
        assert self.go.wait(60)
        return np.full((len(columns["x"]), 1), 0.5)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    score = Hanging()
    yield score
    score.go.set()


def _hold(shadow: Shadow, score: Hanging) -> None:
    shadow.offer(_x(1), _scores(0.5))
    assert score.began.wait(30)


def test_what_finds_no_room_is_dropped_and_counted(made_shadow: Made, counted: Counted, hanging: Hanging) -> None:
    shadow = made_shadow(hanging)
    _hold(shadow, hanging)
    for _ in range(_MOST_BATCHES + 10):
        shadow.offer(_x(1, 2, 3), _scores(0.5, 0.5, 0.5))
    assert counted["shadow_dropped_total"] == 30
    hanging.go.set()
    counted.wait(challenger_rows_total=1 + 3 * _MOST_BATCHES)
    shadow.offer(_x(1), _scores(0.5))
    counted.wait(challenger_rows_total=2 + 3 * _MOST_BATCHES)


def test_of_large_batches_few_may_wait(
    made_shadow: Made, counted: Counted, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.challenger._MOST_ROWS", 10)
    shadow = made_shadow(hanging)
    _hold(shadow, hanging)
    for _ in range(5):
        shadow.offer(_x(*range(6)), np.full((6, 1), 0.5))
    assert counted["shadow_dropped_total"] == 18
    hanging.go.set()
    counted.wait(challenger_rows_total=13)
    shadow.offer(_x(1), _scores(0.5))
    counted.wait(challenger_rows_total=14)


def test_a_challenger_that_hangs_is_left_behind(
    made_shadow: Made, counted: Counted, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.challenger._STOP_S", 0.05)
    shadow = made_shadow(hanging)
    _hold(shadow, hanging)
    shadow.offer(_x(1), _scores(0.5))
    shadow.stop()
    assert shadow._thread.is_alive()
    hanging.go.set()
    shadow._thread.join(30)
    assert not shadow._thread.is_alive()
    assert counted["challenger_rows_total"] == 1  # what waited is forgotten


def test_one_that_was_stopped_takes_offers_without_a_word(made_shadow: Made, counted: Counted) -> None:
    shadow = made_shadow(lambda columns: columns["x"][:, None])
    shadow.stop()
    assert not shadow._thread.is_alive()
    for _ in range(2 * _MOST_BATCHES):
        shadow.offer(_x(1), _scores(0.5))
    assert counted["challenger_rows_total"] == 0
    assert counted["shadow_dropped_total"] >= _MOST_BATCHES


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_bundle_does_not_differ_from_itself(made: Callable[[str], Bundle], counted: Counted, task: str) -> None:
    scorer, bundle = made(f"{task}-onnx").load().scorer, made(f"{task}-onnx")
    columns = parse_columns(bundle.golden["rows"], scorer.contract["inputs"])
    shadow = Shadow(scorer.score, counted.metrics, champion=scorer.contract, challenger=scorer.contract)
    rows = len(bundle.golden["scores"])
    shadow.offer(columns, scorer.score(columns))
    counted.wait(challenger_rows_total=rows, challenger_changed_total=0)
    assert counted.within(1e-9) == rows
    shadow.stop()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (BINARY | {"task": "regression"}, "the champion's task binary, got regression"),
        (BINARY | {"target": "breaks"}, "the champion's target fails, got breaks"),
        (BINARY | {"inputs": []}, r"inputs; .*: \['x'\]; serve it in a container of its own"),
        (BINARY | {"inputs": [BINARY["inputs"][0] | {"kind": "integer"}]}, r"inputs; .*: \['x'\]"),
        (BINARY | {"inputs": [BINARY["inputs"][0] | {"unit": "F"}]}, r"inputs; .*: \['x'\]"),
        (BINARY | {"inputs": [BINARY["inputs"][0] | {"nullable": True}]}, r"inputs; .*: \['x'\]"),
        (BINARY | {"inputs": [*BINARY["inputs"], BINARY["inputs"][0] | {"name": "y"}]}, r"inputs; .*: \['y'\]"),
    ],
)
def test_a_challenger_that_answers_something_else_is_refused(counted: Counted, other: Any, said: str) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match=said):
        Shadow(lambda _: _scores(0.5), counted.metrics, champion=BINARY, challenger=other)
    assert threading.active_count() <= before


def test_other_classes_or_another_order_of_them_are_refused() -> None:
    for classes in (["a", "b", "d"], ["b", "a", "c"], ["a", "b", "c", "d"]):
        with pytest.raises(InputError, match="expected the champion's classes"):
            check_comparable(MULTICLASS, MULTICLASS | {"classes": classes})


def test_a_challenger_may_know_more_categories_and_have_another_threshold() -> None:
    inputs = [BINARY["inputs"][0] | {"categories": ["a", "b"], "description": "better"}]
    check_comparable(BINARY, BINARY | {"inputs": inputs, "threshold": 0.1})


KEYS = [f"key-{number}".encode() for number in range(100_000)]


def _canary(share: float, salt: bytes = b"one") -> np.ndarray:
    return np.array([in_canary(key, share, salt) for key in KEYS])


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.9])
def test_the_share_of_keys_is_as_asked(share: float) -> None:
    deviation = math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(_canary(share).sum() - len(KEYS) * share) < 5 * deviation


def test_a_key_stays_where_it_is() -> None:
    assert (_canary(0.3) == _canary(0.3)).all()
    assert [in_canary(key, 0.5, b"salt") for key in KEYS[:8]] == [True, True, False, True, False, False, False, True]


def test_a_larger_share_holds_the_smaller() -> None:
    shares = [_canary(share) for share in (0, 0.01, 0.1, 0.5, 0.99, 1)]
    assert not shares[0].any()
    assert shares[-1].all()
    for smaller, larger in pairwise(shares):
        assert (larger | ~smaller).all()


def test_another_salt_draws_anew() -> None:
    """The two shares are independent: of the keys in one, as many are in the other as of all keys."""
    both = (_canary(0.5) & _canary(0.5, b"two")).sum()
    assert abs(both - len(KEYS) / 4) < 5 * math.sqrt(len(KEYS) * 3 / 16)


def test_the_figures_are_what_prometheus_reads() -> None:
    counted = Counted()
    names = {family.name for family in text_string_to_metric_families(generate_latest(counted.registry).decode())}
    for name in ("challenger_rows", "challenger_failures", "challenger_changed", "shadow_dropped"):
        assert f"serving_{name}" in names
    assert "serving_challenger_difference" in names
    assert counted["challenger_difference_count"] == counted["challenger_difference_sum"] == 0


def test_differences_of_predictions_are_counted_by_their_spread() -> None:
    counted = Counted(spread=200)
    counted.metrics.compared(np.array([1.0, 3.0, 500.0]), 0)
    assert [counted.within(edge) for edge in (1.0, 2.0, 5.0, 100.0, 200.0)] == [1, 1, 2, 2, 2]
    assert counted["challenger_difference_count"] == 3


def test_figures_are_whole_while_they_are_written() -> None:
    counted = Counted()
    read: list[float] = []

    def scrape() -> None:
        while writer.is_alive():
            read.append(counted["challenger_difference_count"])

    def write() -> None:
        for _ in range(300):
            counted.metrics.compared(np.ones(100), 1)

    writer, reader = threading.Thread(target=write), threading.Thread(target=scrape)
    writer.start()
    reader.start()
    writer.join(60)
    reader.join(60)
    assert counted["challenger_difference_count"] == counted["challenger_rows_total"] == 30_000
    assert counted["challenger_changed_total"] == 300
    assert read == sorted(read)
    assert all(count % 100 == 0 for count in read)
