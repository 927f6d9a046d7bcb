"""Everything that a client is told went wrong, as RFC 9457 problem documents. Change here to word it otherwise."""

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
from msgspec import UNSET, Struct, UnsetType
from starlette.exceptions import HTTPException

from serving.rows import RowError, TooManyRows, WrongValue

Headers = tuple[tuple[bytes, bytes], ...]

REASONS = {
    400: "malformed",
    401: "no_key",
    403: "scope",
    404: "not_found",
    405: "method",
    408: "slow_body",
    409: "conflict",
    413: "too_large",
    415: "media_type",
    422: "invalid",
    431: "too_large",
    500: "failed",
    503: "overload",
}


class ProblemDocument(Struct, rename={"kind": "type"}):
    """What went wrong, as RFC 9457 has it; `error` is the detail once more, where clients of V2 look for it."""

    title: str
    status: int
    detail: str
    instance: str
    error: str
    errors: list[WrongValue] | UnsetType = UNSET
    kind: str = "about:blank"


class Answer(Struct):
    """What goes back to the client."""

    status: int
    body: bytes
    media_type: bytes = b"application/json"
    headers: Headers = ()


class Problem(Exception):
    """A request that is not answered as asked: `detail` is a sentence, `errors` what is wrong with each value."""

    def __init__(self, status: int, detail: str, errors: Sequence[WrongValue] = (), headers: Headers = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers

    @property
    def reason(self) -> str:
        """One word, for metrics."""
        return REASONS.get(self.status, "other")

    def answer(self, request_id: str) -> Answer:
        """The problem document."""
        document = ProblemDocument(
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            instance=f"urn:request:{request_id}",
            error=self.detail,
            errors=list(self.errors) or UNSET,
        )
        return Answer(self.status, msgspec.json.encode(document), b"application/problem+json", self.headers)


def problem_of(error: Exception) -> Problem:
    """Any exception as a problem; of one that nobody foresaw the client learns nothing but that."""
    match error:
        case Problem():
            return error
        case TooManyRows():
            return Problem(413, str(error))
        case RowError():
            return Problem(422, str(error), error.errors)
        case HTTPException(status_code=404):
            return Problem(404, "there is nothing at this address; see /docs")
        case HTTPException(status_code=405):
            allowed = (error.headers or {}).get("allow", (error.headers or {}).get("Allow", ""))
            return Problem(405, f"expected {allowed}", headers=((b"allow", allowed.encode()),))
        case HTTPException():
            return Problem(error.status_code, str(error.detail))
    return Problem(500, "the service failed; its log says more under this request's id")
