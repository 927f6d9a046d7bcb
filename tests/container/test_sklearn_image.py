"""A bundle that ONNX cannot express gets an image with scikit-learn, chosen by the bundle."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.canonical import files_hash, folder_files, json_bytes
from tests.clones import ROOT, make_clone
from tests.container.conftest import Container, ask_engine

TAG = "test:sklearn"


def test_a_bundle_on_scikit_learn_is_served_by_an_image_that_has_it(tmp_path: Path) -> None:
    (made := tmp_path / "made").mkdir()
    subprocess.run([sys.executable, "tests/serving/make_bundles.py", str(made)], cwd=ROOT, check=True)
    clone = make_clone(tmp_path / "clone").path
    shutil.copytree(made / "binary-sklearn/bundle", clone / "bundle", dirs_exist_ok=True)
    shutil.copy(made / "features.py", clone / "src/problem/features.py")
    verdict = {"airworthy": True, "bundle": files_hash(folder_files(clone / "bundle")), "gates": []}
    for folder in ("inspection", "reports"):
        (clone / folder).mkdir(exist_ok=True)
        (clone / folder / "gates.json").write_bytes(json_bytes(verdict))
    subprocess.run([sys.executable, "-m", "serving.image"], cwd=clone, env={**os.environ, "IMAGE": TAG}, check=True)
    container = Container(tmp_path, image=TAG)
    try:
        container.first_prediction(rows_of(clone)[:1])
        status, answer = container.predict(rows_of(clone))
        expected = json.loads((clone / "bundle/golden.json").read_text())["scores"]
        assert status == 200
        np.testing.assert_allclose(answer["scores"], [score for (score,) in expected], rtol=0, atol=1e-9)
        assert 'runtime="sklearn"' in container.ask("/metrics")[1]
    finally:
        container.remove()
        ask_engine("rmi", "--force", TAG)


def rows_of(clone: Path) -> list[dict[str, object]]:
    golden = json.loads((clone / "bundle/golden.json").read_text())["rows"]
    return [dict(zip(golden, values, strict=True)) for values in zip(*golden.values(), strict=True)]
