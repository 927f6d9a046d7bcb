"""The service as `python -m serving` starts it, with the features of a file: for bundles of the synthetic problem."""

import importlib.util
import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import serving  # noqa: F401 - adds src to the path
from pipeline.scoring import Features
from serving.__main__ import main


def load_features(path: Path) -> Features:
    """The function `features` of a file."""
    spec = importlib.util.spec_from_file_location("made_features", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Features", module.features)


if __name__ == "__main__":
    main(load_features(Path(sys.argv[1])))
