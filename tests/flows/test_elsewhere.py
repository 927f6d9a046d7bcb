"""A bundle that says it was trained on another platform: its bytes cannot be compared, its figures and scores are."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from flows.evaluate import evaluated, read_params, released
from flows.inspect import changed_reports, reproduced
from pipeline import gates
from tests.problem.workshop import Workshop, intact, workshop

__all__ = ["intact", "workshop"]  # fixtures


@pytest.fixture
def trained(workshop: Workshop, tmp_path: Path) -> Path:
    """What training here gives; the bundle on disk names another processor."""
    shutil.copytree(workshop["bundle"], tmp_path / "trained")
    workshop.edit_json("bundle/lineage.json", lambda told: told["platform"].update(kernels="Another"))
    return tmp_path / "trained"


def held(workshop: Workshop, trained: Path) -> gates.Verdict:
    with chdir(workshop.path):
        return gates.judge({"reproducible": lambda: reproduced(Path("prepared"), trained)}, {})[0]


def told(workshop: Workshop, trained: Path) -> list[str]:
    with chdir(workshop.path):
        params = read_params()
        return changed_reports(released(evaluated(params)), params, trained)


def test_the_same_model_under_other_kernels_is_reproduced(workshop: Workshop, trained: Path) -> None:
    found = held(workshop, trained)
    assert (found.passed, found.value) == (True, 0)


def test_a_figure_that_rounds_otherwise_is_the_same(workshop: Workshop, trained: Path) -> None:
    def round_otherwise(rows: Any) -> None:
        rows["scores"][0][0] *= 1 + 1e-12

    workshop.edit_json("bundle/golden.json", round_otherwise)
    assert held(workshop, trained).passed


def test_a_threshold_moved_is_no_rounding(workshop: Workshop, trained: Path) -> None:
    def move(contract: Any) -> None:
        contract["threshold"] += 0.05

    workshop.edit_json("bundle/contract.json", move)
    found = held(workshop, trained)
    assert not found.passed
    assert "contract.json" in found.reason


def test_another_model_is_told_by_its_scores(workshop: Workshop, trained: Path) -> None:
    workshop.edit_json("tuning/best.json", lambda best: best["params"].update(max_iter=best["params"]["max_iter"] - 1))
    workshop.run(".venv/bin/python", "-m", "flows.train", str(trained))
    for name in ("golden.json", "reference.json", "baseline.json", "contract.json", "lineage.json"):
        shutil.copy(workshop["bundle"] / name, trained / name)  # all figures forged, but for the platform
    edit_json_at(trained / "lineage.json", "Mine")
    found = held(workshop, trained)
    assert not found.passed
    assert found.value is not None
    assert found.value > 1e-6


def test_reports_of_another_platform_may_round_figures_and_draw_otherwise(workshop: Workshop, trained: Path) -> None:
    workshop.stage("evaluate")

    def round_otherwise(metrics: Any) -> None:
        metrics["model"]["roc_auc"]["value"] *= 1 + 1e-9

    workshop.edit_json("reports/metrics.json", round_otherwise)
    workshop.edit("reports/index.html", lambda page: page.replace("M 0 240", "M 0.01 240", 1))
    assert told(workshop, trained) == []


def test_reports_of_another_platform_may_not_say_something_else(workshop: Workshop, trained: Path) -> None:
    workshop.stage("evaluate")

    def please(metrics: Any) -> None:
        metrics["model"]["roc_auc"]["value"] += 0.001

    workshop.edit_json("reports/metrics.json", please)
    workshop.edit("reports/card.md", lambda card: card.replace("Limits", "Merits", 1))
    found = told(workshop, trained)
    assert len(found) == 2
    assert found[0].startswith("reports/metrics.json")
    assert found[1].startswith("reports/card.md")


def edit_json_at(path: Path, kernels: str) -> None:
    lineage = json.loads(path.read_text())
    lineage["platform"]["kernels"] = kernels
    path.unlink()
    path.write_text(json.dumps(lineage))
