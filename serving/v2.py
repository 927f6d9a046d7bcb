"""The Open Inference Protocol's `infer`: a tensor per column, as JSON or binary. Change here to take another type.

https://github.com/kserve/open-inference-protocol; binary is its extension `binary_tensor_data`, which tritonclient
uses unless told otherwise.
"""

import struct
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from serving.problems import Answer
from serving.protocols import BINARY, JSON, Asked, Call, Scored, converted
from serving.release import Release
from serving.rows import Column, RowError, check_count, shown

_HEADER_LENGTH = b"inference-header-content-length"
_DIGITS = 18  # of a length that is worth reading
# V2's types of numbers, as numpy reads them.
NUMBERS = {"BOOL": "?", "FP64": "<f8", "FP32": "<f4", "FP16": "<f2"}
NUMBERS |= {f"{sign}INT{8 * size}": f"<{code}{size}" for sign, code in (("", "i"), ("U", "u")) for size in (1, 2, 4, 8)}


class Tensor(Struct):
    """One input of a V2 request; its data stands here, or behind the JSON."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Raw | UnsetType = UNSET


class Wanted(Struct):
    """One output that a V2 request wants."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(Struct):
    """A V2 request."""

    inputs: list[Tensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[Wanted] = []


class Infer:
    """V2's tensors, one per column, in and out, as JSON or binary."""

    media_types: tuple[bytes, ...] = (JSON, BINARY)

    def __init__(self, release: Release, most: int) -> None:
        self._inputs = release.inputs
        self._most = most
        self._contract = release.contract
        self._named = {"model_name": release.name, "model_version": release.version}

    def metadata(self) -> dict[str, Any]:
        """The tensors that go in and come out."""
        classes, task = self._contract["classes"] or (), self._contract["task"]
        outputs = [{"name": "score", "datatype": "FP64", "shape": [-1, len(classes)] if len(classes) > 2 else [-1]}]
        if task != "regression":
            outputs.append({"name": "label", "datatype": "BOOL" if task == "binary" else "BYTES", "shape": [-1]})
        inputs = [{"name": c.name, "datatype": _datatype(c), "shape": [-1]} for c in self._inputs.columns]
        return {"inputs": inputs, "outputs": outputs}

    def read(self, call: Call) -> Asked:
        length = call.headers.get(_HEADER_LENGTH, b"%d" % len(call.body))
        if not length.isdigit() or len(length) > _DIGITS or int(length) > len(call.body):
            came = length[:_DIGITS].decode("latin-1")
            raise RowError(f"Inference-Header-Content-Length: expected at most {len(call.body)}, got {came}")
        request: InferRequest = converted(call.body[: int(length)], InferRequest, "V2 request")
        given: dict[str, np.ndarray] = {}
        logged: dict[str, Any] = {}
        in_one_line = b"\n" not in call.body and b"\r" not in call.body
        rest = memoryview(call.body)[int(length) :]
        for tensor in request.inputs:
            if tensor.name in given or tensor.name not in self._inputs.by_name:
                names = ", ".join(self._inputs.by_name)
                raise RowError(f"inputs: expected each of {names} once, got '{shown(tensor.name)}'")
            size = tensor.parameters.get("binary_data_size", 0)
            if type(size) is not int or not 0 <= size <= len(rest):
                came = shown(size)
                raise RowError(f"input '{tensor.name}': expected a binary_data_size of at most {len(rest)}, got {came}")
            check_count(max(tensor.shape, default=0), self._most)
            column = self._inputs.by_name[tensor.name]
            _check_tensor(tensor, column)
            array = None if tensor.data is UNSET else column.array_of_text(tensor.data)
            if array is not None and in_one_line and column.kind != "time":  # times may have offsets
                logged[column.name] = tensor.data
            if array is None:
                array = _read_tensor(tensor, bytes(rest[:size]), column)
            if len(array) != tensor.shape[0]:
                came = f"{tensor.shape[0]} values as its shape says, got {len(array)}"
                raise RowError(f"input '{tensor.name}': expected {came}")
            given[column.name] = array
            if column.kind == "boolean" and column.name not in logged:  # of which the array has numbers
                logged[column.name] = [None if value != value else bool(value) for value in array.tolist()]
            rest = rest[size:]
        if len(rest):
            raise RowError(
                f"expected the inputs' binary_data_size to sum to the body's length, {len(rest)} bytes remain"
            )
        rows = len(next(iter(given.values()), ()))
        if not rows or any(len(values) != rows for values in given.values()):
            raise RowError("inputs: expected shapes of one length, 1 or more")
        columns = {c.name: given[c.name] if c.name in given else c.missing(rows) for c in self._inputs.columns}
        self._check_wanted(request)
        return Asked(rows, columns=columns, logged=logged, wishes=request)

    def _check_wanted(self, request: InferRequest) -> None:
        known = [output["name"] for output in self.metadata()["outputs"]] if request.outputs else []
        for wanted in request.outputs:
            if wanted.name not in known or wanted.parameters.keys() - {"binary_data"}:
                raise RowError(f"outputs: expected some of {', '.join(known)}, with binary_data or no parameters")

    def write(self, call: Call, asked: Asked, scored: Scored) -> Answer:  # noqa: ARG002 - a Form takes them
        request: InferRequest = asked.wishes
        scores = scored.scores if scored.scores.shape[1] > 1 else scored.scores[:, 0]
        made: dict[str, Any] = {"score": scores} | ({} if scored.labels is None else {"label": scored.labels})
        binary = bool(request.parameters.get("binary_data_output"))
        wanted = {output.name: bool(output.parameters.get("binary_data", binary)) for output in request.outputs}
        outputs, tail = [], b""
        for name, as_binary in (wanted or dict.fromkeys(made, binary)).items():
            output, data = _write_tensor(name, made[name], as_binary)
            outputs.append(output)
            tail += data
        answered = self._named | ({"id": request.id} if request.id else {}) | {"outputs": outputs}
        head = msgspec.json.encode(answered)
        if not any(wanted.values() if wanted else [binary]):
            return Answer(200, head)
        return Answer(200, head + tail, BINARY, ((_HEADER_LENGTH, b"%d" % len(head)),))


def _datatype(column: Column) -> str:
    usual = {"integer": "INT64", "boolean": "BOOL", "number": "FP64"}.get(column.kind, "BYTES")
    return "FP64" if usual in ("INT64", "BOOL") and column.nullable else usual  # NaN is missing


def _check_tensor(tensor: Tensor, column: Column) -> None:
    """Refuse what is no tensor of the column, of shape [n] or [n, 1]."""
    where = f"input '{tensor.name}'"
    if tensor.datatype not in (NUMBERS if column.numeric else ("BYTES",)):
        raise RowError(f"{where}: expected datatype {_datatype(column)}, got {shown(tensor.datatype)}")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ([], [1]):
        raise RowError(f"{where}: expected shape [n] or [n, 1], got {shown(tensor.shape)}")
    if tensor.parameters.keys() - {"binary_data_size"}:
        raise RowError(f"{where}: expected no parameters but binary_data_size")
    if (tensor.data is UNSET) != ("binary_data_size" in tensor.parameters):
        raise RowError(f"{where}: expected either data or binary_data_size")


def _read_tensor(tensor: Tensor, data: bytes, column: Column) -> np.ndarray:
    """A tensor's data, behind the JSON or with each value in a list of its own, as the column's array."""
    where, rows = f"input '{tensor.name}'", tensor.shape[0]
    if tensor.data is not UNSET:
        given = converted(bytes(tensor.data), list[Any], where)
        return column.array_of_json([v[0] if isinstance(v, list) and len(v) == 1 else v for v in given])
    if column.numeric:
        kind = np.dtype(NUMBERS[tensor.datatype])
        if len(data) != rows * kind.itemsize:
            raise RowError(f"{where}: expected {rows} values of {kind.itemsize} bytes, got {len(data)} bytes")
        return column.array_of_numbers(np.frombuffer(data, kind))
    texts = _read_texts(data, rows, where)
    return column.array_of_json([None if text == "" and column.nullable else text for text in texts])


def _read_texts(data: bytes, rows: int, where: str) -> list[str]:
    texts: list[str] = []
    position = 0
    while position < len(data) and len(texts) < rows:
        end = position + 4 + int.from_bytes(data[position : position + 4], "little")
        if end > len(data):
            raise RowError(f"{where}: expected each text behind its length in four bytes, got fewer bytes")
        try:
            texts.append(data[position + 4 : end].decode())
        except UnicodeDecodeError:
            raise RowError(f"{where}: expected UTF-8, got other bytes in row {len(texts)}") from None
        position = end
    if len(texts) != rows or position != len(data):
        raise RowError(f"{where}: expected {rows} values as its shape says, got {len(texts)} in {position} bytes")
    return texts


def _write_tensor(name: str, values: np.ndarray | list[Any], binary: bool) -> tuple[dict[str, Any], bytes]:
    array = np.asarray(values)
    datatype = {"f": "FP64", "b": "BOOL"}.get(array.dtype.kind, "BYTES")
    output = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    if not binary:
        return output | {"data": array.ravel().tolist()}, b""
    encoded = [text.encode() for text in values] if datatype == "BYTES" else []
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded) if encoded else array.tobytes()
    return output | {"parameters": {"binary_data_size": len(data)}}, data
