"""SimpleImputer in double precision, as a skl2onnx converter. Change here to: cover more of its options."""

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.impute import SimpleImputer


def imputer_shape(operator: Any) -> None:
    imputer = operator.raw_operator
    width = np.count_nonzero(_kept(imputer)) + len(_flagged(imputer))
    operator.outputs[0].type = DoubleTensorType([operator.inputs[0].get_first_dimension(), int(width)])


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """SimpleImputer in double: onnxruntime has no double kernel for ai.onnx.ml's Imputer."""
    imputer = operator.raw_operator
    if not (isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)):
        raise ValueError(f"SimpleImputer fills {imputer.missing_values!r}; expected NaN as the missing value")

    def add(name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or scope.get_unique_variable_name("imputer")
        container.add_node(name, list(inputs), [output], **attributes)
        return output

    def constant(values: npt.NDArray[Any]) -> str:
        name = scope.get_unique_variable_name("imputer_constant")
        container.add_initializer(name, None, None, numpy_helper.from_array(values, name))
        return str(name)

    def columns(numbers: npt.NDArray[Any]) -> str:
        return add("Gather", source, constant(numbers.astype(np.int64)), axis=1)

    (source,) = (entry.full_name for entry in operator.inputs)
    kept, result = columns(np.flatnonzero(_kept(imputer))), operator.outputs[0].full_name
    fill = constant(imputer.statistics_[_kept(imputer)].astype(np.float64))
    if not len(_flagged(imputer)):
        add("Where", add("IsNaN", kept), fill, kept, output=result)
        return
    flags = add("Cast", add("IsNaN", columns(_flagged(imputer))), to=TensorProto.DOUBLE)
    add("Concat", add("Where", add("IsNaN", kept), fill, kept), flags, output=result, axis=1)


def _kept(imputer: SimpleImputer) -> npt.NDArray[np.bool_]:
    """Columns that the imputer passes on: one without a single value in training is dropped."""
    statistics = np.asarray(imputer.statistics_, dtype=float)
    return np.full(len(statistics), True) if imputer.keep_empty_features else ~np.isnan(statistics)


def _flagged(imputer: SimpleImputer) -> npt.NDArray[Any]:
    """Columns for which the imputer adds an indicator of missing values."""
    return imputer.indicator_.features_ if imputer.add_indicator else np.array([], dtype=int)
