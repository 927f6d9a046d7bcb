"""A fitted model as bytes: ONNX in double precision, or skops where ONNX cannot. Change here to: teach it a model.

Histogram boosting is written by `pipeline.trees`, everything else by skl2onnx with its imputer replaced. What comes
out is never trusted: `pipeline.parity` compares it with scikit-learn, and decides.
"""

from typing import Any

import numpy as np
import onnxruntime
import skl2onnx
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline

from pipeline import imputer, trees
from pipeline.graph import Graph

SKL2ONNX_OPSETS = {"": 21, "ai.onnx.ml": 3}  # the newest that it writes; what it writes is unchanged in 5
LOG_GUARD = 1e-12  # scikit-learn's `_convert_to_logits` adds it before the logarithm


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
