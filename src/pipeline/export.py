"""A fitted model as bytes: ONNX in double precision, or skops where ONNX cannot. Change here to: teach it a model.

Histogram boosting is written by `pipeline.trees`, everything else by skl2onnx with its imputer replaced. What comes
out is never trusted: `pipeline.parity` compares it with scikit-learn, and decides.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
import onnxruntime
import skl2onnx
import skops.io
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from skops.io.exceptions import UntrustedTypesFoundException

from pipeline import imputer, trees
from pipeline.errors import InputError
from pipeline.graph import Graph

SKL2ONNX_OPSETS = {"": 21, "ai.onnx.ml": 3}  # the newest that it writes; what it writes is unchanged in 5
LOG_GUARD = 1e-12  # scikit-learn's `_convert_to_logits` adds it before the logarithm

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


class NotExpressible(Exception):
    """A model that ONNX cannot express in double precision; the message says which part, and why."""


def to_onnx(model: Any, n_inputs: int) -> bytes:
    """The graph `X` double [None, n_inputs] -> `scores` double [None, k]; the same model gives the same bytes.

    `model` is a regressor, or `CalibratedClassifierCV(FrozenEstimator(classifier))` with one calibrator of method
    sigmoid or temperature. k is 1 (positive class or prediction), or the number of classes where there are three or
    more. Raises NotExpressible where a part has no exact form that onnxruntime can run.
    """
    estimator, calibrated = _parts(model)
    graph = Graph()
    raw, is_probability = _raw_scores(graph, estimator, n_inputs)
    scores = raw if calibrated is None else _calibrate(graph, raw, is_probability, calibrated)
    data = graph.serialized(scores, n_inputs, n_scores=1 if calibrated is None else _width(calibrated))
    try:
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no other class
        raise NotExpressible(f"onnxruntime {onnxruntime.__version__} cannot run the graph: {error}") from error
    return data


def to_skops(model: Any) -> bytes:
    """A skops archive that depends on the model alone: without memory addresses, and with arrays named by content."""
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
    try:
        return skops.io.loads(data, trusted=list(TRUSTED))
    except UntrustedTypesFoundException as error:
        refused = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED))
        raise InputError(
            f"pipeline.skops: expected only trusted types; it holds {', '.join(refused)}; use an estimator without "
            "them, or review them and add them to TRUSTED in src/pipeline/export.py"
        ) from error


def _parts(model: Any) -> tuple[Any, Any]:
    """The estimator without its wrapping, and the fitted calibrator (None for a regressor)."""
    if not isinstance(model, CalibratedClassifierCV):
        if hasattr(model, "classes_"):
            raise NotExpressible(f"{type(model).__name__} is a classifier without calibration; calibrate it first")
        return model, None
    if len(model.calibrated_classifiers_) != 1 or model.method not in ("sigmoid", "temperature"):
        raise NotExpressible(
            f"calibration '{model.method}' with {len(model.calibrated_classifiers_)} classifiers has no exact form; "
            "use one frozen classifier with method 'sigmoid' or 'temperature'"
        )
    calibrated = model.calibrated_classifiers_[0]
    estimator = calibrated.estimator
    return (estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator), calibrated


def _width(calibrated: Any) -> int:
    n_classes = len(calibrated.classes)
    return 1 if n_classes == 2 else n_classes


def _raw_scores(graph: Graph, estimator: Any, n_inputs: int) -> tuple[str, bool]:
    """What the estimator hands to its calibrator, [n, k], and whether that is a probability."""
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if isinstance(last, trees.BOOSTING):
        source = "X"
        if isinstance(estimator, Pipeline) and len(estimator) > 1:
            source = _converted(graph, estimator[:-1], n_inputs)
        raw = graph.add("TreeEnsemble", source, domain="ai.onnx.ml", **trees.tree_ensemble(last))
        has_log_link = not hasattr(last, "classes_") and type(last._loss.link).__name__ == "LogLink"
        return (graph.add("Exp", raw) if has_log_link else raw), False
    if not hasattr(estimator, "classes_"):
        return graph.add("Reshape", _converted(graph, estimator, n_inputs), np.array([-1, 1])), False
    is_probability = not hasattr(estimator, "decision_function")
    options = {} if is_probability else {"raw_scores": True}
    options |= {"zipmap": False} if hasattr(estimator, "predict_proba") else {}
    raw = _converted(graph, estimator, n_inputs, {id(last): options})
    return (graph.add("Gather", raw, np.array([-1]), axis=1) if len(estimator.classes_) == 2 else raw), is_probability


def _calibrate(graph: Graph, raw: str, is_probability: bool, calibrated: Any) -> str:
    """scikit-learn's `_CalibratedClassifier.predict_proba`: Platt's sigmoid, or a temperature."""
    binary = _width(calibrated) == 1
    if calibrated.method == "sigmoid":
        slopes = np.array([[float(each.a_) for each in calibrated.calibrators]])
        offsets = np.array([[float(each.b_) for each in calibrated.calibrators]])
        line = graph.add("Add", graph.add("Mul", raw, slopes), offsets)
        # Written out as in `scipy.special.expit`: where it is small, onnxruntime's own Sigmoid is off by 1e-12.
        each = graph.add("Div", 1.0, graph.add("Add", 1.0, graph.add("Exp", line)))
        if binary:
            return each
        total = graph.add("ReduceSum", each, np.array([1]), keepdims=1)
        shares = graph.add("Div", each, total)
        return graph.add("Where", graph.add("Equal", total, 0.0), 1.0 / _width(calibrated), shares)
    logits = raw
    if is_probability:
        both = graph.add("Concat", graph.add("Sub", 1.0, raw), raw, axis=1) if binary else raw
        logits = graph.add("Log", graph.add("Add", both, LOG_GUARD))
    elif binary:
        logits = graph.add("Concat", graph.add("Neg", raw), raw, axis=1)
    shares = graph.add("Softmax", graph.add("Mul", logits, float(calibrated.calibrators[0].beta_)), axis=1)
    return graph.add("Gather", shares, np.array([1]), axis=1) if binary else shares


def _converted(graph: Graph, part: Any, n_inputs: int, options: dict[int, Any] | None = None) -> str:
    """Append what skl2onnx makes of a fitted transformer or predictor. Returns its last output's name."""
    try:
        converted = skl2onnx.convert_sklearn(
            part,
            name="part",
            initial_types=[("X", DoubleTensorType([None, n_inputs]))],
            target_opset=SKL2ONNX_OPSETS,
            options=options,
            custom_conversion_functions={SimpleImputer: imputer.convert_imputer},
            custom_shape_calculators={SimpleImputer: imputer.imputer_shape},
        )
    except Exception as error:  # skl2onnx raises whatever its converters meet
        name = " > ".join(type(step).__name__ for step in (part if isinstance(part, Pipeline) else [part]))
        raise NotExpressible(f"skl2onnx cannot convert {name}: {error}") from error
    output = converted.graph.output[-1]
    if output.type.tensor_type.elem_type != TensorProto.DOUBLE:
        kind = TensorProto.DataType.Name(output.type.tensor_type.elem_type).lower()
        raise NotExpressible(f"{type(part).__name__} comes out of skl2onnx as {kind}; expected double")
    return graph.add_part(converted.graph)


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
