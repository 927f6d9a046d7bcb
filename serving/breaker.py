"""What keeps a failing model from clients: a circuit breaker, a check of scores, and the baseline that answers instead.
Change here to judge the model otherwise."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import numpy as np

from pipeline.baselines import baseline_scores
from pipeline.errors import InputError
from pipeline.scoring import TOLERANCE, Columns, Scorer

Reason = Literal["raised", "not_finite", "out_of_range", "slow"]
State = Literal["closed", "open", "half_open", "killed"]

_PROBES = 3
_SUM_TOLERANCE = 1e-6  # of the probabilities of several classes


class Breaker:
    """A circuit breaker (Nygard, Release It!, 2007) for the calls of one model, used by one thread.

    It opens when at least `rate` of the last `window` calls failed, once half as many were made. After `cooldown_s` it
    lets one call at a time through: it closes when three in a row went well, and opens again when one fails. Calls that
    began before such a change are not heard any more.
    """

    def __init__(
        self,
        *,
        window: int = 20,
        rate: float = 0.5,
        cooldown_s: float = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._cooldown_s, self._clock = rate, cooldown_s, clock
        self._last: deque[Reason | None] = deque(maxlen=window)
        self._least = (window + 1) // 2
        self._why = ""  # it is open; empty while it is closed
        self._leave = 1  # of the calls that are heard
        self._probing, self._passed, self._probe_at = False, 0, 0.0
        self._killed = self._revived = ""

    def allows(self) -> int | None:
        """A leave to call the model, to be handed back with how that went; None where the baseline must answer."""
        if self._killed or (self._why and self._clock() < self._probe_at):
            return None
        if self._why:
            if self._probing:  # a probe that tells nothing for so long has failed
                self._passed = 0
            self._probe_in(self._cooldown_s)
            self._probing = True
        return self._leave

    def succeeded(self, leave: int) -> None:
        """The call gave scores in time."""
        if leave != self._leave:
            return
        if not self._why:
            self._count(None)
            return
        self._passed += 1
        self._probe_in(0)
        if self._passed == _PROBES:
            self._why = ""
            self._last.clear()

    def failed(self, leave: int, reason: Reason) -> None:
        """The call gave no scores, or none in time."""
        if leave != self._leave:
            return
        if self._why:
            self._open(f"the model was tried again, and failed ({reason})")
        else:
            self._count(reason)

    def abandoned(self, leave: int) -> None:
        """The call ended without a verdict on the model; another may be tried instead."""
        if leave == self._leave and self._why:
            self._probe_in(0)

    def kill(self, because: str, by: str) -> None:
        """Let the baseline answer until it is revived, whatever happens."""
        self._killed = f"switched off by {by}: {because}"

    def revive(self, by: str) -> None:
        """Undo a kill: what it was before, it is again."""
        self._killed, self._revived = "", f", switched on again by {by}"

    @property
    def state(self) -> State:
        """What it is now."""
        if self._killed or not self._why:
            return "killed" if self._killed else "closed"
        return "half_open" if self._probing or self._clock() >= self._probe_at else "open"

    @property
    def detail(self) -> str:
        """The same as a sentence."""
        next_in_s = self._probe_at - self._clock()
        details: dict[State, str] = {
            "closed": f"the model answers{self._revived}",
            "killed": f"the baseline answers: the model was {self._killed}",
            "open": f"the baseline answers: {self._why}; it is tried again in {next_in_s:.0f} s",
            "half_open": f"the baseline answers: {self._why}; {self._passed} of {_PROBES} new tries went well",
        }
        return details[self.state]

    def _count(self, reason: Reason | None) -> None:
        self._last.append(reason)
        seen = len(self._last)
        failures = seen - self._last.count(None)
        if seen >= self._least and failures / seen >= self._rate:
            reasons = ", ".join(sorted(set(filter(None, self._last))))
            self._open(f"{failures} of the model's last {seen} calls failed ({reasons})")

    def _open(self, why: str) -> None:
        self._why, self._passed = why, 0
        self._probe_in(self._cooldown_s)

    def _probe_in(self, seconds: float) -> None:
        self._leave += 1
        self._probing, self._probe_at = False, self._clock() + seconds


def check_scores(scores: np.ndarray, contract: Mapping[str, Any]) -> Reason | None:
    """What is wrong with a model's scores [n, k], if anything: each is finite; a probability lies in [0, 1], to the
    rounding of doubles, and those of several classes add up to 1."""
    single = scores.size == 1  # numpy takes ten times as long to look at one
    least = scores.item() if single else np.minimum.reduce(scores, axis=None)
    most = least if single else np.maximum.reduce(scores, axis=None)
    if not (isfinite(least) and isfinite(most)):  # NaN is the least and the most of all that hold one
        return "not_finite"
    if contract["task"] == "regression":
        return None
    within = least >= -TOLERANCE and most <= 1 + TOLERANCE
    if within and contract["task"] == "multiclass":
        within = np.maximum.reduce(np.abs(np.add.reduce(scores, axis=1) - 1)) <= _SUM_TOLERANCE
    return None if within else "out_of_range"


class _Means(TypedDict):
    keys: list[str]
    overall: list[float]
    groups: dict[str, list[float]]
    threshold: NotRequired[Annotated[float, msgspec.Meta(ge=0, le=1)]]


class _Baselines(TypedDict):
    simple: _Means


class Fallback:
    """A bundle's simple baseline, which answers where the model may not, with the `threshold` of its own."""

    def __init__(self, path: Path, scorer: Scorer) -> None:
        """Read baseline.json; InputError where it is not what training writes for the scorer's contract."""
        try:
            self._simple = msgspec.json.decode(path.read_bytes(), type=_Baselines)["simple"]
            self._check(scorer.contract)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected the JSON that training writes, got another ({error}); pull it again (`dvc pull`), "
                "or train again (`dvc repro`)"
            ) from None
        self._features = scorer.features
        self.threshold = self._simple.get("threshold")

    def score(self, columns: Columns) -> np.ndarray:
        """Scores [n, k]: the mean of each row's group; where that cannot be told, the mean of all."""
        try:
            return baseline_scores(self._simple, self._features(columns))
        except Exception:  # features that fail are one of the ways in which a model does
            return np.tile(self._simple["overall"], (len(next(iter(columns.values()))), 1))

    def _check(self, contract: Mapping[str, Any]) -> None:
        means = np.array([self._simple["overall"], *self._simple["groups"].values()])
        classes = len(contract["classes"] or [contract["target"]])
        if means.shape[1] != classes or check_scores(means, contract):
            raise ValueError(f"wanted {classes} scores for each group")
        if unknown := set(self._simple["keys"]) - {feature["name"] for feature in contract["features"]}:
            raise ValueError(f"no such features: {', '.join(sorted(unknown))}")
        if ("threshold" in self._simple) != (contract["task"] == "binary"):
            raise ValueError(f"a {contract['task']} target and a threshold, or none of both")
