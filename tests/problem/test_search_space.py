import optuna
import pytest

from pipeline.scoring import Feature
from problem.models import CANDIDATES
from problem.schema import CONTRACT

SPEC = [Feature("distance_mi"), Feature("carrier", ("AA", "UA"))]


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_setting_is_searched_and_reaches_the_estimator(name: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [CANDIDATES[name].space(study.ask()) for _ in range(20)]
    assert drawn[0]
    for key in drawn[0]:
        assert len({settings[key] for settings in drawn}) > 1, f"{key} has one value alone"
    for settings in drawn[:3]:
        built = CANDIDATES[name].build(settings, SPEC, CONTRACT.task, 0).get_params()
        for key, value in settings.items():
            assert value in [built[at] for at in built if at.rpartition("__")[2] == key], key
