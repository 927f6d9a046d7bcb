import pandas as pd

from pipeline.plots import curves_plot, trials_plot

TRIALS = pd.DataFrame({"number": [0, 1, 2], "candidate": ["a_b", "c", "c"], "score": [0.3, 0.2, 0.25]})


def test_the_plot_is_the_same_for_the_same_trials_and_names_its_candidates() -> None:
    picture = trials_plot(TRIALS, "log_loss")
    assert picture == trials_plot(TRIALS, "log_loss")
    for text in (b"a b", b"best so far", b"log loss (lower is better)"):
        assert text in picture


def test_other_trials_give_another_plot() -> None:
    assert trials_plot(TRIALS, "log_loss") != trials_plot(TRIALS.assign(score=0.1), "log_loss")


def test_curves_stand_side_by_side_without_the_confusion_matrix() -> None:
    line = pd.DataFrame({"false_alarm_rate": [0.0, 0.5, 1.0], "hit_rate": [0.0, 0.9, 1.0]})
    curves = {"roc": line, "cost": line, "confusion": line}
    picture = curves_plot(curves)
    assert picture == curves_plot(curves)
    assert picture.count(b"hit rate") == 2
    assert b"confusion" not in picture
