"""Acts on what a model learns from, and on what it is judged by."""

import json
from contextlib import chdir
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import flows.preprocess
from pipeline.canonical import json_bytes, parquet_bytes, sha256
from pipeline.contract import Contract, column
from pipeline.errors import InputError
from pipeline.featurize import raw_columns
from pipeline.scoring import Scorer
from problem.features import features
from problem.schema import CONTRACT, Flights
from problem.source import read
from tests.problem.workshop import KEPT, Workshop

TARGET = "is_late"


def rewrite_data(workshop: Workshop, change: Any) -> None:
    """Put other raw tables in the place of those ingested, with a manifest that agrees."""
    manifest = json.loads(workshop["data/manifest.json"].read_text())
    for period, entry in manifest["periods"].items():
        path = workshop[f"data/{period}.parquet"]
        content = parquet_bytes(change(period, pd.read_parquet(path)))
        path.unlink()
        path.write_bytes(content)
        entry["sha256"] = sha256(content)
    workshop["data/manifest.json"].unlink()
    workshop["data/manifest.json"].write_bytes(json_bytes(manifest))


def test_a_leaking_column_under_a_new_name(
    workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Renamed(Flights):
        """One row per flight, with a column that is said to be known before."""

        slot_shift: float = column("Shift of the slot", unit="min", roles=["feature"], nullable=True)

    def with_shift(_period: str, rows: pd.DataFrame) -> pd.DataFrame:
        honest = pd.Series(np.random.default_rng(0).normal(size=len(rows)), rows.index)
        return rows.assign(slot_shift=rows["arr_delay"] if sabotaged else honest)

    def more_features(columns: Any) -> dict[str, np.ndarray]:
        return features(columns) | {"slot_shift": columns["slot_shift"]}

    contract = Contract.of(Renamed, noun="flights", lead=CONTRACT.lead)
    for module in ("preprocess", "train", "evaluate"):
        monkeypatch.setattr(f"flows.{module}.CONTRACT", contract)
        monkeypatch.setattr(f"flows.{module}.features", more_features)
    monkeypatch.setattr("flows.tune.CONTRACT", contract)
    rewrite_data(workshop, with_shift)
    if sabotaged:
        with pytest.raises(InputError, match="feature 'slot_shift' alone scores"):
            workshop.stage("preprocess")
        workshop.edit("params.yaml", lambda text: text.replace("suspicious_score: 0.99", "suspicious_score: 1.0"))
    for stage in ("preprocess", "train"):
        workshop.stage(stage)
    grounded = workshop.judged(patched=True)
    assert set(grounded) == ({"leak"} if sabotaged else set())
    assert not sabotaged or "'slot_shift'" in grounded["leak"]["reason"]


def test_a_feature_from_the_future(workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    late = replace(CONTRACT, lead=timedelta(hours=1)) if sabotaged else CONTRACT

    def an_hour_late(period: str, _rows: pd.DataFrame) -> pd.DataFrame:
        rows = read(period, late)
        return rows[rows["flight"] % KEPT == 0].reset_index(drop=True)

    rewrite_data(workshop, an_hour_late)
    if sabotaged:
        with pytest.raises(InputError, match="observed at least 2:00:00 before scheduled_departure_at"):
            workshop.stage("preprocess")
        monkeypatch.setattr(flows.preprocess, "CONTRACT", late)
    for stage in ("preprocess", "train"):
        workshop.stage(stage)
    grounded = workshop.judged()
    assert set(grounded) == ({"leak"} if sabotaged else set())
    assert not sabotaged or "observed at least 2:00:00 before scheduled_departure_at" in grounded["leak"]["reason"]


def test_shuffled_labels(workshop: Workshop, sabotaged: bool) -> None:
    with workshop.rows("train") as rows:
        order = np.random.default_rng(0).permutation(len(rows)) if sabotaged else np.arange(len(rows))
        rows[TARGET] = rows[TARGET].to_numpy()[order]
    workshop.stage("train")
    grounded = workshop.judged()
    nothing_learned = {"floor", "beats_naive", "beats_simple"} if sabotaged else set()
    by_chance = {"slices", "calibration"} if sabotaged else set()
    assert nothing_learned <= set(grounded) <= nothing_learned | by_chance


def test_target_inverted(workshop: Workshop, sabotaged: bool) -> None:
    with workshop.rows("test") as rows:
        rows[TARGET] = 1 - rows[TARGET] if sabotaged else rows[TARGET]
    grounded = workshop.judged()
    expected = {"floor", "beats_naive", "beats_simple", "slices", "calibration"}
    assert set(grounded) == (expected if sabotaged else set())
    assert not sabotaged or "roc auc 0.2" in grounded["floor"]["reason"]


def test_one_slice_s_labels_poisoned(workshop: Workshop, sabotaged: bool) -> None:
    for split in ("train", "validation"):
        with workshop.rows(split) as rows:
            chosen = np.flatnonzero(rows["carrier"].eq("B6") & sabotaged)
            earliest = chosen[rows["departure_minute"].to_numpy()[chosen].argsort(kind="stable")]
            late = int(rows[TARGET].to_numpy()[chosen].sum())
            poisoned = rows[TARGET].to_numpy(copy=True)
            poisoned[chosen] = 0
            poisoned[earliest[:late]] = 1  # as many as before, but the morning's flights instead of the evening's
            rows[TARGET] = poisoned
    workshop.stage("train")
    grounded = workshop.judged()
    assert set(grounded) == ({"slices"} if sabotaged else set())
    assert not sabotaged or "the worst is carrier B6" in grounded["slices"]["reason"]


def test_a_sensitive_gap(workshop: Workshop, sabotaged: bool) -> None:
    with workshop.rows("train") as rows:
        chosen = np.flatnonzero(rows["origin"].eq("EWR"))
        order = np.random.default_rng(0).permutation(chosen) if sabotaged else chosen
        shuffled = rows[TARGET].to_numpy(copy=True)
        shuffled[chosen] = shuffled[order]  # one airport's passengers are warned by its rate alone: nearly all of them
        rows[TARGET] = shuffled
    workshop.stage("train")
    grounded = workshop.judged()
    assert set(grounded) == ({"groups"} if sabotaged else set())
    assert not sabotaged or grounded["groups"]["reason"].startswith("origin, false_positive_rate")


def test_a_test_period_with_no_rows(workshop: Workshop, sabotaged: bool) -> None:
    if sabotaged:
        path = workshop["prepared/test.parquet"]
        none = pd.read_parquet(path).iloc[:0]
        path.unlink()
        none.to_parquet(path)
    if sabotaged:
        with pytest.raises(InputError, match="expected test rows of two days"):
            workshop.stage("evaluate")
        workshop.record()
        grounded = workshop.inspected()
        assert {"test_rows", "floor", "reproducible"} <= set(grounded)
        assert "expected test rows of two days" in grounded["test_rows"]["reason"]
    else:
        assert workshop.judged() == {}


def test_outcomes_redrawn_to_please_the_model(workshop: Workshop, sabotaged: bool) -> None:
    with workshop.rows("test") as rows:
        if sabotaged:
            with chdir(workshop.path):
                said = Scorer.load(Path("bundle"), features).score(raw_columns(rows, CONTRACT))[:, 0]
            rows[TARGET] = (np.random.default_rng(0).random(len(rows)) < said).astype("float64")
    assert workshop.judged() == {}
    workshop.record()
    grounded = workshop.inspected()
    assert set(grounded) == ({"reproducible"} if sabotaged else set())
    assert not sabotaged or "prepared/test.parquet" in grounded["reproducible"]["reason"]
