"""Rows of a request into columns of arrays, each value checked against the contract. Change here to check more.

The type that msgspec checks each column with is made from the contract, and OpenAPI's description from that type.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from operator import itemgetter, or_
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import astuple

from pipeline.scoring import Columns

MAX_ERRORS = 20
_SHOWN_CHARACTERS = 100
_SHOWN_NAMES = 10
_EPOCHS = {False: datetime(1970, 1, 1), True: datetime(1970, 1, 1, tzinfo=UTC)}  # noqa: DTZ001 - UTC is meant
_MICROSECOND = timedelta(microseconds=1)
_FLOAT64, _OBJECT, _TIME = map(np.dtype, ("float64", "object", "datetime64[us]"))
_Array = Callable[[Iterable[Any]], np.ndarray]
_texts, _numbers = partial(np.fromiter, dtype=_OBJECT), partial(np.fromiter, dtype=_FLOAT64)
_TIME_EXAMPLE = "2026-01-31T12:00:00"


class WrongValue(Struct):
    """A value that does not fit; without `value` where none came."""

    expected: str
    row: int | UnsetType = UNSET
    column: str | UnsetType = UNSET
    value: Any | UnsetType = UNSET


class RowError(Exception):
    """Rows that cannot be scored: `errors` say of each wrong value its row, column, value, and what was expected."""

    def __init__(self, detail: str, errors: Sequence[WrongValue] = ()) -> None:
        super().__init__(detail)
        self.errors = errors


class TooManyRows(RowError):
    """More rows than one request may have."""


def check_count(rows: int, most: int) -> None:
    """Refuse more rows than `most`, before any of them costs anything."""
    if rows > most:
        raise TooManyRows(f"expected at most {most:,} rows in one request, got {rows:,}")


def parse_json(body: bytes, kind: Any = Any) -> Any:
    """A JSON value; RowError says where the text is malformed, ValidationError where the value is of another kind."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise RowError("expected JSON, got one nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if kind is not Any and isinstance(error, msgspec.ValidationError):
            raise
        hint = "; JSON has no NaN and no Infinity, send null" if b"NaN" in body or b"Infinity" in body else ""
        raise RowError(f"expected JSON in UTF-8: {error}{hint}") from None


