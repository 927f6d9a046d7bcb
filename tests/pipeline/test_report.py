import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import gates
from pipeline.duel import Duel
from pipeline.evaluate import Evaluation
from pipeline.pictures import report_plots
from pipeline.report import Release, at, card, cell, demoted, page, reach, report_files, short, summary
from pipeline.resamples import Estimate
from tests.synthetic import TASKS, evaluate_params, evaluation, make_bundle, make_contract, make_evaluation, prepared

PROBLEM = (
    "# Machines\n\nWhat stands before the first section.\n\n## Who owns it\n\nThe workshop.\n\n### In its absence\n"
)
LINEAGE = {
    "files": {"prepared/train.parquet": "11aa", "requirements.lock": "22bb"},
    "params": {"seed": 1, "baseline_keys": ["site"]},
    "code": "33cc",
    "rows": {"train": {"rows": 296, "first": "2020-01-01", "last": "2020-03-31"}},
    "platform": {"python": "3.11"},
}


def verdict(found: Evaluation, task: str = "binary", **changed: Any) -> dict[str, Any]:
    """The verdicts on an evaluation; `changed` holds fields by gate, or None to leave the gate out. So few rows make no
    slice of two classes that can be judged."""
    changed = {"slices": {"passed": True}} | changed
    held = gates.judge(gates.on_evaluation(lambda: found, evaluate_params(task).limits), {})
    kept = [each._replace(**changed.get(each.gate, {})) for each in held if changed.get(each.gate, {}) is not None]
    return gates.as_json(kept, gates.names(gates.EVALUATION), "f1" * 32)


@cache
def pictures(task: str) -> dict[str, str]:
    return report_plots(evaluation(task), json.loads(make_bundle(task)["contract.json"]))


def release(task: str = "binary", **changed: Any) -> Release:
    """All that a report of the made bundle is made from."""
    found = changed.get("evaluation") or evaluation(task)
    past = len(found.tables["waiting"]) > 0
    made = Release(
        evaluation=found,
        plots={k: v for k, v in pictures(task).items() if past or k not in ("waiting", "backtest")},
        verdict=verdict(found, task),
        contract=make_contract(task),
        described=json.loads(make_bundle(task)["contract.json"]),
        lineage=LINEAGE,
        quality=prepared(task).quality,
        problem=PROBLEM,
        name="Machines",
    )
    return made._replace(**changed)


