import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.preprocess import preprocess
from pipeline.scoring import TOLERANCE, Scorer
from pipeline.train import train
from tests.synthetic import (
    BEST,
    BY_TIME,
    CANDIDATES,
    features,
    make_contract,
    make_evaluation,
    make_table,
    train_params,
    write_bundle,
)  # fmt: skip


def one_more(columns: Any) -> dict[str, np.ndarray]:
    return features(columns) | {"wear": columns["cycles"] * columns["temperature"]}


def test_a_feature_added_in_one_line_is_learned_shipped_and_judged(tmp_path: Path) -> None:
    contract = make_contract()
    rows = preprocess(
        make_table(),
        contract=contract,
        features=one_more,
        params=BY_TIME,
        locations=[(Path("made.parquet"), 600)],
        quarantined={},
    )
    bundle = train(
        rows.train,
        rows.validation,
        contract=contract,
        features=one_more,
        candidates=CANDIDATES,
        best=BEST["boosting"],
        params=train_params(),
        features_hash="made",
        lineage={},
    )
    described = json.loads(bundle["contract.json"])
    assert described["features"][-1] == {"name": "wear", "categories": None}
    assert "wear" not in [entry["name"] for entry in described["inputs"]]  # clients send what they sent before
    found = make_evaluation(
        splits={"train": rows.train, "validation": rows.validation, "test": rows.test},
        scorer=Scorer.load(write_bundle(tmp_path / "bundle", bundle), one_more),
        bundle={name: json.loads(bundle[name]) for name in ("baseline.json", "golden.json")},
    )
    assert found.golden_gap <= TOLERANCE
    assert found.single_features["wear"] > 0.5
    assert "wear" in set(found.tables["importance"]["feature"])