class Column:
    """One input of the contract."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.name: str = entry["name"]
        self.kind: str = entry["kind"]
        self.nullable: bool = entry["nullable"]
        self.minimum: float | None = entry["minimum"]
        self.maximum: float | None = entry["maximum"]
        self.categories: tuple[str, ...] = tuple(entry.get("categories", ()))
        self.open: bool = entry.get("open", False)
        self.numeric = self.kind in ("number", "integer", "boolean")
        # Of checked values the array that features take: what `pipeline.scoring.parse_column` gives.
        self.array: _Array = _times if self.kind == "time" else _texts if self.kind == "category" else _numbers
        self.expected = self._expected(entry["unit"])
        description = entry["description"] + (f", {entry['unit']}" if entry["unit"] else "")
        value = self._value_type()
        examples: list[Any] | None = list(self.categories[:3]) if self.open else None
        self.type: Any = Annotated[
            value | None if self.nullable else value, Meta(description=description, examples=examples)
        ]
        self._decode = msgspec.json.Decoder(list[self.type]).decode  # type: ignore[name-defined]  # made at run time

    def _value_type(self) -> Any:
        if self.kind == "category":
            return str if self.open else Literal[self.categories]
        if self.kind == "time":
            return Annotated[datetime, Meta(extra_json_schema={"format": "date-time"})]
        if self.kind == "boolean":
            return bool
        step = 1 if self.kind == "integer" else None  # 5.0 is one too: some clients know only floats
        return Annotated[float, Meta(ge=self.minimum, le=self.maximum, multiple_of=step)]

    def _expected(self, unit: str | None) -> str:
        said = {"time": f"a time as in ISO 8601, such as {_TIME_EXAMPLE}, in UTC or with its offset"}
        said |= {"boolean": "true or false", "category": "text"}
        words = said.get(self.kind) or ("a whole number" if self.kind == "integer" else "a number")
        if self.categories and not self.open:
            words = f"one of {few(self.categories)}"
        words += f" of at least {self.minimum}" if self.minimum is not None and self.maximum is None else ""
        words += f" of at most {self.maximum}" if self.maximum is not None and self.minimum is None else ""
        if self.minimum is not None and self.maximum is not None:
            words += f" from {self.minimum} to {self.maximum}"
        return words + (f" ({unit})" if unit else "") + (", or null" if self.nullable else "")

    def array_of_text(self, text: Raw) -> np.ndarray | None:
        """A JSON list of values as that array; None where not all of them fit."""
        try:
            return self.array(self._decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def array_of_json(self, values: Sequence[Any]) -> np.ndarray:
        """JSON values as that array; RowError names those that do not fit."""
        try:
            checked = msgspec.convert(values, list[self.type])  # type: ignore[name-defined]  # made at run time
        except msgspec.ValidationError:
            wrong = (self.error(row, value) for row, value in enumerate(values) if not fits(value, self.type))
            raise row_error(wrong) from None
        return self.array(checked)

    def array_of_numbers(self, values: np.ndarray) -> np.ndarray:
        """Numbers, NaN for missing, as that array; RowError names those that do not fit."""
        numbers = values.astype("float64")
        missing = np.isnan(numbers)
        rules = [np.isinf(numbers)]
        rules += [] if self.nullable else [missing]
        rules += [] if self.minimum is None else [numbers < self.minimum]
        rules += [] if self.maximum is None else [numbers > self.maximum]
        rules += [(np.trunc(numbers) != numbers) & ~missing] if self.kind == "integer" else []
        rules += [(numbers != 0) & (numbers != 1) & ~missing] if self.kind == "boolean" else []
        wrong = np.flatnonzero(reduce(or_, rules))
        if len(wrong):
            raise row_error(self.error(int(row), float(numbers[row])) for row in wrong)
        return numbers

    def missing(self, rows: int) -> np.ndarray:
        """The column where a request leaves it out."""
        if not self.nullable:
            raise RowError(f"expected the column '{self.name}'", [WrongValue(self.expected, column=self.name)])
        return self.array([None] * rows)

    def error(self, row: int, value: Any) -> WrongValue:
        """What is wrong with a value."""
        return WrongValue(self.expected, row, self.name, shown(value))


class Inputs:
    """All inputs of the contract: what a row is."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(Column(entry) for entry in entries)
        self.by_name = {column.name: column for column in self.columns}
        # A column may have any name, an attribute may not.
        attributes = {f"c{position}": column for position, column in enumerate(self.columns)}
        self.row: Any = msgspec.defstruct(
            "Row",
            [(name, column.type, *([None] if column.nullable else [])) for name, column in attributes.items()],
            rename={name: column.name for name, column in attributes.items()},
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        several = Annotated[list[self.row], Meta(min_length=1)]  # type: ignore[name-defined]  # made at run time
        self.request: Any = msgspec.defstruct("Rows", [("rows", several)], forbid_unknown_fields=True)
        self._several = several
        self._known = f"a column of the contract, which are {few(self.by_name)}"
        self._decoder = msgspec.json.Decoder(self.request)
        kinds = ("number", "integer", "boolean"), ("time",), ("category",)
        alike = [[place for place, column in enumerate(self.columns) if column.kind in kind] for kind in kinds]
        self._alike = [(_taking(places), self.columns[places[0]].array) for places in alike if places]
        self._in_order = [self.columns[place].name for place in itertools.chain.from_iterable(alike)]
        self._open = [(column.name, frozenset([*column.categories, None])) for column in self.columns if column.open]

    def decode(self, body: bytes, most: int) -> list[Any]:
        """The rows of `{"rows": [{...}, ...]}`, `most` of them."""
        try:
            decoded: Any = self._decoder.decode(body)
            check_count(len(decoded.rows), most)
            return decoded.rows  # type: ignore[no-any-return]  # made at run time
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            given = parse_json(body)
        if not isinstance(given, dict) or set(given) != {"rows"}:
            raise RowError('expected {"rows": [{...}, ...]}')
        return self.convert(given["rows"], most)

    def convert(self, records: Any, most: int) -> list[Any]:
        """`most` rows out of JSON objects; RowError names each value that does not fit, up to `MAX_ERRORS`."""
        check_count(len(records) if isinstance(records, list) else 0, most)
        try:
            return msgspec.convert(records, self._several)
        except msgspec.ValidationError:
            if not isinstance(records, list) or not records:
                raise RowError("expected a list of rows, with one or more") from None
            raise row_error(self._errors(records)) from None

    def arrays(self, rows: Sequence[Any]) -> Columns:
        """Checked rows, column by column."""
        made: list[np.ndarray] = []
        alone = len(rows) == 1  # a row alone is soonest made without columns
        values = astuple(rows[0]) if alone else [*zip(*map(astuple, rows), strict=True)]
        for of_kind, array in self._alike:  # one array of all of a kind is made sooner than one each
            flat = of_kind(values) if alone else itertools.chain.from_iterable(of_kind(values))
            made.extend(array(flat).reshape(-1, len(rows)))
        return dict(zip(self._in_order, made, strict=True))

    def unseen(self, columns: Columns) -> list[tuple[int, str]]:
        """Row and column of each category that training never saw, where the contract allows that."""
        return [
            (row, name)
            for name, known in self._open
            if not known.issuperset(values := columns[name].tolist())
            for row, value in enumerate(values)
            if value not in known
        ]

    def _errors(self, records: Iterable[Any]) -> Iterable[WrongValue]:
        for row, record in enumerate(records):
            with suppress(msgspec.ValidationError):
                msgspec.convert(record, self.row)
                continue
            if not isinstance(record, dict):
                yield WrongValue("an object, with a value for each column", row, value=shown(record))
                continue
            for name in [name for name in record if name not in self.by_name]:
                yield WrongValue(self._known, row, shown(name), shown(record[name]))
            for column in self.columns:
                if column.name in record and not fits(record[column.name], column.type):
                    yield column.error(row, record[column.name])
                if column.name not in record and not column.nullable:
                    yield WrongValue(column.expected, row, column.name)


def _taking(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What takes the values at some places out of a sequence."""
    return itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _times(given: Iterable[datetime | None]) -> np.ndarray:
    """Times as datetime64[us] in UTC, which is meant where there is no offset; NaT where there is no time."""
    values = [*given]
    written = msgspec.json.encode(values).replace(b"Z", b"")  # which numpy reads in a third of arithmetic's time
    if not written.count(b"+") and written.count(b"-") == 2 * written.count(b"T"):
        return np.array(msgspec.json.decode(written), _TIME)
    since = [value and (value - _EPOCHS[value.tzinfo is not None]) // _MICROSECOND for value in values]
    return np.array(["NaT" if each is None else each for each in since], _TIME)


def row_error(found: Iterable[WrongValue]) -> RowError:
    """The error of one or more wrong values, the first `MAX_ERRORS` of them."""
    errors = list(itertools.islice(found, MAX_ERRORS))
    first = errors[0]
    where = f"row {first.row}" + ("" if first.column is UNSET else f", column '{first.column}'")
    came = "none" if first.value is UNSET else msgspec.json.encode(first.value).decode()
    return RowError(f"{where}: expected {first.expected}, got {came}", errors)


def few(names: Iterable[str]) -> str:
    """Names in a sentence: the first, and how many more."""
    listed = list(names)
    more = len(listed) - _SHOWN_NAMES
    return ", ".join(listed[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def shown(value: Any) -> Any:
    """A value as the client may see it again: short."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return value if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
