import re
from functools import cache

import numpy as np
import pytest

from pipeline.evaluate import Evaluation
from pipeline.pictures import report_plots, words
from tests.synthetic import TASKS, evaluation, make_contract, make_evaluation, make_scorer

ALWAYS = {"importance", "shap", "waiting", "backtest"}
PICTURES = {
    "binary": ALWAYS | {"roc", "precision_recall", "cost", "calibration"},
    "multiclass": ALWAYS | {"calibration"},
    "regression": ALWAYS | {"residuals"},
}


def drawn(found: Evaluation) -> dict[str, str]:
    return report_plots(found, make_scorer().contract)


@cache
def usual(task: str = "binary") -> dict[str, str]:
    return report_plots(evaluation(task), make_scorer(task).contract)


def texts(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def strokes(picture: str, colour: str) -> int:
    """How many dots of a beeswarm have a colour."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*stroke: var\(--{colour}\); stroke-width: 3.6', picture)
    return sum(path.count("M") for path in paths)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_pictures_and_they_are_the_same_twice(task: str) -> None:
    assert set(usual(task)) == PICTURES[task]
    assert report_plots(evaluation(task), make_scorer(task).contract) == usual(task)


def test_a_picture_takes_colours_and_font_from_the_page_and_text_stays_text() -> None:
    for name, picture in usual().items():
        assert picture.startswith(f'<svg role="img" aria-label="{words(name)}" viewBox="0 0 330 ')
        assert "var(--accent)" in picture or name == "shap"
        assert not re.search(r"#[0-9a-f]{6}|font-family|<style|<metadata|http", picture)
    assert {"recall", "precision", "this model", "chance"} <= set(texts(usual()["precision_recall"]))


def test_ids_do_not_clash_on_one_page_and_references_stay_inside_their_picture() -> None:
    everything = usual()
    ids = [each for picture in everything.values() for each in re.findall(r'\bid="([^"]+)"', picture)]
    assert len(ids) == len(set(ids))
    for name, picture in everything.items():
        referred = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', picture)
        assert {one or other for one, other in referred} <= {each for each in ids if each.startswith(f"{name}-")}


def test_a_model_that_warns_of_nothing_is_drawn_too() -> None:
    found = evaluation()
    model = {name: each for name, each in found.metrics["model"].items() if name != "precision"}
    assert "recall" in texts(drawn(found._replace(metrics=found.metrics | {"model": model}))["precision_recall"])


def test_features_are_drawn_from_the_most_important_down_with_long_names_cut() -> None:
    found = evaluation()
    long = "a_name_that_is_longer_than_a_picture_can_hold"
    table = found.tables["importance"].replace({"feature": {"cycles": long}})
    described = make_scorer().contract
    features = [feature | {"name": feature["name"].replace("cycles", long)} for feature in described["features"]]
    both = report_plots(found._replace(tables=found.tables | {"importance": table}), described | {"features": features})
    expected = [name if name != long else f"{long[:26]}…" for name in table["feature"]]
    assert [text for text in texts(both["importance"]) if text in expected] == expected
    assert [text for text in texts(both["shap"]) if text in expected] == expected


def test_a_beeswarm_has_a_dot_per_row_and_shades_only_what_has_an_order() -> None:
    found = evaluation()
    names = [feature["name"] for feature in make_scorer().contract["features"]]
    values, rows = found.shap
    picture = usual()["shap"]
    shaded = sum(strokes(picture, f"shade-{number}") for number in range(5))
    categories = {"site", "maker"}
    missing = np.isnan(rows[:, [name not in categories for name in names]]).sum()
    assert strokes(picture, "faint") == 2 * len(rows) + missing > 2 * len(rows)
    assert shaded + strokes(picture, "faint") == values.size


@pytest.mark.parametrize(("days", "side"), [(31.0, "start"), (150.0, "end")])
def test_the_age_of_this_model_is_written_beside_its_line_where_there_is_room(days: float, side: str) -> None:
    picture = drawn(evaluation()._replace(age_days=days))["waiting"]
    assert re.search(rf"text-anchor: {side}[^>]*>\s*this model", picture) or side == "start"
    assert re.search(r">\s*this model\s*<", picture)


def test_without_time_there_is_nothing_to_draw_of_waiting() -> None:
    found = make_evaluation(contract=make_contract(timed=False))
    assert set(drawn(found)) == PICTURES["binary"] - {"waiting", "backtest"}


def test_names_are_spelt_as_people_read_them() -> None:
    assert words("macro_roc_auc") == "macro ROC AUC"
    assert words("departure_minute") == "departure minute"
