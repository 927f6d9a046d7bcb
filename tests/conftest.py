"""What must be set before anything imports scikit-learn: threads as in the flows, which sleep while they wait."""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "2"))
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from pathlib import Path

import pytest

from tests.clones import Clone, make_clone


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return make_clone(tmp_path / "clone")
