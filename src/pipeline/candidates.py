"""What a candidate estimator is. Change here to give the problem's models something more to know."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sklearn.base import BaseEstimator

from pipeline.contract import Task
from pipeline.scoring import Feature

if TYPE_CHECKING:
    import optuna  # only the search needs it

Settings = Mapping[str, bool | int | float | str]


class Candidate(NamedTuple):
    """A kind of model: its search space, and how to build one from what was found.

    `build` gets the settings, the model's inputs in order (a number may be NaN; a category is a code, NaN where
    missing or unseen), the task and a seed, and returns an unfitted scikit-learn estimator.
    """

    space: Callable[["optuna.Trial"], Settings]
    build: Callable[[Settings, Sequence[Feature], Task, int], BaseEstimator]


def positions(spec: Sequence[Feature], *, categorical: bool) -> list[int]:
    """Where in the model's input the categories stand, or the numbers."""
    return [i for i, feature in enumerate(spec) if (feature.codes is not None) == categorical]
