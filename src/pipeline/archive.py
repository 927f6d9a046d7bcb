"""A fitted model as a skops archive, for where ONNX cannot express it. Change here to trust another type.

The service reads it too, so nothing here needs more than numpy, scikit-learn and skops; which is loaded only where it
is needed, since it loads all of scikit-learn.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier

from pipeline.errors import InputError

Floats = NDArray[np.float64]

# What skops may load besides its own list (scikit-learn's public estimators). It checks types, not contents: that
# the file is the one that training wrote is for the bundle's hash to show.
TRUSTED = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)


def to_skops(model: Any) -> bytes:
    """A skops archive that depends on the model alone: without memory addresses, and with arrays named by content."""
    import skops.io

    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(model))) as written:
        files = {name: _without_padding(name, written.read(name)) for name in written.namelist()}
    schema = json.loads(files.pop("schema.json"))
    names = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    entries = {names[name]: content for name, content in files.items()}
    entries["schema.json"] = json.dumps(_canonical(schema, names)).encode()
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name)  # its date is 1980-01-01
            entry.create_system = 3  # as written on Unix, wherever this runs
            archive.writestr(entry, entries[name])
    return target.getvalue()


def from_skops(data: bytes) -> Any:
    """The model of a skops archive. Raises InputError where a type is neither skops's own nor in TRUSTED."""
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.loads(data, trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        refused = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
        raise InputError(
            f"pipeline.skops: expected only trusted types; it holds {', '.join(refused)}; use an estimator without "
            "them, or review them and add them to TRUSTED in src/pipeline/archive.py"
        ) from error


def sklearn_scores(model: Any, X: Floats) -> Floats:
    """The model's scores [n, k]: P(positive), one probability per class, or the prediction."""
    if not is_classifier(model):
        return np.asarray(model.predict(X), dtype=np.float64).reshape(-1, 1)
    shares = np.asarray(model.predict_proba(X), dtype=np.float64)
    return shares[:, 1:] if shares.shape[1] == 2 else shares


def _without_padding(name: str, content: bytes) -> bytes:
    """An array of records with its padding zeroed: in the nodes of scikit-learn's trees it is whatever memory held."""
    array = np.load(io.BytesIO(content), allow_pickle=False) if name.endswith(".npy") else None
    if array is None or array.dtype.names is None:
        return content
    clean, target = np.zeros(array.shape, array.dtype), io.BytesIO()
    for field in array.dtype.names:
        clean[field] = array[field]
    np.save(target, clean, allow_pickle=False)
    return target.getvalue()


def _canonical(entry: Any, names: dict[str, str]) -> Any:
    """The schema without `__id__` (an address), with files by their new names and sets in one order."""
    if isinstance(entry, list):
        return [_canonical(each, names) for each in entry]
    if not isinstance(entry, dict):
        return entry
    if "__loader__" not in entry:
        return {key: _canonical(value, names) for key, value in entry.items()}
    node = {key: _canonical(value, names) for key, value in entry.items() if key != "__id__"}
    if "file" in node:
        node["file"] = names[node["file"]]
    if node["__loader__"] == "SetNode":
        node["content"] = sorted(node["content"], key=json.dumps)
    return node
