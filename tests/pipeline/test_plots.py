import pandas as pd

from pipeline.plots import trials_plot

TRIALS = pd.DataFrame({"number": [0, 1, 2], "candidate": ["a_b", "c", "c"], "score": [0.3, 0.2, 0.25]})


def test_the_plot_is_the_same_for_the_same_trials_and_names_its_candidates() -> None:
    picture = trials_plot(TRIALS, "log_loss")
    assert picture == trials_plot(TRIALS, "log_loss")
    for text in (b"a b", b"best so far", b"log loss (lower is better)"):
        assert text in picture


def test_other_trials_give_another_plot() -> None:
    assert trials_plot(TRIALS, "log_loss") != trials_plot(TRIALS.assign(score=0.1), "log_loss")
