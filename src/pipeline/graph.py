"""An ONNX graph under construction, from `X` to `scores`. Change here to: move to other versions of ONNX."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

IR_VERSION = 10
OPSETS = {"": 21, "ai.onnx.ml": 5}


class Graph:
    """Nodes in order of calculation; what is written depends on them alone, not on the names they came with."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str | float | npt.NDArray[Any], **attributes: Any) -> str:
        """Append one node; a number or array among its inputs becomes a constant. Returns the output's name."""
        names = [entry if isinstance(entry, str) else self._constant(entry) for entry in inputs]
        output = f"own_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def add_part(self, part: onnx.GraphProto) -> str:
        """Append a whole graph that begins at X. Returns the name of its last output."""
        self._nodes.extend(part.node)
        self._constants.extend(part.initializer)
        return str(part.output[-1].name)

    def serialized(self, result: str, n_inputs: int, n_scores: int) -> bytes:
        """The model's bytes: only what `result` needs, under counted names, so that the same model has one form."""
        result = self.add("Identity", result)
        nodes, needed = [], {result}
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(_reads(node))
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            "model",
            [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, n_inputs])],
            [helper.make_tensor_value_info(result, TensorProto.DOUBLE, [None, n_scores])],
            [constant for constant in self._constants if constant.name in needed],
        )
        _rename(graph, _Names({"": "", "X": "X", result: "scores"}))
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    def _constant(self, value: float | npt.NDArray[Any]) -> str:
        name = f"own_constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


class _Names(dict[str, str]):
    """Old name to new name; a name never seen gets the next number (skl2onnx counts on for a process's life)."""

    def __missing__(self, name: str) -> str:
        self[name] = f"value_{len(self)}"
        return self[name]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node takes, those that its inner graphs (a Scan's body) take from outside included."""
    inner = [_reads(each) for graph in _subgraphs(node) for each in graph.node]
    return set(node.input).union(*inner)


def _rename(graph: onnx.GraphProto, names: _Names) -> None:
    for node in graph.node:
        node.name = ""
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        for inner in _subgraphs(node):
            inner.name = "body"
            _rename(inner, names)
    for named in [*graph.initializer, *graph.input, *graph.output]:
        named.name = names[named.name]
