"""What the model goes by, and where it is most wrong. Change here to explain it otherwise."""

import numpy as np
import pandas as pd

from pipeline.contract import Contract
from pipeline.metrics import Judged, draws, gain
from pipeline.resamples import Blocks, Bootstrap, Estimate, Floats, estimate, times_drawn
from pipeline.scoring import Feature, Model

_SAMPLE = 4000  # rows whose features are shuffled
_REPEATS = 3  # shuffles of each feature
_EXPLAINED = 200  # rows that get SHAP values
_ORDERS = 8  # in which features are revealed, and as many reversed: antithetic, so the error falls faster
_WORST = 10


def importance(
    matrix: Floats,
    judged: Judged,
    model: Model,
    spec: tuple[Feature, ...],
    *,
    metric: str,
    blocks: Blocks,
    how: Bootstrap,
) -> pd.DataFrame:
    """Permutation importance (Breiman, 2001): how much worse the metric gets where a feature is shuffled, with its
    interval. A row per feature, the most important first; `says` names those that help nothing, or harm. NaN where no
    shuffle leaves the metric defined."""
    rows = np.arange(0, len(matrix), max(1, len(matrix) // _SAMPLE))
    inside, drawn, times = matrix[rows], blocks[rows], times_drawn(blocks, how)
    random = np.random.default_rng(how.seed)
    with_all = draws(judged.at(rows), drawn, times, only=[metric])[metric]
    found = []
    for position, feature in enumerate(spec):
        losses = []
        for _ in range(_REPEATS):
            shuffled = inside.copy()
            shuffled[:, position] = random.permutation(inside[:, position])
            worse = judged.at(rows)._replace(scores=model(shuffled))
            if (without := draws(worse, drawn, times, only=[metric]).get(metric)) is not None:
                losses.append(gain(metric, with_all, without))
        loss = estimate(np.mean(losses, axis=0), how.confidence) if losses else Estimate(np.nan, np.nan, np.nan)
        says = "helps" if loss.low > 0 else "harms" if loss.high < 0 else "helps nothing"
        found.append((feature.name, *loss, says))
    table = pd.DataFrame(found, columns=["feature", "importance", "low", "high", "says"])
    return table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def shap_values(matrix: Floats, model: Model, seed: int) -> tuple[Floats, Floats]:
    """SHAP values [m, d] of a sample of the rows, and that sample [m, d]: how far each feature moves the score (of the
    called class, for several) from that of other rows of the test.

    By sampling orders in which features are revealed (Strumbelj and Kononenko, 2014), so for every kind of model.
    """
    random = np.random.default_rng(seed)
    rows = matrix[:: max(1, len(matrix) // _EXPLAINED)][:_EXPLAINED]
    count, width = rows.shape
    called = model(rows).argmax(axis=1)
    values = np.zeros((count, width))
    for _ in range(_ORDERS):
        order, others = random.permutation(width), matrix[random.integers(0, len(matrix), count)]
        for revealed in (order, order[::-1]):
            steps = np.repeat(others[None], width + 1, axis=0)
            for step, feature in enumerate(revealed, start=1):
                steps[step:, :, feature] = rows[:, feature]
            scores = model(steps.reshape(-1, width)).reshape(width + 1, count, -1)
            values[:, revealed] += np.diff(scores[:, np.arange(count), called], axis=0).T
    return values / (2 * _ORDERS), rows


def worst_errors(test: pd.DataFrame, judged: Judged, contract: Contract, classes: list[str] | None) -> pd.DataFrame:
    """The rows that the model was most wrong about: keys and inputs but no entity, what was true, what was said."""
    truth, scores = judged.truth, judged.scores
    if classes is not None:
        said = scores[np.arange(len(truth)), truth.astype("int64")]
        wrong, named = 1 - said, np.array(classes)[truth.astype("int64")]
    else:
        said, named = scores[:, 0], truth
        wrong = np.abs(truth - said)
    rows = np.argsort(-wrong, kind="stable")[:_WORST]
    listed = [*contract.having("key"), *contract.inputs]
    names = dict.fromkeys(column.name for column in listed if "entity" not in column.roles)
    shown = test.iloc[rows][list(names)].reset_index(drop=True)
    return shown.assign(**{contract.target.name: named[rows], "model_score": said[rows]})
