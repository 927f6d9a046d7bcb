"""Bundles of the synthetic problem, written by the main environment for the service's tests: a folder per task and
runtime, with the inspection beside the bundle, and the features as a file that needs numpy alone."""

import inspect
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from pipeline.canonical import file_hash, files_hash, json_bytes  # noqa: E402 - once the path is set
from tests import synthetic  # noqa: E402

RUNTIMES = {"onnx": "boosting", "sklearn": "forest"}


def main(target: Path) -> None:
    features = target / "features.py"
    features.write_text("from typing import Any\n\nimport numpy as np\n\n\n" + inspect.getsource(synthetic.features))
    for task in synthetic.TASKS:
        for runtime, candidate in RUNTIMES.items():
            bundle = dict(synthetic.make_bundle(task, candidate))
            contract = json.loads(bundle["contract.json"])
            assert contract["runtime"] == runtime, (task, candidate, contract["runtime"])
            bundle["contract.json"] = json_bytes(contract | {"features_hash": file_hash(features)})
            folder = target / f"{task}-{runtime}"
            folder.mkdir()
            synthetic.write_bundle(folder / "bundle", bundle)
            verdict = {"airworthy": True, "waived": [], "bundle": files_hash(bundle), "gates": []}
            (folder / "inspection").mkdir()
            (folder / "inspection" / "gates.json").write_bytes(json_bytes(verdict))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
