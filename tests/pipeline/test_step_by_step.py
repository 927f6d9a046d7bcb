import json

import numpy as np
import pytest

from pipeline.bundle import golden_positions
from pipeline.prepared import as_arrays, features_of
from pipeline.scoring import encode, parse_columns
from tests.synthetic import TASKS, make_bundle, make_scorer, splits


@pytest.mark.parametrize("task", TASKS)
def test_one_score_can_be_followed_from_the_raw_values(task: str) -> None:
    scorer, golden = make_scorer(task), json.loads(make_bundle(task)["golden.json"])
    number, validation = 17, splits(task)["validation"]
    sent = {name: values[number : number + 1] for name, values in golden["rows"].items()}
    columns = parse_columns(sent, scorer.contract["inputs"])
    made = scorer.features(columns)
    prepared = as_arrays(features_of(validation.iloc[golden_positions(len(validation))[number:][:1]]))
    assert list(made) == list(prepared)
    for name, values in prepared.items():
        np.testing.assert_array_equal(made[name], values)
    matrix = encode(made, scorer.spec)
    for position, feature in enumerate(scorer.spec):
        value = prepared[feature.name][0]
        if feature.codes is not None:
            categories = [*feature.codes]
            value = categories.index(value) if value in categories else np.nan
        np.testing.assert_array_equal(matrix[0, position], value)
    score = scorer.model(matrix)
    np.testing.assert_allclose(score[0], golden["scores"][number], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(score, scorer.score(columns))
