"""The serving room: a bundle behind HTTP. Change here to set what its process starts with."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reports on each model and process, since 1.29
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when numpy is imported; one row is no work to share
    os.environ[_name] = "1"