def read(content: bytes) -> str:
    """A page as words alone."""
    text = re.sub(r"<(style|svg)\b.*?</\1>", "", content.decode(), flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    return re.sub(r" (?=[.,:;)])|(?<=\() ", "", text)


def duelled(gain: Estimate) -> Duel:
    return Duel("model/v3", "roc_auc", 120, gain, {"challenger": {"roc_auc": 0.83}, "champion": {"roc_auc": 0.81}})


@pytest.mark.parametrize("task", TASKS)
def test_a_release_has_its_files_and_they_are_the_same_in_another_folder(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    found = evaluation(task)
    files, here = report_files(release(task)), Path.cwd()
    monkeypatch.chdir(tmp_path)
    assert report_files(release(task)) == files
    assert set(files) == {
        *("metrics.json", "gates.json", "summary.md", "index.html", "card.md", "tables/single_features.csv"),
        *(f"tables/{name}.csv" for name in found.tables),
        *(f"curves/{name}.csv" for name in found.curves),
    }
    assert str(here).encode() not in b"".join(files.values())


def test_figures_and_gains_stand_in_the_metrics_and_verdicts_in_the_gates() -> None:
    files, found = report_files(release()), evaluation()
    metrics = json.loads(files["metrics.json"])
    assert list(metrics) == ["model", "simple", "naive", "no_model", "gain"]
    assert metrics["model"]["roc_auc"]["low"] == pytest.approx(found.metrics["model"]["roc_auc"].low, rel=1e-5)
    assert metrics["gain"]["simple"]["log_loss"]["value"] == pytest.approx(
        found.gains["simple"]["log_loss"].value, rel=1e-5
    )
    assert json.loads(files["gates.json"]) == verdict(found)


def test_tables_are_csv_and_single_features_stand_in_their_order() -> None:
    files = report_files(release())
    slices = pd.read_csv(io.BytesIO(files["tables/slices.csv"]))
    assert slices["roc_auc"].to_numpy() == pytest.approx(evaluation().tables["slices"]["roc_auc"].to_numpy(), rel=1e-5)
    alone = pd.read_csv(io.BytesIO(files["tables/single_features.csv"]))
    assert alone["score"].is_monotonic_decreasing
    assert set(alone["feature"]) == set(evaluation().single_features)


def test_the_summary_has_a_row_per_metric_and_says_what_intervals_rest_on() -> None:
    text = summary(evaluation(), make_contract())
    assert text.startswith("# `outcome` on 165 readings that the model never saw\n")
    assert "| metric | model | simple | naive | no model |" in text
    assert "| cost per 1,000 readings |" in text
    assert "| ROC AUC |" in text
    assert "In brackets: 90% intervals, from 100 resamples of 51 days of read_at.\n" in text


@pytest.mark.parametrize("task", TASKS)
def test_the_page_asks_for_nothing_beyond_itself_and_runs_no_script(task: str) -> None:
    text = page(release(task)).decode()
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|<script|<link(?! rel=\"icon\" href=\"data:,\")|\bsrc=|@import|\bon[a-z]+=", text)
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


@pytest.mark.parametrize("task", TASKS)
def test_the_page_can_be_read_by_those_who_do_not_see_it(task: str) -> None:
    text = page(release(task)).decode()
    assert text.count("<h1") == text.count("<main") == 1
    assert re.findall(r"<h(\d)", text)[:2] == ["1", "3"] or re.findall(r"<h(\d)", text)[0] == "1"
    assert re.findall(r"<th(?! scope=)[^e]", text) == []
    assert all("aria-label=" in tag for tag in re.findall(r"<svg[^>]*>", text))
    assert text.count('<div class="scroll" tabindex="0" role="region" aria-label=') == text.count('class="scroll"')


def test_an_airworthy_model_says_so_and_what_the_verdict_does_not_cover() -> None:
    text = read(page(release()))
    assert "airworthy All 11 gates passed." in text
    assert "This is the verdict on the bundle alone." in text
    assert "This is the verdict on the bundle alone." not in read(page(release(inspected=True)))


def test_a_grounded_model_names_the_gates_that_ground_it_and_why() -> None:
    said = verdict(evaluation(), slices={"passed": False, "reason": "site south is poor"}, floor={"passed": False})
    content = page(release(verdict=said))
    assert b'data-verdict="grounded"' in content
    assert b'class="grounded"' in content
    assert "grounded 2 of 11 gates refuse it: floor, slices." in read(content)
    assert "slices failed: site south is poor." in read(content)
    assert "**Grounded.**\nRefused by: floor, slices.\n" in card(release(verdict=said)).decode()


def test_a_waived_gate_is_shown_in_red_with_its_reason_wherever_the_verdict_is() -> None:
    why = "The workshop | accepts <it> until March."
    content = page(release(verdict=verdict(evaluation(), groups={"passed": False, "waived": why})))
    assert "10 of 11 gates passed; groups waived." in read(content)
    assert content.decode().count("The workshop | accepts &lt;it&gt; until March.") == 2
    assert b'<li class="waived">' in content
    text = card(release(verdict=verdict(evaluation(), groups={"passed": False, "waived": why}))).decode()
    assert "10 of 11 gates passed, the others are waived.\n" in text
    assert "| **failed**, **waived**: The workshop \\| accepts &lt;it> until March. |" in text
    assert f"- **Waived: groups.** {why}\n" in text


def test_a_gate_that_is_missing_grounds_by_its_absence() -> None:
    said = verdict(evaluation(), floor=None, slices=None, groups=None)
    assert "grounded The list of gates is not the one that was expected." in read(page(release(verdict=said)))
    assert (
        "**Grounded.**\nThe list of gates is not the one that was expected.\n" in card(release(verdict=said)).decode()
    )


def test_a_gate_without_a_figure_shows_none() -> None:
    said = verdict(
        evaluation(), parity={"passed": False, "value": None, "bound": None, "limit": None, "reason": "torn"}
    )
    assert "parity ✕ failed none torn" in read(page(release(verdict=said)))
    assert "| parity | **failed** | n/a |  n/a | torn |" in card(release(verdict=said)).decode()


def test_the_duel_stands_beside_the_figures() -> None:
    fought = duelled(Estimate(0.02, -0.01, 0.04))
    text = read(page(release(duel=fought, inspected=True)))
    assert "Against model/v3, on 120 readings that neither has seen: ROC AUC better by 0.020 (-0.010 to 0.040)" in text
    assert "no model champion challenger there gain over simple" in text
    everyone = fought._replace(rows=evaluation().rows)
    assert "no model champion gain over simple" in read(page(release(duel=everyone, inspected=True)))
    assert "champion 0.810" in text
    assert "better by 0.020 (-0.010 to 0.040)." in card(release(duel=fought)).decode()
    first = gates.Verdict("champion", True, 0.0, "at least", -0.01, "first: no champion has flown yet", None)
    held = verdict(evaluation())
    said = held | {"gates": [*held["gates"], first._asdict()]}
    assert "champion passed: first: no champion has flown yet." in read(page(release(verdict=said, inspected=True)))


def test_slices_stand_worst_first_and_those_below_the_limit_are_marked() -> None:
    found = evaluation()
    poor = found.tables["slices"].assign(judged=True)
    poor.loc[0, "roc_auc_high"] = 0.4
    content = page(release(evaluation=found._replace(tables=found.tables | {"slices": poor}))).decode()
    rows = re.findall(
        r'<tr( class="weak")?>\s*<th scope="row">([^<]*)</th>\s*<td class="n"><data data-figure="slices', content
    )
    assert [name for _, name in rows] == list(poor["slice"])
    assert [bool(weak) for weak, _ in rows].index(False) == 1


def test_where_less_is_better_a_slice_is_weak_above_the_limit() -> None:
    found = evaluation("regression")
    poor = found.tables["slices"].copy()
    poor.loc[0, ["judged", "rmse_low"]] = [True, 3.0]
    content = page(release("regression", evaluation=found._replace(tables=found.tables | {"slices": poor})))
    section = content.partition(b'id="slices"')[2].partition(b"</section>")[0]
    assert section.count(b'<tr class="weak">') == 1


def test_sections_without_content_say_so() -> None:
    contract = make_contract(timed=False)
    plain = tuple(
        replace(c, roles=tuple(set(c.roles) - {"slice", "sensitive"}) or ("ignored",)) for c in contract.columns
    )
    bare = replace(contract, columns=plain)
    found = make_evaluation(contract=bare)
    given = {
        "evaluation": found._replace(tables=found.tables | {"simpler": found.tables["simpler"].head(0)}),
        "contract": bare,
        "lineage": {},
        "quality": prepared().quality | {"quarantined": {"2020-01": {"cycles: too_many": 3}}},
    }
    text = read(page(release(**given)))
    for said in (
        "No column is marked as a slice.",
        "No column is marked sensitive.",
        "No column tells the time: how the model ages cannot be known.",
        "No simpler candidate was tried than the one that was chosen.",
        "2020-01, cycles: too many: 3",
        "3 quarantined.",
    ):
        assert said in text
    told = card(release(**given)).decode()
    for said in (
        "No slice has rows enough",
        "No column is marked sensitive.",
        "No column tells the time",
        "3 are quar",
    ):
        assert said in told


def test_one_period_alone_has_no_past_and_too_few_rows_are_not_judged() -> None:
    found = evaluation()
    empty = {name: found.tables[name].head(0) for name in ("waiting", "backtest")}
    unjudged = found.tables["slices"].assign(judged=False, roc_auc=np.nan, roc_auc_low=np.nan, roc_auc_high=np.nan)
    found = found._replace(tables=found.tables | empty | {"slices": unjudged})
    text = read(page(release(evaluation=found)))
    assert "One period alone: there is nothing to look back on." in text
    assert f"{len(unjudged)} with too few readings, or too few of one outcome, to be judged" in text
    assert "n/a to n/a" in text
    assert "No slice has rows enough to be judged." in card(release(evaluation=found)).decode()


def test_what_breaks_a_score_is_said() -> None:
    found = evaluation()
    broken = found.tables["stability"].assign(changed_decisions=np.nan, mean_move=np.nan, largest_move=np.nan)
    found = found._replace(tables=found.tables | {"stability": broken})
    assert "values gone missing 10% of values no score" in read(page(release(evaluation=found)))
    assert "- Values gone missing (0.1): breaks some scores.\n" in card(release(evaluation=found)).decode()


def test_features_that_help_nothing_or_harm_are_named() -> None:
    found = evaluation()
    table = found.tables["importance"].assign(says=["helps", "harms", *["helps nothing"] * 4])
    listed = list(table["feature"])
    given = release(evaluation=found._replace(tables=found.tables | {"importance": table}))
    text = read(page(given))
    assert "1 of 6 features surely help" in text
    assert f"Shuffled, these make it better: {listed[1]}." in text
    assert f"alone: {', '.join(listed[2:])}." in text
    assert f"or harm: `{'`, `'.join(listed[1:])}`." in card(given).decode()
    helping = release(evaluation=found._replace(tables=found.tables | {"importance": table.assign(says="helps")}))
    assert "- Every feature helps.\n" in card(helping).decode()


def test_a_simpler_model_that_would_do_is_named() -> None:
    found = evaluation()
    table = found.tables["simpler"].assign(as_good=True)
    given = release(evaluation=found._replace(tables=found.tables | {"simpler": table}))
    assert "linear would do: it is as good, within the margin." in read(page(given))
    assert "- linear is simpler, and as good within the margin.\n" in card(given).decode()


def test_text_from_the_problem_is_never_markup() -> None:
    contract = make_contract()
    odd = tuple(replace(c, description="a | b <b>bold</b>") for c in contract.columns)
    given = release(contract=replace(contract, columns=odd), name="<i>Machines</i>")
    assert b"<b>bold" not in page(given)
    assert b"&lt;i&gt;Machines" in page(given)
    assert "a \\| b &lt;b>bold" in card(given).decode()


@pytest.mark.parametrize("task", TASKS)
def test_every_table_of_the_card_has_as_many_cells_in_each_row(task: str) -> None:
    text = card(release(task)).decode()
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) >= 7
    for block in blocks:
        rows = block.strip().split("\n")
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert set(rows[1]) <= set("|-: ")
    assert "\n\n\n" not in text


def test_the_card_takes_over_the_problem_and_holds_the_dictionary_and_the_lineage() -> None:
    text = card(release()).decode()
    assert "## Intended use\n\n### Who owns it\n\nThe workshop.\n\n#### In its absence\n" in text
    assert "What stands before" not in text
    assert "| `temperature` | number | C | -50 to 150 | before | 19.2% | Its temperature (feature) |" in text
    assert "| `site` | category |  | north, south | before |" in text
    assert "| `maker` | category |  | open | before |" in text
    assert "| `repair_cost` | number |  |  | after |" in text
    assert "| train | 296 | 2020-01-01T00:00:00 |" in text
    assert "| parameters | seed 1; baseline keys ['site'] |" in text
    assert "`11aa`" in text


def test_a_text_without_sections_is_taken_over_whole() -> None:
    assert demoted("One sentence.\n") == "One sentence."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, "n/a"), (float("nan"), "n/a"), (0.0, "0"), (0.67378, "0.674"), (-0.0123, "-0.012"), (1.3345, "1.335")],
        *[(12.34, "12.3"), (438.9, "439"), (28635.0, "28,635"), (0.00058, "0.0006"), (5.55e-17, "5.6e-17")],
    ],
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(pd.Timestamp("2020-01-02 03:04"), "2020-01-02 03:04"), (1992.0, "1992"), (np.nan, ""), ("a", "a"), (7, "7")],
)
def test_cells_hold_what_the_file_holds(value: Any, text: str) -> None:
    assert cell(value) == text


def test_a_scale_holds_its_values_with_some_room_and_places_them() -> None:
    assert reach([1.0, np.nan, 2.0]) == pytest.approx((0.96, 2.04))
    assert reach([3.0]) == pytest.approx((2.96, 3.04))
    assert reach([]) == (0, 1)
    places = [at(value, (0, 4)) for value in (1, -1, 9, np.nan)]
    assert places == ["25.00%", "0.00%", "100.00%", "0.00%"]
