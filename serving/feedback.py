"""What clients say came true of their predictions. Change here to take another kind of outcome.

An outcome is what the target is: true or false where the task is binary, and nothing that merely looks like it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import asdict

from serving.rows import RowError, TooManyRows, WrongValue, few, fits, parse_json, row_error, shown

MOST = 10_000
_ROW_MOST = 2**31 - 1
_ID = r"^[A-Za-z0-9._-]{1,128}$(?!\n)"  # Python's $ stands before a last line break too


class Feedback:
    """The outcomes that a release's task allows; `request` is the body's type."""

    def __init__(self, contract: Mapping[str, Any]) -> None:
        kinds: dict[str, tuple[Any, str]] = {"binary": (bool, "true or false"), "regression": (float, "a number")}
        classes = tuple(contract["classes"] or ())
        kind, words = kinds.get(contract["task"]) or (Literal[classes], f"one of {few(classes)}")
        about = "The request_id, or X-Request-Id, of the prediction", f"What came true of {contract['target']}"
        self._types: dict[str, Any] = {
            "request_id": Annotated[str, Meta(pattern=_ID, description=about[0])],
            "outcome": Annotated[kind, Meta(description=about[1])],
            "row": Annotated[int, Meta(ge=0, le=_ROW_MOST, description="Which row of that request, counted from 0")],
        }
        self._expected = {
            "request_id": "1 to 128 letters, digits, dots, underscores and hyphens",
            "outcome": words,
            "row": f"a whole number from 0 to {_ROW_MOST}",
        }
        fields: list[Any] = [(name, kind, *([0] if name == "row" else [])) for name, kind in self._types.items()]
        outcome: Any = msgspec.defstruct("Outcome", fields, forbid_unknown_fields=True, gc=False)
        several = Annotated[list[outcome], Meta(min_length=1, max_length=MOST)]
        self.request: Any = msgspec.defstruct("Outcomes", [("outcomes", several)], forbid_unknown_fields=True)
        self._decoder = msgspec.json.Decoder(self.request)

    def read(self, body: bytes) -> list[Any]:
        """The outcomes of `{"outcomes": [{...}, ...]}`, each with request_id, row and outcome; RowError names what does
        not fit, by its position in the list."""
        try:
            decoded: Any = self._decoder.decode(body)
            return decoded.outcomes  # type: ignore[no-any-return]  # made at run time
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            given = parse_json(body)
        if not isinstance(given, dict) or set(given) != {"outcomes"} or not isinstance(given["outcomes"], list):
            raise RowError('expected {"outcomes": [{...}, ...]}')
        records = given["outcomes"]
        if not 0 < len(records) <= MOST:
            raise (TooManyRows if records else RowError)(f"expected 1 to {MOST:,} outcomes, got {len(records):,}")
        try:
            return msgspec.convert(given, self.request).outcomes  # type: ignore[no-any-return]  # made at run time
        except msgspec.ValidationError:
            raise row_error(self._errors(records)) from None

    def entries(self, outcomes: Iterable[Any], by: str, time: datetime) -> list[bytes]:
        """Lines for the journal, of outcomes that came from `by` at that time."""
        return [msgspec.json.encode({"time": time, **asdict(each), "by": by}) for each in outcomes]

    def _errors(self, records: Sequence[Any]) -> Iterable[WrongValue]:
        for position, record in enumerate(records):
            if not isinstance(record, dict):
                yield WrongValue(f"an object with {', '.join(self._types)}", position, value=shown(record))
                continue
            for name in [name for name in record if name not in self._types]:
                yield WrongValue(f"one of {', '.join(self._types)}", position, shown(name), shown(record[name]))
            for name, expected in self._expected.items():
                if name in record and not fits(record[name], self._types[name]):
                    yield WrongValue(expected, position, name, shown(record[name]))
                elif name not in record and name != "row":
                    yield WrongValue(expected, position, name)
