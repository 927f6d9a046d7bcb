"""What a bundle is made from, as hashes. Change here to trace one more ingredient."""

import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import threadpoolctl

from pipeline.canonical import file_hash
from pipeline.contract import Contract

_LIBRARIES = ("numpy", "pandas", "scikit-learn", "onnx", "onnxruntime")


def lineage(
    splits: Mapping[str, pd.DataFrame],
    *,
    contract: Contract,
    files: Iterable[Path],
    params: Mapping[str, Any],
    source: Path,
) -> dict[str, Any]:
    """Hashes of the files, by their path in the repository, and of the loaded code below `source`, the parameters, the
    span of the rows behind the model, and the platform; no clock, so that the same ingredients give the same bytes."""
    return {
        "files": {path.as_posix(): file_hash(path) for path in files},
        "params": dict(params),
        "code": file_hash(*loaded_code(source)),
        "rows": {name: _span(rows, contract) for name, rows in splits.items()},
        "platform": described_platform(),
    }


def loaded_code(source: Path) -> list[Path]:
    """The files of the modules that this process has loaded from below a folder, sorted."""
    files: Iterable[Any] = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    below = source.resolve()
    return sorted(path for path in {Path(file).resolve() for file in files if file} if path.is_relative_to(below))


def described_platform() -> dict[str, str]:
    """What the bytes of a model depend on beside its ingredients: machine, interpreter, libraries, kernels."""
    kernels = {str(info.get("architecture", "")) for info in threadpoolctl.threadpool_info()}
    return {
        "machine": f"{sys.platform} {platform.machine()}",
        "python": ".".join(platform.python_version_tuple()[:2]),
        "kernels": " ".join(sorted(kernels - {""})),
        **{name: version(name) for name in _LIBRARIES},
    }


def _span(rows: pd.DataFrame, contract: Contract) -> dict[str, Any]:
    if contract.time is None:
        return {"rows": len(rows)}
    moments = rows[contract.time.name]
    return {"rows": len(rows), "first": moments.min().isoformat(), "last": moments.max().isoformat()}
